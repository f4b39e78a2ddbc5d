"""The parts of scripts/bench. Standard library only: a benchmark client should cost next to nothing."""
