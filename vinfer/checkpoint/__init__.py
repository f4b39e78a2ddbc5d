"""Checkpoint sources, configs, tensors and tokenizers, for the build half. Imports no torch and no JAX."""
