"""The parts of scripts/fuzz: a tiny server, schemathesis against it, and the page with the results."""
