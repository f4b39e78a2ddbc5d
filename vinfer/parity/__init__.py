"""Parity: whether a bundle's tokens are those of transformers. Only `launch` and tests import it."""
