"""Rotary position embedding: reading it from a config, the facts of each type, and the table itself."""
