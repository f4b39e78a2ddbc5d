"""The version of vinfer. Imports nothing."""

__version__ = "0.1.0"
