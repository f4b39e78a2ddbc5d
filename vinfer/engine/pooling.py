"""Inputs and outputs of embed programs, which pool the hidden states of prompts.

Engine thread. Both kinds of pooling sum over some tokens of each chunk, so the parts add up over chunks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vinfer.bundle.programs import ProgramShape
from vinfer.engine.request import Request, TokenEvent
from vinfer.engine.schedule import Chunk


@dataclasses.dataclass(frozen=True, slots=True)
class PooledDispatch:
    """One enqueued embed program.

    Attributes:
        chunks: one per row; all belong to requests with pooling.
        pooled: float32 [rows, hidden], on the device.
    """

    chunks: tuple[Chunk, ...]
    pooled: Any

    @property
    def is_ready(self) -> bool:
        """Whether the device has done it."""
        return bool(self.pooled.is_ready())

    def read(self) -> list[tuple[Request, TokenEvent]]:
        """Wait for the device and return each request's part; the last part of a prompt ends the request."""
        pooled = np.asarray(self.pooled)
        return [
            (
                chunk.request,
                TokenEvent(
                    finish_reason="length" if chunk.is_final else None, pooled=(pooled[row].tobytes(),)
                ),
            )
            for row, chunk in enumerate(self.chunks)
        ]


def embed_inputs(chunks: Sequence[Chunk], shape: ProgramShape) -> dict[str, Any]:
    """Return the inputs of an embed program, but for its page tables."""
    tokens = np.zeros((shape.rows, shape.length), np.int32)
    starts, lengths, pooled_from = (np.zeros(shape.rows, np.int32) for _ in range(3))
    for row, chunk in enumerate(chunks):
        starts[row], lengths[row] = chunk.start, chunk.length
        tokens[row, : chunk.length] = chunk.tokens
        if chunk.request.pooling == "last":
            # Only the last token of the prompt is pooled, so none from the chunks before the final one.
            pooled_from[row] = chunk.length - chunk.is_final
    return {"tokens": tokens, "starts": starts, "lengths": lengths, "pooled_from": pooled_from}
