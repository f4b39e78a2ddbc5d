"""The parts of scripts/clients: third-party clients against a real server, one file per client."""
