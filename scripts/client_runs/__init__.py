"""What scripts/clients runs: other people's clients against a real server, one file per client."""
