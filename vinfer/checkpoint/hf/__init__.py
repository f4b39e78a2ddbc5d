"""Safetensors directories in Hugging Face's layout, and the quantized weights that they can hold."""
