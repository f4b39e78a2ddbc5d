"""From checked fields to an answer: prompts, sampling, generation, and how answers are written."""
