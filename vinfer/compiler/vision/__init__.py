"""Image encoders in plain XLA, and the code that replaces placeholder tokens with their features."""
