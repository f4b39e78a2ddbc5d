"""GGUF files: translates llama.cpp's metadata, tensor names and vocabularies into transformers' terms."""
