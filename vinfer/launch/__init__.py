"""Putting the rooms together for a command: devices, bundles, engines, terminal. Only `cli` imports it."""
