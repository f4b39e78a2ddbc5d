"""Positions in time, row and column: computed by hand, and equal to transformers for random prompts."""

from __future__ import annotations

import numpy as np
import pytest

from vinfer.engine.request import RequestImage
from vinfer.engine.rope_positions import prompt_rope_positions, rope_offset


def image(start: int, rows: int, columns: int) -> RequestImage:
    return RequestImage(
        content_hash=f"{rows} by {columns}",
        start=start,
        num_tokens=rows * columns,
        pixels=np.zeros(0, np.float32),
        token_grid=(rows, columns),
    )


def test_text_counts_on_all_axes_together() -> None:
    assert prompt_rope_positions(3, ()).tolist() == [[0, 1, 2]] * 3
    assert rope_offset(()) == 0


def test_an_image_counts_its_rows_and_columns_from_where_it_begins() -> None:
    """Two tokens, an image of 2 rows and 3 columns, one token, an image of one token."""
    images = (image(2, 2, 3), image(9, 1, 1))
    positions = prompt_rope_positions(10, images)
    assert positions.dtype == np.int32
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    # The next token is the eleventh and has position 7.
    assert rope_offset(images) == 7 - 10


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(20))
def test_random_prompts_have_the_positions_of_transformers(seed: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers import Qwen2VLConfig, Qwen2VLModel

    generator = np.random.default_rng(seed)
    images: list[RequestImage] = []
    token_types: list[int] = [0] * int(generator.integers(0, 4))
    for _ in range(generator.integers(1, 5)):
        rows, columns = (int(side) for side in generator.integers(1, 9, 2))
        images.append(image(len(token_types), rows, columns))
        # Put text between two images, or transformers would treat them as one.
        token_types += [1] * rows * columns + [0] * int(generator.integers(1, 6))
    if generator.integers(2):
        token_types = token_types[: images[-1].start + images[-1].num_tokens]

    class Bare:
        """The attributes that `get_rope_index` reads from a model."""

        config = Qwen2VLConfig()
        get_vision_position_ids = Qwen2VLModel.get_vision_position_ids

    types = torch.tensor([token_types])
    grids = [[1, 2 * rows, 2 * columns] for rows, columns in (i.token_grid or () for i in images)]
    positions, offset = Qwen2VLModel.get_rope_index(Bare(), types, types, image_grid_thw=torch.tensor(grids))
    assert prompt_rope_positions(len(token_types), images).tolist() == positions[:, 0].tolist()
    assert rope_offset(images) == offset.item()
