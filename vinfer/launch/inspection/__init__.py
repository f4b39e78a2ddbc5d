"""What commands show of bundles, checkpoints and this machine, without building or serving anything."""
