"""Compares bundles with transformers: after a build, and as `vinfer verify`."""
