"""One process of the tiny model for all cases, and the reference that they are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite(
    "answer_cases",
    "image_cases",
    "messages_cases",
    "numpy_sampler",
    "prompt_cases",
    "responses_cases",
    "sampling_cases",
    "tool_cases",
)
if TYPE_CHECKING:
    from expected import Expected
    from tiny_server import Talk


@pytest.fixture(scope="session")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talk]:
    pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")
    from tiny.bundles import build
    from tiny_server import serving

    with serving(build("llama"), build("llava"), tmp_path_factory.mktemp("conformance")) as talk:
        yield talk


@pytest.fixture(scope="session")
def expected(talk: Talk) -> Expected:
    import torch
    from expected import Expected
    from tiny.checkpoints import reference

    torch.set_num_threads(1)
    return Expected(reference("llama"), reference("llava"), talk)
