"""The host's half of the KV cache: who has which pages, and what names the tokens that they hold."""
