"""GGUF files: llama.cpp's metadata, tensor names and vocabularies in the terms of transformers."""
