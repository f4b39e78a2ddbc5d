"""Owns the arrays and programs of a model, and carries out what the scheduler decides.

Owned by one engine thread. Enqueues programs without waiting for them; a `Dispatch` is read later, when the
device is already working on the next one. Runs no eager JAX operation, so nothing can compile.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from vinfer.bundle.manifest import MASK_WORD_BITS, MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, ArraySpec
from vinfer.bundle.programs import ProgramKind, ProgramShape
from vinfer.engine.pages import NO_PAGE, PageCopy
from vinfer.engine.pooling import PooledDispatch, embed_inputs
from vinfer.engine.request import FinishReason, Request, TokenEvent, TokenLogprobs
from vinfer.engine.rope_positions import prompt_rope_positions, rope_offset
from vinfer.engine.schedule import Admission, Chunk, Decode, Encode, Prefill

Arrays = tuple[jax.Array, ...]
_COPY_PAGE = ProgramShape(kind="copy_page")
ALL_ALLOWED = 0xFFFFFFFF
"""A word of a grammar mask with all bits set."""
_FINISH: dict[int, FinishReason | None] = {0: None, 1: "stop", 2: "length"}


class Compiled(Protocol):
    """A compiled program: (weights, kv, state, inputs) -> (kv, state, outputs)."""

    def __call__(self, weights: Arrays, kv: Arrays, state: Arrays, inputs: tuple[Any, ...]) -> Any: ...

    def memory_analysis(self) -> Any: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Dispatch:
    """One enqueued program with outputs, and the request that owns each row.

    Attributes:
        owners: the request of each real row; None if the row yields nothing (an unfinished prompt).
        outputs: tokens, finished, logprobs [steps, rows]; top_ids, top_logprobs [steps, rows, 20]. A score
            program also has prompt_logprobs [length], prompt_top_ids and prompt_top_logprobs [length, 20].
        chunks: one per row of a prefill or score dispatch; empty for decode.
    """

    owners: tuple[Request | None, ...]
    outputs: Arrays
    chunks: tuple[Chunk, ...] = ()

    def read(self) -> list[tuple[Request, TokenEvent]]:
        """Wait for the device and return each owner's event."""
        tokens, finished = (np.asarray(array) for array in self.outputs[:2])
        wants_logprobs = any(
            owner is not None and owner.params.top_logprobs is not None for owner in self.owners
        )
        details = [np.asarray(array) for array in self.outputs[2:5]] if wants_logprobs else []
        events = []
        for row, owner in enumerate(self.owners):
            if owner is None:
                continue
            steps = [step for step in range(tokens.shape[0]) if tokens[step, row] >= 0]
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
            if steps or self.chunks:
                events.append((owner, event))
        return events

    def _with_prompt(self, event: TokenEvent, chunk: Chunk) -> TokenEvent:
        """Add the prompt logprobs and cached tokens of a chunk; end a request that generates nothing."""
        scored: tuple[TokenLogprobs, ...] = ()
        # A preempted request has had its prompt scored, and goes on with a prefill program.
        details = [np.asarray(array) for array in self.outputs[5:]]
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


def _logprobs(details: Sequence[np.ndarray[Any, Any]], place: tuple[int, ...], num_top: int) -> TokenLogprobs:
    """Return one token's logprobs; `place` is its index in all but the last axis of the alternatives."""
    own, top_ids, top_values = details
    return TokenLogprobs(
        float(own[place]),
        tuple(top_ids[place][:num_top].tolist()),
        tuple(top_values[place][:num_top].tolist()),
    )


class Runner:
    """Holds weights, KV cache, state and programs of one model.

    Args:
        programs: every compiled program by shape.
        inputs: the specs of each program's inputs.
        rows_are_slots: row i of a decode program is slot i (see `Manifest.rows_are_slots`).
        open_masks: by number of rows, the grammar mask that allows everything, already on the devices, so
            that a dispatch without a grammar transfers no mask.
        dispatch_lock: shared by all runners on the same devices and held only while enqueuing. Two models
            that enqueue collectives in different orders on the same devices would deadlock.
        image_weights, image_features: for a model with images, the encoder's weights and the feature array
            [feature rows, hidden]; otherwise empty.
    """

    def __init__(
        self,
        *,
        weights: Arrays,
        kv: Arrays,
        state: Arrays,
        programs: Mapping[ProgramShape, Compiled],
        inputs: Mapping[ProgramShape, Sequence[ArraySpec]],
        num_slots: int,
        rows_are_slots: bool,
        open_masks: Mapping[int, jax.Array],
        dispatch_lock: threading.Lock,
        image_weights: Arrays = (),
        image_features: Arrays = (),
    ) -> None:
        self._weights = weights
        self._image_weights = image_weights
        self._image_features = image_features
        self._inputs = dict(inputs)
        self._kv = kv
        self._state = state
        self._programs = dict(programs)
        self._num_slots = num_slots
        self._rows_are_slots = rows_are_slots
        self._open_masks = dict(open_masks)
        self._dispatch_lock = dispatch_lock
        self._set_slot = next(shape for shape in programs if shape.kind == "set_slot")
        self._row_specs = {spec.name: spec for spec in inputs[self._set_slot]}
        self._rotates_by_axes = "rope_offset" in self._row_specs

    def warm_up(self) -> None:
        """Run the smallest program of each kind without any request, and wait for them.

        The first run in a process allocates memory that later runs reuse; no request should pay for that.
        """
        self._copy_page(None)
        if self._image_features:
            encoders = [shape for shape in self._programs if shape.kind == "encode_images"]
            self.encode(Encode(min(encoders, key=lambda shape: shape.rows), (), ()))
        for kind in ("prefill", "score", "embed"):
            if any(shape.kind == kind for shape in self._programs):
                self.prefill(Prefill(self._smallest(kind), ())).read()
        self.decode(Decode(self._smallest("decode"), (), (), (), step_limit=1)).read()

    def release(self) -> None:
        """Give the memory of all arrays and programs back at once; nothing can be enqueued afterwards."""
        for array in (*self._weights, *self._image_weights, *self._image_features, *self._kv, *self._state):
            # Donated ones are deleted already.
            if not array.is_deleted():
                array.delete()
        self._programs.clear()

    def set_slot(self, admission: Admission) -> None:
        """Enqueue writing the row of an admitted request."""
        values = _row_values(admission, self._row_specs)
        with self._dispatch_lock:
            _, self._state, _ = self._programs[self._set_slot]((), (), self._state, values)

    def encode(self, work: Encode) -> None:
        """Enqueue the encoder for some images; work enqueued later may read their features."""
        inputs = self._encoder_inputs(work)
        with self._dispatch_lock:
            self._image_features, _, _ = self._programs[work.shape](
                self._image_weights, self._image_features, (), inputs
            )

    def prefill(self, work: Prefill) -> Dispatch | PooledDispatch:
        """Enqueue one chunk of each of some prompts, after the copies that they build on."""
        if work.shape.kind == "embed":
            return self._embed(work)
        for chunk in work.chunks:
            if chunk.copy is not None:
                self._copy_page(chunk.copy)
        rows, length = work.shape.rows, work.shape.length
        slots = np.full(rows, self._num_slots, np.int32)
        tokens = np.zeros((rows, length), np.int32)
        starts, lengths = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        samples = np.zeros(rows, np.bool_)
        targets = np.zeros((rows, length), np.int32)
        for row, chunk in enumerate(work.chunks):
            slots[row], starts[row], lengths[row] = chunk.slot, chunk.start, chunk.length
            tokens[row, : chunk.length] = chunk.tokens
            samples[row] = chunk.samples
            following = chunk.tokens[1:] + (() if chunk.next_token is None else (chunk.next_token,))
            targets[row, : len(following)] = following
        owners = tuple(
            chunk.request if chunk.is_final or work.shape.kind == "score" else None for chunk in work.chunks
        )
        mask = self._grammar_mask(rows, owners)
        tables = self._prompt_page_tables(work)
        inputs: tuple[Any, ...] = (slots, tables, mask, tokens, starts, lengths, samples)
        if work.shape.kind == "score":
            inputs += (targets,)
        elif self._image_features:
            inputs += (*self._image_features, _feature_index(work))
            if self._rotates_by_axes:
                inputs += (_rope_positions(work),)
        return self._dispatch(work.shape, owners, inputs, work.chunks)

    def decode(self, work: Decode) -> Dispatch:
        """Enqueue some decode steps."""
        if self._rows_are_slots:
            by_slot = dict(zip(work.slots, work.owners, strict=True))
            owners = tuple(by_slot.get(slot) for slot in range(self._num_slots))
        else:
            owners = work.owners
        slots = np.full(work.shape.rows, self._num_slots, np.int32)
        slots[: len(work.slots)] = work.slots
        mask = self._grammar_mask(work.shape.rows, owners)
        tables = self._empty_page_tables(work.shape)
        for row, (slot, pages) in enumerate(zip(work.slots, work.pages, strict=True)):
            # Where rows are slots, those of a dp shard are in its part of the tables.
            shard, place = divmod(slot, tables.shape[2]) if self._rows_are_slots else (0, row)
            _fill(tables, shard, place, pages)
        return self._dispatch(work.shape, owners, (slots, tables, mask, np.int32(work.step_limit)))

    def _embed(self, work: Prefill) -> PooledDispatch:
        """Enqueue one chunk of each of some prompts whose hidden states are pooled."""
        inputs = (self._prompt_page_tables(work), *embed_inputs(work.chunks, work.shape))
        with self._dispatch_lock:
            self._kv, _, (pooled,) = self._programs[work.shape](self._weights, self._kv, (), inputs)
        pooled.copy_to_host_async()
        return PooledDispatch(work.chunks, pooled)

    def _encoder_inputs(self, work: Encode) -> tuple[Any, ...]:
        """Return the encoder's inputs in program order, padded where images do not fill them."""
        specs = {spec.name: spec for spec in self._inputs[work.shape]}
        # Padding is written past the last row, so it is dropped.
        padding = {"feature_rows": self._image_features[0].shape[0]}
        inputs = {name: np.full(spec.shape, padding.get(name, 0), spec.dtype) for name, spec in specs.items()}
        for place, (image, own) in enumerate(zip(work.images, work.rows, strict=True)):
            inputs["pixels"][place, : len(image.pixels)] = image.pixels
            inputs["feature_rows"][place, : len(own)] = own
            if "grids" in inputs:
                inputs["grids"][place] = image.token_grid
        return tuple(inputs.values())

    def _grammar_mask(self, rows: int, owners: Sequence[Request | None]) -> Any:
        """Return uint32 [rows, words]: the next-token mask of each constrained owner; all bits otherwise."""
        open_mask = self._open_masks[rows]
        masks = {i: o.grammar.mask for i, o in enumerate(owners) if o is not None and o.grammar is not None}
        if not masks:
            return open_mask
        mask = np.full(open_mask.shape, ALL_ALLOWED, np.uint32)
        for row, allowed in masks.items():
            mask[row] = np.frombuffer(allowed, "<u4")
        return mask

    def _prompt_page_tables(self, work: Prefill) -> np.ndarray[Any, Any]:
        """Return int32 [shards, groups, rows, pages of a row]; a row has pages in its own shard only."""
        tables = self._empty_page_tables(work.shape)
        for row, chunk in enumerate(work.chunks):
            _fill(tables, chunk.shard, row, chunk.pages)
        return tables

    def _empty_page_tables(self, shape: ProgramShape) -> np.ndarray[Any, Any]:
        (spec,) = (spec for spec in self._inputs[shape] if spec.name == "page_tables")
        return np.full(spec.shape, NO_PAGE, np.int32)

    def _copy_page(self, copy: PageCopy | None) -> None:
        """Enqueue copying a page of every group; None copies nothing."""
        sources, targets = (np.full(spec.shape, NO_PAGE, np.int32) for spec in self._inputs[_COPY_PAGE])
        if copy is not None:
            sources[copy.shard], targets[copy.shard] = copy.sources, copy.targets
        with self._dispatch_lock:
            self._kv, _, _ = self._programs[_COPY_PAGE]((), self._kv, (), (sources, targets))

    def _smallest(self, kind: ProgramKind) -> ProgramShape:
        shapes = (shape for shape in self._programs if shape.kind == kind)
        return min(shapes, key=lambda shape: shape.rows * shape.length)

    def _dispatch(
        self,
        shape: ProgramShape,
        owners: tuple[Request | None, ...],
        inputs: tuple[Any, ...],
        chunks: tuple[Chunk, ...] = (),
    ) -> Dispatch:
        with self._dispatch_lock:
            self._kv, self._state, outputs = self._programs[shape](
                self._weights, self._kv, self._state, inputs
            )
        for output in (*outputs[:2], *outputs[5:]):
            output.copy_to_host_async()
        return Dispatch(owners, outputs, chunks)


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


def _row_values(admission: Admission, specs: Mapping[str, ArraySpec]) -> tuple[Any, ...]:
    """Return one request as the inputs of set_slot, in program order."""
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
        "temperature": np.float32(params.temperature),
        "top_k": np.int32(params.top_k),
        "top_p": np.float32(params.top_p),
        "min_p": np.float32(params.min_p),
        "repetition_penalty": np.float32(params.repetition_penalty),
        "presence_penalty": np.float32(params.presence_penalty),
        "frequency_penalty": np.float32(params.frequency_penalty),
        # With a grammar its masks enforce this: the device would forbid the end of a complete answer.
        "min_tokens": np.int32(params.min_tokens if request.grammar is None else 0),
        "wants_logprobs": np.bool_(params.top_logprobs is not None),
        "stop_ids": stop_ids,
        "logit_bias_ids": bias_ids,
        "logit_bias_values": bias_values,
        "prompt_mask": _bits(request.prompt_ids, specs["prompt_mask"].shape[0]),
        "rope_offset": np.int32(rope_offset(request.images)),
    }
    return tuple(values[name] for name in specs)
