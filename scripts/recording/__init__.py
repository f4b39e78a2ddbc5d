"""The parts of scripts/record."""
