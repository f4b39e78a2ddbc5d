"""Prompts with pictures: LLaVA says what transformers says, wherever they stand and whatever runs beside."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity is measured against transformers with torch")

import torch
from tiny.bundles import MAX_CHUNK
from tiny.engines import GREEDY, Answer, Question, ask, ask_alone
from tiny.prompts import prompt
from tiny.references import TIE, differing_steps
from tiny.vision_models import IMAGE_SIZE, IMAGE_TOKEN_ID, NUM_IMAGE_TOKENS, NUM_TOKENS_WITH_IMAGE

from vinfer.engine.request import RequestImage
from vinfer.parity import figures
from vinfer.parity.figures import Logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vinfer.engine.engine import Engine

pytestmark = pytest.mark.bundles("llava")

TOLERANCE = 1e-5
"""Largest error of a logprob, as a fraction of the largest logit."""

TEXT = prompt(150)


def picture(seed: int) -> np.ndarray:
    """Draw pixels as a processor would make them: rough and smooth, around 0."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(3, 5, 5)).repeat(IMAGE_SIZE // 5, axis=1).repeat(IMAGE_SIZE // 5, axis=2)
    return (coarse + 0.5 * generator.normal(size=coarse.shape)).astype(np.float32)


def question(*parts: int | tuple[int, ...]) -> Question:
    """Make a prompt of pictures, by seed, and runs of text, as token ids."""
    ids: list[int] = []
    images = []
    for part in parts:
        if isinstance(part, tuple):
            ids += part
            continue
        pixels = picture(part)
        content_hash = hashlib.sha256(pixels.tobytes()).hexdigest()
        image = RequestImage(
            content_hash=content_hash, start=len(ids), num_tokens=NUM_IMAGE_TOKENS, pixels=pixels
        )
        images.append(image)
        ids += [IMAGE_TOKEN_ID] * NUM_IMAGE_TOKENS
    return Question(tuple(ids), images=tuple(images))


QUESTIONS = {
    "first": question(1, TEXT[:20]),
    "middle": question(TEXT[:9], 2, TEXT[9:30]),
    "last": question(TEXT[:12], 3),
    "two side by side": question(TEXT[:3], 4, 5, TEXT[3:9]),
    "three, cut by chunks": question(TEXT[:50], 6, TEXT[50:63], 7, TEXT[63:97], 1, TEXT[97:100]),
    "the same twice": question(8, TEXT[:4], 8, TEXT[4:11]),
    "none": question(TEXT[:70]),
}


def reference_logits(model: PreTrainedModel, asked: Question, answer: Answer) -> Logits:
    """Return float32 [steps, vocab]: transformers sees pictures, prompt and answer in one pass."""
    ids = torch.tensor([[*asked.prompt_ids, *answer.token_ids[:-1]]])
    pixels = torch.from_numpy(np.stack([image.pixels for image in asked.images])) if asked.images else None
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits
    found: Logits = logits[0, len(asked.prompt_ids) - 1 :].float().numpy()
    return found


@pytest.fixture(scope="module")
def engine(engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of("llava")


@pytest.fixture(scope="module")
def model(reference_of: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    return reference_of("llava")


@pytest.fixture(scope="module")
def alone(engine: Engine) -> dict[str, Answer]:
    return dict(zip(QUESTIONS, ask_alone(engine, list(QUESTIONS.values())), strict=True))


def largest_error(logits: Logits, answer: Answer) -> tuple[float, list[int]]:
    """Return the largest error of a logprob, as a fraction of the largest logit, and the wrong steps."""
    steps = figures.compare(logits, answer.token_ids, answer.logprobs, num_token_ids=NUM_TOKENS_WITH_IMAGE)
    wrong = np.flatnonzero(steps.lags * steps.scale > TIE)
    return float(steps.largest_errors.max()), [int(step) for step in wrong]


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_are_those_of_transformers(
    name: str, alone: dict[str, Answer], model: PreTrainedModel
) -> None:
    answer = alone[name]
    assert len(answer.token_ids) == GREEDY.max_tokens
    error, wrong = largest_error(reference_logits(model, QUESTIONS[name], answer), answer)
    assert wrong == []
    assert error < TOLERANCE


@pytest.mark.parametrize("name", [name for name in QUESTIONS if name != "none"])
def test_another_picture_would_be_noticed(
    name: str, alone: dict[str, Answer], model: PreTrainedModel
) -> None:
    """The comparison above can fail: with one picture changed the reference is far away."""
    *others, last = QUESTIONS[name].images
    changed = RequestImage(
        content_hash="", start=last.start, num_tokens=last.num_tokens, pixels=last.pixels[:, ::-1].copy()
    )
    asked = Question(QUESTIONS[name].prompt_ids, images=(*others, changed))
    error, _ = largest_error(reference_logits(model, asked, alone[name]), alone[name])
    assert error > 100 * TOLERANCE


def test_in_a_crowd_as_alone(engine: Engine, alone: dict[str, Answer], model: PreTrainedModel) -> None:
    """More requests than slots, with and without pictures."""
    crowd = [*QUESTIONS, *QUESTIONS]
    for name, answer in zip(crowd, ask(engine, [QUESTIONS[name] for name in crowd]), strict=True):
        logits = reference_logits(model, QUESTIONS[name], alone[name])
        assert differing_steps(logits, alone[name], answer) == []


def test_the_same_picture_in_fifty_requests_is_encoded_once(engine: Engine) -> None:
    before = engine.stats()
    asked = [question(1000, TEXT[: 5 + place]) for place in range(50)]
    ask(engine, [_short(each) for each in asked])
    after = engine.stats()
    assert after.num_images_encoded_total - before.num_images_encoded_total == 1
    assert after.mm_cache_queries_total - before.mm_cache_queries_total == 50
    assert after.mm_cache_hits_total - before.mm_cache_hits_total == 49


def test_text_never_runs_the_encoder(engine: Engine) -> None:
    before = engine.stats().num_encode_dispatches_total
    ask(engine, [_short(question(TEXT[:length])) for length in (3, 40, 90, MAX_CHUNK)])
    assert engine.stats().num_encode_dispatches_total == before


def test_a_full_feature_array_makes_room(
    engine: Engine, alone: dict[str, Answer], model: PreTrainedModel
) -> None:
    """More pictures than the array holds (20), then one of the first again."""
    ask(engine, [_short(question(2000 + seed, 3000 + seed, TEXT[:5])) for seed in range(15)])
    before = engine.stats()
    assert 0.9 < before.mm_cache_usage_fraction <= 1
    (again,) = ask(engine, [QUESTIONS["first"]])
    assert engine.stats().num_images_encoded_total == before.num_images_encoded_total + 1
    logits = reference_logits(model, QUESTIONS["first"], alone["first"])
    assert differing_steps(logits, alone["first"], again) == []


def test_choices_share_a_prompt_with_pictures(engine: Engine, alone: dict[str, Answer]) -> None:
    """A sibling copies the rows, features among them; its last token may stand for a picture itself."""
    for name in ("last", "three, cut by chunks"):
        shared = Question(
            QUESTIONS[name].prompt_ids, images=QUESTIONS[name].images, prompt_key=f"shared {name}"
        )
        first, second = ask(engine, [shared, shared])
        assert first.token_ids == alone[name].token_ids
        assert second.token_ids == alone[name].token_ids
        assert (first.num_cached_tokens, second.num_cached_tokens) == (0, len(shared.prompt_ids) - 1)


def _short(asked: Question) -> Question:
    return dataclasses.replace(asked, params=dataclasses.replace(GREEDY, max_tokens=2))
