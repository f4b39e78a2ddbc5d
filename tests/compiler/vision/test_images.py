"""Prompts with images: every family matches transformers, wherever images are, alone and batched."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity is measured against transformers with torch")

import jax
import torch
from tiny.bundles import MAX_CHUNK, SPECULATING_WITH_IMAGES
from tiny.engines import GREEDY, Answer, Question, ask, ask_alone
from tiny.models_doc import MatrixRow
from tiny.prompts import prompt
from tiny.references import TIE, differing_steps
from tiny.vision_models import VISION, VisionModel

from vinfer.bundle.directory import read_manifest
from vinfer.engine.loading.compile_count import CompileCounter
from vinfer.engine.request import RequestImage
from vinfer.parity import figures
from vinfer.parity.figures import Logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vinfer.engine.engine import Engine

TOLERANCE = 1e-5
"""Largest error of a logprob, as a fraction of the largest logit."""

TEXT = prompt(150)
PAGE_SIZE = 32
Part = int | tuple[int, ...]


def drawn(seed: int, size: int) -> np.ndarray:
    """Return pixels like a processor's output: rough and smooth, around 0."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(3, 5, 5)).repeat(size // 5, axis=1).repeat(size // 5, axis=2)
    return (coarse + 0.5 * generator.normal(size=coarse.shape)).astype(np.float32)


def patches(seed: int, grid: tuple[int, int]) -> np.ndarray:
    """Return the patches of a variable-size image, four per placeholder."""
    generator = np.random.default_rng(seed)
    num_patches = 4 * grid[0] * grid[1]
    rough = generator.normal(size=(num_patches, 3 * 2 * 6 * 6))
    return (generator.normal(size=(num_patches, 1)) + 0.5 * rough).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Asker:
    """Builds prompts for one family.

    Attributes:
        name: name of its checkpoint and of its bundle.
    """

    name: str
    family: VisionModel

    def question(self, *parts: Part) -> Question:
        """Build a prompt from images (by seed) and runs of text (token ids)."""
        ids: list[int] = []
        images = []
        for part in parts:
            if isinstance(part, tuple):
                ids += part
                continue
            ids += self.family.before
            image = self.image(part, start=len(ids))
            images.append(image)
            ids += [self.family.image_token_id] * image.num_tokens
            ids += self.family.after
        return Question(tuple(ids), images=tuple(images))

    def image(self, seed: int, *, start: int) -> RequestImage:
        """Return an image from its seed; variable-size images also differ in size."""
        grid = self.family.grids[seed % len(self.family.grids)] if self.family.grids else None
        pixels = drawn(seed, self.family.image_size) if grid is None else patches(seed, grid)
        return RequestImage(
            content_hash=hashlib.sha256(pixels.tobytes()).hexdigest(),
            start=start,
            num_tokens=self.family.num_image_tokens if grid is None else grid[0] * grid[1],
            pixels=pixels,
            token_grid=grid,
        )

    def questions(self) -> dict[str, Question]:
        return {name: self.question(*parts) for name, parts in PROMPTS.items()}

    def reference_logits(self, model: PreTrainedModel, asked: Question, answer: Answer) -> Logits:
        """Return float32 [steps, vocab]: transformers reads images and prompt, then the whole answer.

        Runs two passes, because a placeholder in a random answer would otherwise need an image.
        """
        ids = torch.tensor([asked.prompt_ids])
        given: dict[str, torch.Tensor] = {}
        if asked.images:
            join = np.concatenate if self.family.grids else np.stack
            given["pixel_values"] = torch.from_numpy(join([image.pixels for image in asked.images]))
        token_types = (ids == self.family.image_token_id).long()
        if self.family.grids:
            # Otherwise the previous prompt's deltas are used if this one has no image.
            model.model.rope_deltas = None
            grids = [image.token_grid for image in asked.images]
            if grids:
                given["image_grid_thw"] = torch.tensor(
                    [[1, 2 * rows, 2 * columns] for rows, columns in grids]
                )
                given["mm_token_type_ids"] = token_types
        elif self.family.has_token_types:
            given["token_type_ids"] = token_types
        with torch.no_grad():
            read = model(input_ids=ids, use_cache=True, logits_to_keep=1, **given)
            answered = torch.tensor([answer.token_ids[:-1]])
            rest = model(input_ids=answered, past_key_values=read.past_key_values, use_cache=True).logits
        found: Logits = torch.cat([read.logits, rest], dim=1)[0].float().numpy()
        return found

    def errors_of(self, logits: Logits, answer: Answer) -> tuple[list[float], list[int]]:
        """Return the largest relative logprob error of each step, and the wrong steps."""
        steps = figures.compare(
            logits, answer.token_ids, answer.logprobs, num_token_ids=self.family.num_tokens
        )
        wrong = np.flatnonzero(steps.lags * steps.scale > TIE)
        return steps.largest_errors.tolist(), wrong.tolist()


PROMPTS: dict[str, tuple[Part, ...]] = {
    "first": (1, TEXT[:20]),
    "middle": (TEXT[:9], 2, TEXT[9:30]),
    "last": (TEXT[:22], 3),
    "two side by side": (TEXT[:3], 4, 5, TEXT[3:9]),
    "three, beyond a chunk": (TEXT[:50], 6, TEXT[50:63], 7, TEXT[63:97], 1, TEXT[97:100]),
    "the same twice": (8, TEXT[:4], 8, TEXT[4:11]),
    "none": (TEXT[:70],),
}
JUDGED = "three, beyond a chunk"
"""The prompt for comparisons with wrong references."""


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.bundles(name)) for name in VISION]
)
def asker(request: pytest.FixtureRequest) -> Asker:
    return Asker(request.param, VISION[request.param])


@pytest.fixture(scope="module")
def engine(asker: Asker, engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of(asker.name)


@pytest.fixture(scope="module")
def model(asker: Asker, reference_of: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    return reference_of(asker.name)


@pytest.fixture(scope="module")
def alone(asker: Asker, engine: Engine) -> dict[str, Answer]:
    questions = asker.questions()
    return dict(zip(questions, ask_alone(engine, list(questions.values())), strict=True))


@pytest.fixture(scope="module")
def row(asker: Asker, model: PreTrainedModel, matrix: dict[str, MatrixRow]) -> MatrixRow:
    return matrix.setdefault(asker.name, MatrixRow(asker.name, model.config.model_type, TOLERANCE))


def test_answers_are_those_of_transformers(
    asker: Asker, alone: dict[str, Answer], model: PreTrainedModel, row: MatrixRow
) -> None:
    wrong_steps = {}
    errors = dict.fromkeys(("one chunk", "several chunks", "decode"), 0.0)
    for name, asked in asker.questions().items():
        answer = alone[name]
        assert len(answer.token_ids) == GREEDY.max_tokens
        found, wrong = asker.errors_of(asker.reference_logits(model, asked, answer), answer)
        wrong_steps |= {name: wrong} if wrong else {}
        phase = "one chunk" if len(asked.prompt_ids) <= MAX_CHUNK else "several chunks"
        errors[phase] = max(errors[phase], found[0])
        errors["decode"] = max(errors["decode"], *found[1:])
    row.errors, row.is_greedy_equal = errors, not wrong_steps
    assert wrong_steps == {}
    assert {phase: error for phase, error in errors.items() if error > TOLERANCE} == {}


def test_drafts_are_right_behind_images(asker: Asker, engine: Engine, model: PreTrainedModel) -> None:
    """Every token is the same one; its logprobs tell whether tokens of drafts have the right positions."""
    params = dataclasses.replace(GREEDY, logit_bias=((65, 100.0),), max_tokens=24)
    asked = dataclasses.replace(asker.questions()[JUDGED], params=params)
    (answer,) = ask(engine, [asked])
    assert answer.token_ids == [65] * 24
    errors, _ = asker.errors_of(asker.reference_logits(model, asked, answer), answer)
    assert max(errors) <= TOLERANCE
    num_accepted = engine.stats().spec_decode_num_accepted_tokens_total
    assert (num_accepted > 0) == (asker.name in SPECULATING_WITH_IMAGES)


def wrong_image(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Turn the last image upside down."""
    *others, last = asked.images
    turned = dataclasses.replace(last, pixels=last.pixels[:, ::-1].copy())
    return dataclasses.replace(asked, images=(*others, turned))


def images_in_another_order(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Reorder the images."""
    pixels = [image.pixels for image in asked.images]
    images = tuple(
        dataclasses.replace(image, pixels=pixels[place - 1]) for place, image in enumerate(asked.images)
    )
    return dataclasses.replace(asked, images=images)


def another_layer(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Take features from the last layer instead of the one before."""
    model.config.vision_feature_layer = -1
    return asked


def another_activation(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Replace the tower's activation by the exact function that it approximates."""
    for module in model.model.vision_tower.modules():
        if hasattr(module, "activation_fn"):
            module.activation_fn = torch.nn.GELU()
    return asked


def wrong_place(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Swap the positions of two patches."""
    weight = _parameter(model, "position_embedding.weight").data
    weight[[3, 4]] = weight[[4, 3]]
    return asked


def dropped_projector_bias(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Remove one bias of the projector."""
    _parameter(model, "multi_modal_projector.linear_1.bias").data.zero_()
    return asked


def earlier_layers(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Replace one of the joined layers."""
    model.config.vision_feature_layers = [-2, 0, -2, 1]
    return asked


def wrong_projector_epsilon(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Use the usual epsilon in the projector's norm."""
    model.model.multi_modal_projector.projector_layernorm.eps = 1e-5
    return asked


def dropped_patch_bias(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Remove the bias of the patches."""
    _parameter(model, "patch_embedding.bias").data.zero_()
    return asked


def wrong_first_norm(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Change one weight of the tower's first norm by a tenth."""
    _parameter(model, "pre_layrnorm.weight").data[3] += 0.1
    return asked


def wrong_soft_norm(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Change one weight of the projector's norm by a tenth."""
    _parameter(model, "mm_soft_emb_norm.weight").data[3] += 0.1
    return asked


_GEMMA3 = "transformers.models.gemma3.modeling_gemma3"


def one_way(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Make attention within an image causal."""
    from transformers.models.gemma3 import modeling_gemma3

    mask = modeling_gemma3.token_type_ids_mask_function
    patch.setattr(f"{_GEMMA3}.token_type_ids_mask_function", lambda groups: mask(torch.full_like(groups, -1)))
    return asked


def one_way_in_windows(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Make attention within an image causal, only in layers with a window."""
    from transformers import masking_utils

    mask = masking_utils.create_sliding_window_causal_mask
    patch.setitem(
        masking_utils.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING,
        "sliding_attention",
        lambda or_mask_function=None, **given: mask(**given),
    )
    return asked


def images_that_see_each_other(
    asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch
) -> Question:
    """Let all images of a prompt attend to each other."""
    from transformers.models.gemma3 import modeling_gemma3

    mask = modeling_gemma3.token_type_ids_mask_function
    patch.setattr(f"{_GEMMA3}.token_type_ids_mask_function", lambda groups: mask(groups.clamp(max=0)))
    return asked


def no_windows(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Let all layers of the tower see the whole image."""
    model.model.visual.fullatt_block_indexes = range(100)
    return asked


def larger_windows(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Make the tower's windows one feature wider and higher."""
    model.model.visual.window_size += 12
    return asked


_QWEN2_VL = "transformers.models.qwen2_vl.modeling_qwen2_vl"


def another_gate(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Replace the tower's activation by the exact function that it approximates."""
    for block in model.model.visual.blocks:
        block.mlp.act = block.mlp.act_fn = torch.nn.GELU()
    return asked


def dropped_merger_bias(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Remove one bias of the projection."""
    _parameter(model, "merger.mlp.0.bias").data.zero_()
    return asked


def turned_patches(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Swap rows and columns in the tower."""
    visual = type(model.model.visual)
    table = visual.rot_pos_emb
    patch.setattr(visual, "rot_pos_emb", lambda self, grids: table(self, grids).roll(3, dims=-1))
    return asked


def images_of_one_length(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Let all images of a prompt attend to each other in the tower."""
    patch.setattr(
        f"{_QWEN2_VL}.torch.repeat_interleave", lambda lengths, repeats: lengths.sum(dim=0, keepdim=True)
    )
    return asked


def _with_positions(
    patch: pytest.MonkeyPatch,
    model: PreTrainedModel,
    change: Callable[..., tuple[torch.Tensor, torch.Tensor]],
) -> None:
    of_model = type(model.model)
    right = of_model.get_rope_index
    patch.setattr(of_model, "get_rope_index", lambda *given, **named: change(*right(*given, **named)))


def turned_positions(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Swap rows and columns in the decoder."""
    _with_positions(patch, model, lambda positions, delta: (positions[[0, 2, 1]], delta))
    return asked


def moving_images(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Advance time from row to row."""
    _with_positions(patch, model, lambda positions, delta: (positions[[1, 1, 2]], delta))
    return asked


def late_answer(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Start the answer one position too late."""
    _with_positions(patch, model, lambda positions, delta: (positions, delta + 1))
    return asked


def positions_of_text(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Give an image the positions of text."""
    _with_positions(
        patch,
        model,
        lambda positions, delta: (torch.arange(positions.shape[-1]).expand_as(positions), delta * 0),
    )
    return asked


def other_sections(asked: Question, model: PreTrainedModel, patch: pytest.MonkeyPatch) -> Question:
    """Rotate one pair of each head by rows instead of columns."""
    for layer in model.model.language_model.layers:
        layer.self_attn.config.rope_parameters["mrope_section"] = [2, 4, 2]
    return asked


Mistake = Callable[[Question, "PreTrainedModel", pytest.MonkeyPatch], Question]
_OF_ALL: tuple[Mistake, ...] = (wrong_image, images_in_another_order, another_activation, wrong_place)
MISTAKES: dict[str, tuple[Mistake, ...]] = {
    "llava": (*_OF_ALL, another_layer, dropped_projector_bias, wrong_first_norm),
    "llava-siglip": (*_OF_ALL, dropped_projector_bias, dropped_patch_bias),
    "vipllava": (*_OF_ALL, earlier_layers, dropped_projector_bias, wrong_first_norm, wrong_projector_epsilon),
    "gemma3-images": (
        *_OF_ALL,
        dropped_patch_bias,
        wrong_soft_norm,
        one_way,
        one_way_in_windows,
        images_that_see_each_other,
    ),
    "qwen2-vl": (
        wrong_image,
        another_gate,
        dropped_merger_bias,
        turned_patches,
        images_of_one_length,
        turned_positions,
        moving_images,
        late_answer,
        positions_of_text,
        other_sections,
    ),
    "qwen2-5-vl": (
        wrong_image,
        another_gate,
        dropped_merger_bias,
        turned_patches,
        no_windows,
        larger_windows,
        turned_positions,
        late_answer,
        positions_of_text,
        other_sections,
    ),
}


def test_wrong_encoders_and_masks_are_noticed(
    asker: Asker, alone: dict[str, Answer], model: PreTrainedModel, row: MatrixRow
) -> None:
    asked, answer = asker.questions()[JUDGED], alone[JUDGED]
    for mistake in MISTAKES[asker.name]:
        wrong_model = copy.deepcopy(model)
        with pytest.MonkeyPatch.context() as patch:
            wrong_question = mistake(asked, wrong_model, patch)
            found, _ = asker.errors_of(asker.reference_logits(wrong_model, wrong_question, answer), answer)
        (row.noticed if max(found) > 3 * TOLERANCE else row.missed).append(mistake.__name__)
    assert row.missed == []


def _parameter(model: PreTrainedModel, ending: str) -> torch.Tensor:
    return next(parameter for name, parameter in model.named_parameters() if name.endswith(ending))


def test_no_mix_of_images_compiles_anything(asker: Asker, engine: Engine) -> None:
    counter = CompileCounter()
    counter.mark_ready()
    mixed = [
        asker.question(
            *(part for seed in range(num) for part in (4000 + seed + start, TEXT[: 1 + seed])), TEXT[:2]
        )
        for start in range(4)
        for num in range(6)
    ]
    for size in (1, 2, 3, 7, 11):
        ask(engine, [_short(each) for each in mixed[:size]])
        mixed = mixed[size:]
    assert counter.num_post_ready == 0
    jax.jit(lambda x: x + counter.num_compiles)(np.float32(1))
    assert counter.num_post_ready > 0


def test_in_a_crowd_as_alone(
    asker: Asker, engine: Engine, alone: dict[str, Answer], model: PreTrainedModel
) -> None:
    """Submit more requests than slots, with and without images."""
    questions = asker.questions()
    crowd = [*questions, *questions]
    for name, answer in zip(crowd, ask(engine, [questions[name] for name in crowd]), strict=True):
        logits = asker.reference_logits(model, questions[name], alone[name])
        assert differing_steps(logits, alone[name], answer) == []


def test_the_same_image_in_fifty_requests_is_encoded_once(asker: Asker, engine: Engine) -> None:
    before = engine.stats()
    asked = [asker.question(1000, TEXT[: 5 + place]) for place in range(50)]
    ask(engine, [_short(each) for each in asked])
    after = engine.stats()
    assert after.num_images_encoded_total - before.num_images_encoded_total == 1
    assert after.mm_cache_queries_total - before.mm_cache_queries_total == 50
    assert after.mm_cache_hits_total - before.mm_cache_hits_total == 49


def test_text_never_runs_the_encoder(asker: Asker, engine: Engine) -> None:
    before = engine.stats().num_encode_dispatches_total
    ask(engine, [_short(asker.question(TEXT[:length])) for length in (3, 40, 90, MAX_CHUNK)])
    assert engine.stats().num_encode_dispatches_total == before


def test_a_full_feature_array_makes_room(
    asker: Asker, engine: Engine, alone: dict[str, Answer], model: PreTrainedModel
) -> None:
    """Send more images than the array holds, then one of the first again."""
    ask(engine, [_short(asker.question(2000 + seed, 3000 + seed, TEXT[:5])) for seed in range(15)])
    before = engine.stats()
    assert 0.9 < before.mm_cache_usage_fraction <= 1
    asked = asker.questions()["first"]
    (again,) = ask(engine, [asked])
    assert engine.stats().num_images_encoded_total == before.num_images_encoded_total + 1
    logits = asker.reference_logits(model, asked, alone["first"])
    assert differing_steps(logits, alone["first"], again) == []


def test_choices_share_a_prompt_with_images(
    asker: Asker, engine: Engine, alone: dict[str, Answer], bundle_of: Callable[[str], Path]
) -> None:
    """A sibling has the pages, which depend on the features; its last token may itself be a placeholder."""
    images = read_manifest(bundle_of(asker.name)).images
    assert images is not None
    for name in ("last", "three, beyond a chunk"):
        asked = asker.questions()[name]
        shared = dataclasses.replace(asked, cache_scope=f"shared {asker.name} {name}")
        first, second = ask(engine, [shared, shared])
        assert first.token_ids == alone[name].token_ids
        assert second.token_ids == alone[name].token_ids
        num_shared = num_shareable(shared, keeps_images_whole=images.attends_both_ways)
        assert (first.num_cached_tokens, second.num_cached_tokens) == (0, num_shared)


def num_shareable(asked: Question, *, keeps_images_whole: bool) -> int:
    """Return how much of a prompt an equal one begins with: whole pages, and then a part of the last one.

    If images must stay whole, no page may end within one. Then the part is not reached either.
    """

    def splits_an_image(position: int) -> bool:
        return keeps_images_whole and any(
            image.start < position < image.start + image.num_tokens for image in asked.images
        )

    last = len(asked.prompt_ids) - 1
    edges = range(0, last + 1, PAGE_SIZE)
    return max(p for p in edges if not splits_an_image(p)) if splits_an_image(edges[-1]) else last


def test_a_beginning_is_shared_up_to_another_image(
    asker: Asker, engine: Engine, model: PreTrainedModel
) -> None:
    """The token ids of two images are the same; the page that holds the first of another one differs."""
    first = asker.question(TEXT[:PAGE_SIZE], 1, TEXT[:40])
    other = asker.question(TEXT[:PAGE_SIZE], 1 + (len(asker.family.grids) or 1), TEXT[:40])
    assert first.prompt_ids == other.prompt_ids
    assert first.images != other.images
    scope = f"another image {asker.name}"
    asked = [dataclasses.replace(each, cache_scope=scope) for each in (first, other, first, other)]
    alone = [ask(engine, [dataclasses.replace(each, cache_scope=None)])[0] for each in asked[:2]]
    cached = []
    for question, answer in zip(asked, ask_alone(engine, asked), strict=True):
        cached.append(answer.num_cached_tokens)
        expected = alone[question.images == other.images]
        assert differing_steps(asker.reference_logits(model, question, expected), expected, answer) == []
    most = len(first.prompt_ids) - 1
    assert cached == [0, PAGE_SIZE, most, most]


def _short(asked: Question) -> Question:
    return dataclasses.replace(asked, params=dataclasses.replace(GREEDY, max_tokens=2))
