"""Writes a bundle: weights tensor by tensor, programs as StableHLO, the tokenizer and the manifest."""
