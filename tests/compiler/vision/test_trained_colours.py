"""Pixels reach the tokens: a tiny model trained on colored squares names the colors of new ones over HTTP."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

pytest.importorskip("torch", reason="the model is trained with torch")

from chat_with_images import data_url
from tiny.colours import COLOURS, QUESTION, coloured_image

FIRST_HELD_OUT, NUM_HELD_OUT = 1_000_000, 120
Post = Callable[..., httpx.Response]


@pytest.mark.bundles("llava-colours")
def test_held_out_images_are_named(post_to: Callable[[str], Post]) -> None:
    post = post_to("llava-colours")
    right = 0
    seen = set()
    for seed in range(FIRST_HELD_OUT, FIRST_HELD_OUT + NUM_HELD_OUT):
        name, image = coloured_image(seed)
        seen.add(name)
        content = [
            {"type": "image_url", "image_url": {"url": data_url(image)}},
            {"type": "text", "text": QUESTION},
        ]
        answer = post(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": content}],
            temperature=0,
            max_tokens=12,
        )
        right += answer.json()["choices"][0]["message"]["content"] == name
    assert seen == set(COLOURS)
    assert right / NUM_HELD_OUT >= 0.95
