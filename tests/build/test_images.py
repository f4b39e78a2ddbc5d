"""Prompts with pictures: LLaVA says what transformers says, wherever they stand and whatever runs beside."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity is measured against transformers with torch")

import jax
import torch
from tiny.bundles import MAX_CHUNK
from tiny.engines import GREEDY, Answer, Question, ask, ask_alone
from tiny.models_doc import MatrixRow
from tiny.prompts import prompt
from tiny.references import TIE, differing_steps
from tiny.vision_models import IMAGE_SIZE, IMAGE_TOKEN_ID, NUM_IMAGE_TOKENS, NUM_TOKENS_WITH_IMAGE

from vinfer.engine.compilation import CompileCounter
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
JUDGED = "three, cut by chunks"
"""The prompt whose answer the wrong references are held against."""


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


def errors_of(logits: Logits, answer: Answer) -> tuple[list[float], list[int]]:
    """Return each step's largest error of a logprob as a fraction of the largest logit; wrong steps."""
    steps = figures.compare(logits, answer.token_ids, answer.logprobs, num_token_ids=NUM_TOKENS_WITH_IMAGE)
    wrong = np.flatnonzero(steps.lags * steps.scale > TIE)
    return steps.largest_errors.tolist(), wrong.tolist()


@pytest.fixture(scope="module")
def row(matrix: dict[str, MatrixRow]) -> MatrixRow:
    return matrix.setdefault("llava", MatrixRow("llava", "llava", TOLERANCE))


def test_answers_are_those_of_transformers(
    alone: dict[str, Answer], model: PreTrainedModel, row: MatrixRow
) -> None:
    wrong_steps = {}
    errors = dict.fromkeys(("one chunk", "several chunks", "decode"), 0.0)
    for name, answer in alone.items():
        assert len(answer.token_ids) == GREEDY.max_tokens
        found, wrong = errors_of(reference_logits(model, QUESTIONS[name], answer), answer)
        wrong_steps |= {name: wrong} if wrong else {}
        phase = "one chunk" if len(QUESTIONS[name].prompt_ids) <= MAX_CHUNK else "several chunks"
        errors[phase] = max(errors[phase], found[0])
        errors["decode"] = max(errors["decode"], *found[1:])
    row.errors, row.is_greedy_equal = errors, not wrong_steps
    assert wrong_steps == {}
    assert {phase: error for phase, error in errors.items() if error > TOLERANCE} == {}


def wrong_picture(asked: Question, model: PreTrainedModel) -> Question:
    """The last picture stands on its head."""
    *others, last = asked.images
    turned = dataclasses.replace(last, pixels=last.pixels[:, ::-1].copy())
    return dataclasses.replace(asked, images=(*others, turned))


def pictures_in_another_order(asked: Question, model: PreTrainedModel) -> Question:
    """Each stands where another should."""
    pixels = [image.pixels for image in asked.images]
    images = tuple(
        dataclasses.replace(image, pixels=pixels[place - 1]) for place, image in enumerate(asked.images)
    )
    return dataclasses.replace(asked, images=images)


def another_layer(asked: Question, model: PreTrainedModel) -> Question:
    """Features come from the last layer instead of the one before."""
    model.config.vision_feature_layer = -1
    return asked


def another_activation(asked: Question, model: PreTrainedModel) -> Question:
    """The tower's activation is the exact function that quick_gelu stands for."""
    for module in model.model.vision_tower.modules():
        if hasattr(module, "activation_fn"):
            module.activation_fn = torch.nn.GELU()
    return asked


def wrong_place(asked: Question, model: PreTrainedModel) -> Question:
    """Two patches have each other's position."""
    _swap(model, "position_embedding.weight", 3, 4)
    return asked


def dropped_bias(asked: Question, model: PreTrainedModel) -> Question:
    """The projector has one bias less."""
    dict(model.named_parameters())["model.multi_modal_projector.linear_1.bias"].data.zero_()
    return asked


def wrong_norm(asked: Question, model: PreTrainedModel) -> Question:
    """One weight of the tower's first norm is off by a tenth."""
    _parameter(model, "pre_layrnorm.weight").data[3] += 0.1
    return asked


MISTAKES = (
    wrong_picture,
    pictures_in_another_order,
    another_layer,
    another_activation,
    wrong_place,
    dropped_bias,
    wrong_norm,
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_wrong_encoder_is_noticed(
    mistake: Callable[[Question, PreTrainedModel], Question],
    alone: dict[str, Answer],
    model: PreTrainedModel,
    row: MatrixRow,
) -> None:
    wrong_model = copy.deepcopy(model)
    asked, answer = QUESTIONS[JUDGED], alone[JUDGED]
    found, _ = errors_of(reference_logits(wrong_model, mistake(asked, wrong_model), answer), answer)
    is_noticed = max(found) > 3 * TOLERANCE
    (row.noticed if is_noticed else row.missed).append(mistake.__name__)
    assert is_noticed


def _parameter(model: PreTrainedModel, ending: str) -> torch.Tensor:
    return next(parameter for name, parameter in model.named_parameters() if name.endswith(ending))


def _swap(model: PreTrainedModel, ending: str, one: int, other: int) -> None:
    weight = _parameter(model, ending).data
    weight[[one, other]] = weight[[other, one]]


def test_no_mix_of_pictures_compiles_anything(engine: Engine) -> None:
    counter = CompileCounter()
    counter.mark_ready()
    mixed = [
        question(*(part for seed in range(num) for part in (4000 + seed + start, TEXT[: 1 + seed])), TEXT[:2])
        for start in range(4)
        for num in range(6)
    ]
    for size in (1, 2, 3, 7, 11):
        ask(engine, [_short(each) for each in mixed[:size]])
        mixed = mixed[size:]
    assert counter.num_post_ready == 0
    jax.jit(lambda x: x + counter.num_compiles)(np.float32(1))
    assert counter.num_post_ready > 0


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
