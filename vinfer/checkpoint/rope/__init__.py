"""Rotary position embedding: where a config says it, what each type needs, and the table itself."""
