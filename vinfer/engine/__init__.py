"""The engine of the run half: puts requests into slots, runs programs on devices, and yields tokens."""
