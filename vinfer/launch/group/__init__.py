"""Starts the members of a group: one model over several hosts."""
