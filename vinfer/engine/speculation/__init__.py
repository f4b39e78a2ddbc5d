"""Speculative decoding by prompt lookup: drafts, and which requests have one."""
