"""Constrained answers: from schemas, grammars and tools to what the engine enforces."""
