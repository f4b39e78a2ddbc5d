"""Carries out what the scheduler decides: turns it into the inputs of programs, and enqueues them.

Owned by one engine thread. Enqueues programs without waiting for them; a `Dispatch` is read later, when the
device is already working on the next one. Runs no eager JAX operation, so nothing can compile.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vinfer.bundle.manifest import MASK_WORD_BITS, MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, ArraySpec
from vinfer.bundle.program_table import ProgramTable
from vinfer.bundle.programs import NO_TOKEN, Finish, ProgramKind, ProgramShape
from vinfer.bundle.sampling import NUMBERS
from vinfer.engine.kv_cache.pages import NO_PAGE, PageCopy
from vinfer.engine.loading.loaded_model import ALL_ALLOWED, FEATURES_INPUT, OPEN_MASK_INPUT, LoadedModel
from vinfer.engine.pooling import PooledDispatch, embed_inputs
from vinfer.engine.request import FinishReason, Request, SamplingParams, TokenEvent, TokenLogprobs
from vinfer.engine.rope_positions import prompt_rope_positions, rope_offset
from vinfer.engine.schedule import Admission, Chunk, Decode, Encode, Prefill

_COPY_PAGE = ProgramShape(kind="copy_page")
_SET_SLOT = ProgramShape(kind="set_slot")
_PROMPT_LOGPROBS = ("prompt_logprobs", "prompt_top_ids", "prompt_top_logprobs")
_LOGPROBS = ("logprobs", "top_ids", "top_logprobs")
_FINISH: dict[int, FinishReason | None] = {Finish.NOT: None, Finish.STOP: "stop", Finish.LENGTH: "length"}


@dataclasses.dataclass(frozen=True, slots=True)
class Dispatch:
    """One enqueued program with outputs, and the request that owns each row.

    Attributes:
        owners: the request of each real row; None if the row yields nothing (an unfinished prompt).
        outputs: by name: tokens, finished, logprobs [steps, rows]; top_ids, top_logprobs [steps, rows, 20].
            A score program also has prompt_logprobs [length], prompt_top_ids and prompt_top_logprobs
            [length, 20].
        chunks: one per row of a prefill or score dispatch; empty for decode.
        drafts: one per row of a verify dispatch; otherwise empty.
    """

    owners: tuple[Request | None, ...]
    outputs: Mapping[str, jax.Array]
    chunks: tuple[Chunk, ...] = ()
    drafts: tuple[tuple[int, ...], ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether the device has done it."""
        tokens: Any = self.outputs["tokens"]
        return bool(tokens.is_ready())

    def read(self) -> list[tuple[Request, TokenEvent]]:
        """Wait for the device and return each owner's event."""
        tokens, finished = (np.asarray(self.outputs[name]) for name in ("tokens", "finished"))
        wants_logprobs = any(
            owner is not None and owner.params.top_logprobs is not None for owner in self.owners
        )
        details = [np.asarray(self.outputs[name]) for name in _LOGPROBS] if wants_logprobs else []
        events = []
        for row, owner in enumerate(self.owners):
            if owner is None:
                continue
            steps = [step for step in range(tokens.shape[0]) if tokens[step, row] != NO_TOKEN]
            event = TokenEvent()
            if steps:
                logprobs = None
                num_top = owner.params.top_logprobs
                if num_top is not None:
                    logprobs = tuple(_logprobs(details, (step, row), num_top) for step in steps)
                event = TokenEvent(
                    tuple(int(tokens[step, row]) for step in steps),
                    logprobs,
                    _FINISH[int(finished[steps[-1], row])],
                )
            if self.chunks:
                event = self._with_prompt(event, self.chunks[row])
            if self.drafts:
                event = _with_draft(event, self.drafts[row])
            if steps or self.chunks:
                events.append((owner, event))
        return events

    def _with_prompt(self, event: TokenEvent, chunk: Chunk) -> TokenEvent:
        """Add the prompt logprobs and cached tokens of a chunk; end a request that generates nothing."""
        scored: tuple[TokenLogprobs, ...] = ()
        # A preempted request has had its prompt scored, and goes on with a prefill program.
        details = [np.asarray(self.outputs[name]) for name in _PROMPT_LOGPROBS if name in self.outputs]
        if details:
            # No prompt token follows the last one, so it has no logprob to report.
            num_scored = chunk.length - chunk.is_final
            num_top = chunk.request.params.top_logprobs or 0
            scored = tuple(_logprobs(details, (place,), num_top) for place in range(num_scored))
        return dataclasses.replace(
            event,
            finish_reason="length" if chunk.is_final and not chunk.samples else event.finish_reason,
            prompt_logprobs=scored,
            num_cached_tokens=chunk.num_cached if chunk.is_final else 0,
        )


def _with_draft(event: TokenEvent, draft: tuple[int, ...]) -> TokenEvent:
    """Add how much of a draft was right: nothing is sampled after the first token that differs from it."""
    num_accepted = sum(token == guess for token, guess in zip(event.token_ids, draft, strict=False))
    return dataclasses.replace(event, num_draft_tokens=len(draft), num_accepted_tokens=num_accepted)


def _logprobs(details: Sequence[np.ndarray[Any, Any]], place: tuple[int, ...], num_top: int) -> TokenLogprobs:
    """Return one token's logprobs; `place` is its index in all but the last axis of the alternatives."""
    own, top_ids, top_values = details
    return TokenLogprobs(
        float(own[place]),
        tuple(top_ids[place][:num_top].tolist()),
        tuple(top_values[place][:num_top].tolist()),
    )


class Runner:
    """Dispatches the programs of one model.

    Args:
        rows_are_slots: row i of a decode program is slot i (see `Manifest.rows_are_slots`).
    """

    def __init__(self, model: LoadedModel, *, num_slots: int, rows_are_slots: bool) -> None:
        self.model = model
        self._num_slots = num_slots
        self._rows_are_slots = rows_are_slots
        self._row_specs = model.inputs_of(_SET_SLOT)

    def warm_up(self) -> None:
        """Run the smallest program of each kind without any request, and wait for them.

        The first run in a process allocates memory that later runs reuse; no request should pay for that.
        """
        nobody = Request(id="", prompt_ids=(), params=SamplingParams(max_tokens=0), arrival_seconds=0.0)
        self.set_slot(Admission(self._num_slots, nobody))
        self._copy_page(None)
        table = ProgramTable(self.model.programs)
        encoder = table.smallest("encode_images")
        if encoder is not None:
            self.encode(Encode(encoder, (), ()))
        kinds: tuple[ProgramKind, ...] = ("prefill", "score", "embed")
        for shape in map(table.smallest, kinds):
            if shape is not None:
                self.prefill(Prefill(shape, ())).read()
        for decode in (table.smallest("decode"), table.smallest("verify")):
            if decode is not None:
                self.decode(Decode(decode, (), (), (), step_limit=1)).read()

    def release(self) -> None:
        """See `LoadedModel.release`."""
        self.model.release()

    def set_slot(self, admission: Admission) -> None:
        """Enqueue writing the row of an admitted request."""
        self.model.run(_SET_SLOT, _row_values(admission, self._row_specs))

    def encode(self, work: Encode) -> None:
        """Enqueue the encoder for some images; work enqueued later may read their features."""
        self.model.run(work.shape, self._encoder_inputs(work))

    def prefill(self, work: Prefill) -> Dispatch | PooledDispatch:
        """Enqueue chunks of some prompts, after the copies that they build on."""
        if work.shape.kind == "embed":
            return self._embed(work)
        for chunk in work.chunks:
            if chunk.copy is not None:
                self._copy_page(chunk.copy)
        filled = functools.partial(self.model.filled, work.shape)
        slots = filled("slots", self._num_slots)
        tokens, starts, lengths, samples = (
            filled(name, 0) for name in ("tokens", "starts", "lengths", "samples")
        )
        for row, chunk in enumerate(work.chunks):
            starts[row], lengths[row] = chunk.start, chunk.length
            tokens[row, : chunk.length] = chunk.tokens
            samples[row] = chunk.samples
            # Only the last row of a prompt writes to its slot.
            if row + 1 == len(work.chunks) or work.chunks[row + 1].slot != chunk.slot:
                slots[row] = chunk.slot
        owners = tuple(
            chunk.request if chunk.is_final or work.shape.kind == "score" else None for chunk in work.chunks
        )
        inputs: dict[str, Any] = {
            "slots": slots,
            "page_tables": self._prompt_page_tables(work),
            OPEN_MASK_INPUT: self._grammar_mask(work.shape, owners),
            "tokens": tokens,
            "starts": starts,
            "lengths": lengths,
            "samples": samples,
        }
        if work.shape.kind == "score":
            inputs["targets"] = self._targets(work)
        elif self.model.image_features:
            inputs[FEATURES_INPUT] = self.model.held_input(work.shape, FEATURES_INPUT)
            inputs["feature_index"] = _feature_index(work)
            if "rope_positions" in self.model.inputs_of(work.shape):
                inputs["rope_positions"] = _rope_positions(work)
        return self._dispatch(work.shape, owners, inputs, work.chunks)

    def decode(self, work: Decode) -> Dispatch:
        """Enqueue some decode steps, or the verification of drafts."""
        verifies = work.shape.kind == "verify"
        rows_are_slots = self._rows_are_slots and not verifies
        if rows_are_slots:
            by_slot = dict(zip(work.slots, work.owners, strict=True))
            owners = tuple(by_slot.get(slot) for slot in range(self._num_slots))
        else:
            owners = work.owners
        filled = functools.partial(self.model.filled, work.shape)
        slots = filled("slots", self._num_slots)
        slots[: len(work.slots)] = work.slots
        tables = filled("page_tables", NO_PAGE)
        for row, (slot, pages) in enumerate(zip(work.slots, work.pages, strict=True)):
            shard, place = divmod(slot, self._num_slots // tables.shape[0])
            # Where rows are slots, those of a dp shard are in its part of the tables.
            _fill(tables, shard, place if rows_are_slots else row, pages)
        inputs: dict[str, Any] = {
            "slots": slots,
            "page_tables": tables,
        }
        if verifies:
            inputs |= self._draft_inputs(work)
        else:
            inputs[OPEN_MASK_INPUT] = self._grammar_mask(work.shape, owners)
            inputs["step_limit"] = np.int32(work.step_limit)
        return self._dispatch(work.shape, owners, inputs, drafts=work.drafts)

    def _draft_inputs(self, work: Decode) -> dict[str, Any]:
        """Return what a verify program needs besides what decode does, and the masks of its drafts."""
        drafts, num_drafts = (self.model.filled(work.shape, name, 0) for name in ("drafts", "num_drafts"))
        masks: dict[int, Any] = {}
        for row, (owner, draft) in enumerate(zip(work.owners, work.drafts, strict=True)):
            num_drafts[row] = len(draft)
            drafts[row, : len(draft)] = draft
            if owner.grammar is not None:
                masks[row] = owner.grammar.mask, *owner.grammar.masks_along(draft)
                # Where no mask is known, no token may be accepted.
                num_drafts[row] = len(masks[row]) - 1
        mask = self.model.open_mask(work.shape)
        if masks:
            mask = np.full(mask.shape, ALL_ALLOWED, np.uint32)
            for row, of_row in masks.items():
                for place, allowed in enumerate(of_row):
                    mask[row, place] = np.frombuffer(allowed, "<u4")
        return {OPEN_MASK_INPUT: mask, "drafts": drafts, "num_drafts": num_drafts}

    def _embed(self, work: Prefill) -> PooledDispatch:
        """Enqueue one chunk of each of some prompts whose hidden states are pooled."""
        inputs = {"page_tables": self._prompt_page_tables(work), **embed_inputs(work.chunks, work.shape)}
        pooled = self.model.run(work.shape, inputs)["pooled"]
        pooled.copy_to_host_async()
        return PooledDispatch(work.chunks, pooled)

    def _encoder_inputs(self, work: Encode) -> dict[str, Any]:
        """Return the encoder's inputs, padded where images do not fill them."""
        # Padding is written past the last row, so it is dropped.
        padding = {"feature_rows": self.model.image_features[0].shape[0]}
        inputs: dict[str, Any] = {
            name: self.model.filled(work.shape, name, padding.get(name, 0))
            for name in self.model.inputs_of(work.shape)
        }
        for place, (image, own) in enumerate(zip(work.images, work.rows, strict=True)):
            inputs["pixels"][place, : len(image.pixels)] = image.pixels
            inputs["feature_rows"][place, : len(own)] = own
            if "grids" in inputs:
                inputs["grids"][place] = image.token_grid
        return inputs

    def _grammar_mask(self, shape: ProgramShape, owners: Sequence[Request | None]) -> Any:
        """Return uint32 [rows, words]: the next-token mask of each constrained owner; all bits otherwise."""
        open_mask = self.model.open_mask(shape)
        masks = {i: o.grammar.mask for i, o in enumerate(owners) if o is not None and o.grammar is not None}
        if not masks:
            return open_mask
        mask = np.full(open_mask.shape, ALL_ALLOWED, np.uint32)
        for row, allowed in masks.items():
            mask[row] = np.frombuffer(allowed, "<u4")
        return mask

    def _prompt_page_tables(self, work: Prefill) -> np.ndarray[Any, Any]:
        """Return int32 [shards, groups, rows, pages of a row]; a row has pages in its own shard only."""
        tables = self.model.filled(work.shape, "page_tables", NO_PAGE)
        for row, chunk in enumerate(work.chunks):
            _fill(tables, chunk.shard, row, chunk.pages)
        return tables

    def _targets(self, work: Prefill) -> np.ndarray[Any, Any]:
        """Return int32 [rows, length]: the prompt token after each token of a chunk; 0 for none."""
        targets = self.model.filled(work.shape, "targets", 0)
        for row, chunk in enumerate(work.chunks):
            following = chunk.tokens[1:] + (() if chunk.next_token is None else (chunk.next_token,))
            targets[row, : len(following)] = following
        return targets

    def _copy_page(self, copy: PageCopy | None) -> None:
        """Enqueue copying a page of every group; None copies nothing."""
        inputs = {name: self.model.filled(_COPY_PAGE, name, NO_PAGE) for name in ("sources", "targets")}
        if copy is not None:
            inputs["sources"][copy.shard], inputs["targets"][copy.shard] = copy.sources, copy.targets
        self.model.run(_COPY_PAGE, inputs)

    def _dispatch(
        self,
        shape: ProgramShape,
        owners: tuple[Request | None, ...],
        inputs: Mapping[str, Any],
        chunks: tuple[Chunk, ...] = (),
        drafts: tuple[tuple[int, ...], ...] = (),
    ) -> Dispatch:
        outputs = self.model.run(shape, inputs)
        for name, output in outputs.items():
            # Few requests want these of their answer, and `read` waits for them then.
            if name not in _LOGPROBS:
                output.copy_to_host_async()
        return Dispatch(owners, outputs, chunks, drafts)


def _fill(tables: np.ndarray[Any, Any], shard: int, row: int, pages: Sequence[Sequence[int]]) -> None:
    for group, of_group in enumerate(pages):
        tables[shard, group, row, : len(of_group)] = of_group


def _feature_index(work: Prefill) -> np.ndarray[Any, Any]:
    """Return int32 [rows, length]: the row of the feature array at each position, or -1."""
    index = np.full((work.shape.rows, work.shape.length), -1, np.int32)
    for row, chunk in enumerate(work.chunks):
        index[row, : len(chunk.feature_rows)] = chunk.feature_rows
    return index


def _rope_positions(work: Prefill) -> np.ndarray[Any, Any]:
    """Return int32 [rows, 3, length]: time, row and column of each token."""
    positions = np.zeros((work.shape.rows, 3, work.shape.length), np.int32)
    for row, chunk in enumerate(work.chunks):
        request = chunk.request
        # A preempted request goes on beyond its prompt.
        num_positions = max(len(request.prompt_ids), chunk.start + chunk.length)
        of_prompt = prompt_rope_positions(num_positions, request.images)
        positions[row, :, : chunk.length] = of_prompt[:, chunk.start : chunk.start + chunk.length]
    return positions


def _bits(token_ids: Sequence[int], num_words: int) -> np.ndarray[Any, Any]:
    """Return uint32 [words] with the bit of each token set, in the order of a grammar mask."""
    is_set = np.zeros(num_words * MASK_WORD_BITS, np.bool_)
    is_set[np.asarray(token_ids, np.int64)] = True
    return np.packbits(is_set, bitorder="little").view("<u4")


def _row_values(admission: Admission, specs: Mapping[str, ArraySpec]) -> dict[str, Any]:
    """Return one request as the inputs of set_slot."""
    request, params = admission.request, admission.request.params
    seed = params.seed % 2**64
    stop_ids = np.full(MAX_STOP_TOKEN_IDS, -1, np.int32)
    stop_ids[: len(params.stop_token_ids)] = params.stop_token_ids
    bias_ids = np.full(MAX_LOGIT_BIAS, -1, np.int32)
    bias_values = np.zeros(MAX_LOGIT_BIAS, np.float32)
    for place, (token, bias) in enumerate(params.logit_bias):
        bias_ids[place], bias_values[place] = token, bias
    counts = specs["output_counts"]
    outputs = np.asarray(admission.outputs, np.int64)
    output_counts = np.bincount(outputs, minlength=counts.shape[0]).astype(counts.dtype)
    values: dict[str, Any] = {
        "slot": np.int32(admission.slot),
        "generated": np.int32(len(admission.outputs)),
        "output_counts": output_counts,
        "remaining": np.int32(params.max_tokens - len(admission.outputs)),
        "seed": np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32),
        **{number.name: np.array(getattr(params, number.name), number.dtype) for number in NUMBERS},
        # With a grammar its masks enforce this: the device would forbid the end of a complete answer.
        "min_tokens": np.int32(params.min_tokens if request.grammar is None else 0),
        "wants_logprobs": np.bool_(params.top_logprobs is not None),
        "stop_ids": stop_ids,
        "logit_bias_ids": bias_ids,
        "logit_bias_values": bias_values,
        "prompt_mask": _bits(request.prompt_ids, specs["prompt_mask"].shape[0]),
    }
    if "rope_offset" in specs:
        values["rope_offset"] = np.int32(rope_offset(request.images))
    return values
