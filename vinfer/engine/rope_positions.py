"""Rotary positions of models with three positions per token: time, row and column (M-RoPE).

Pure functions, NumPy only. Text advances all three together. Within an image the time is constant, and rows
and columns count from the image's first position. The text after it continues after the larger of the two.
So a prompt with images spans fewer positions than it has tokens, and `rope_offset` is the difference.

Source: transformers 5.5, `get_rope_index` in `models/qwen2_vl/modeling_qwen2_vl.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vinfer.engine.request import RequestImage


def prompt_rope_positions(prompt_len: int, images: Sequence[RequestImage]) -> np.ndarray[Any, Any]:
    """Return int32 [3, prompt_len]: time, row and column of each token.

    Args:
        images: in the order of their placeholders, each with a token_grid.
    """
    positions = np.empty((3, prompt_len), np.int32)
    place, position = 0, 0
    for image in images:
        position = _count_text(positions[:, place : image.start], position)
        assert image.token_grid is not None
        rows, columns = image.token_grid
        place = image.start + image.num_tokens
        row, column = np.divmod(np.arange(image.num_tokens, dtype=np.int32), np.int32(columns))
        positions[:, image.start : place] = position
        positions[1, image.start : place] += row
        positions[2, image.start : place] += column
        position += max(rows, columns)
    _count_text(positions[:, place:], position)
    return positions


def rope_offset(images: Sequence[RequestImage]) -> int:
    """Return what to add to the index of an answer's token: never positive, and 0 without images."""
    return sum(max(image.token_grid) - image.num_tokens for image in images if image.token_grid is not None)


def _count_text(positions: np.ndarray[Any, Any], first: int) -> int:
    """Fill in the positions [3, tokens] of text, counting from `first`, and return the next position."""
    num_tokens = positions.shape[1]
    positions[:] = np.arange(first, first + num_tokens, dtype=np.int32)
    return first + num_tokens
