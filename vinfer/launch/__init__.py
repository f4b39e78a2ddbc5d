"""Assembles what a command needs: devices, bundles, engines, terminal. Only `cli` imports it."""
