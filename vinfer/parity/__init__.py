"""Parity: whether a bundle's tokens match transformers. Only `launch` and the tests import it."""
