"""Text in and out of the run half: tokenizer, chat template, detokenizer, stop strings. No JAX."""
