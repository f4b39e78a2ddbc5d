"""Image encoders in plain XLA, and how their features take the place of placeholder tokens."""
