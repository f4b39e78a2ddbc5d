"""Brings a bundle onto devices: weights, arrays, and programs as machine code."""
