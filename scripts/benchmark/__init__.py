"""The parts of scripts/bench. Standard library only: a measuring client should cost next to nothing."""
