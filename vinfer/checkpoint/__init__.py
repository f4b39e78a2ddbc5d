"""Where weights come from (build half): sources, configs, tensors, tokenizers. No torch, no JAX."""
