"""The prompts of the parity tests: odd lengths, both sides of every bucket edge, several chunks."""

from __future__ import annotations

import dataclasses
import random

from tiny.bundles import MAX_CHUNK, MAX_MODEL_LEN
from tiny.checkpoints import NUM_TOKENS
from tiny.engines import GREEDY, Question

from vinfer.bundle.manifest import Pooling

MAX_TOKENS = GREEDY.max_tokens

ONE_CHUNK = (1, 5, 7, 8, 9, 31, 32, 33, 63, 64)
SEVERAL_CHUNKS = (65, 100, 127, 128, 129, 192, 200, 250, 255, 256, 257, 300, MAX_MODEL_LEN - MAX_TOKENS)
LENGTHS = (*ONE_CHUNK, *SEVERAL_CHUNKS)
assert max(ONE_CHUNK) == MAX_CHUNK

CROWD = (300, 1, 33, 64, 65, 200, 5, 255)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """Return random token ids; the same for the same length and seed."""
    draw = random.Random(length * 1000 + seed)
    return tuple(draw.randrange(NUM_TOKENS) for _ in range(length))


def crowd(*, join_apart: bool) -> list[Question]:
    """Return eight greedy questions; with `join_apart`, each waits for a few tokens of the previous one."""
    return [
        Question(prompt(length), joins_after=1 + place % 3 * 4 if join_apart else 0)
        for place, length in enumerate(CROWD)
    ]


def shared_crowd() -> list[Question]:
    """Return three greedy questions that share one prompt of several chunks."""
    return [Question(prompt(200), cache_scope="shared")] * 3


def long_answers() -> list[Question]:
    """Return greedy questions of two to four pages each, of whose answers few pages hold all."""
    return [Question(prompt(length, seed=3)) for length in (60, 50, 33, 5, 64, 40)]


def embedding_crowd() -> list[Question]:
    """Return questions for pooled hidden states of both kinds, some in one bucket or several chunks."""
    params = dataclasses.replace(GREEDY, max_tokens=0, top_logprobs=None)
    poolings: tuple[Pooling, ...] = ("mean", "last")
    return [
        Question(prompt(length), params, pooling=pooling) for length in (31, 32, 150) for pooling in poolings
    ]


def scored_crowd() -> list[Question]:
    """Return two greedy questions that score their prompts, one of them in several chunks."""
    return [Question(prompt(length), scores_prompt=True) for length in (31, 150)]
