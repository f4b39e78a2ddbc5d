"""The parts of scripts/fuzz: a tiny server, schemathesis against it, and what came of it as a page."""
