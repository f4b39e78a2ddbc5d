"""The shapes of all JSON bodies and events of answers, which mypy checks and `/openapi.json` shows."""
