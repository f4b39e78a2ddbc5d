"""scripts/accelerators: compiles programs for accelerators that this machine does not have."""
