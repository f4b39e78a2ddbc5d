"""The inputs and outputs of every program, by its shape: their names, shapes and types."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vinfer.bundle.manifest import MAX_TOP_LOGPROBS, ArraySpec, num_mask_words
from vinfer.bundle.programs import ProgramShape
from vinfer.compiler.model import Images, Model
from vinfer.compiler.state import Field, set_slot_inputs, state_fields

NUM_ROPE_AXES = 3
"""Time, row and column."""


@dataclasses.dataclass(frozen=True)
class ProgramSignatures:
    """Describes the inputs and outputs of each program shape.

    Attributes:
        num_tokens: ids from this value on are never sampled (padded vocabularies).
        rows_are_slots: decode dispatches run all slots, with row i being slot i, because slots that are split
            over dp must not move. Otherwise the state's rows are gathered.
        page_size: positions of a page.
        kv_groups: the group of each array of the KV cache that has pages.
        num_shards: dp; each shard has its own pages and its own slots.
        images: None for a model without images.
        keeps_slot_arrays: see `Manifest.keeps_slot_arrays`.
    """

    model: Model
    num_slots: int
    num_tokens: int
    rows_are_slots: bool
    page_size: int
    kv_groups: Sequence[int]
    num_shards: int = 1
    images: Images | None = None
    keeps_slot_arrays: bool = False

    def inputs(self, shape: ProgramShape) -> tuple[ArraySpec, ...]:
        """Return the specs of the `inputs` tuple."""
        if shape.kind == "set_slot":
            return set_slot_inputs(
                self.model.vocab_size, self.model.max_model_len, has_rope_offset=self.rotates_by_axes
            )
        if shape.kind == "copy_page":
            by_group = (self.num_shards, self.num_groups)
            return tuple(
                ArraySpec(name=name, shape=by_group, dtype="int32", axes=("dp", None))
                for name in ("sources", "targets")
            )
        if shape.kind == "encode_images":
            assert self.images is not None
            grid = (shape.rows, self.images.encoder.max_features(shape))
            rows = ArraySpec(name="feature_rows", shape=grid, dtype="int32")
            return (*self.images.encoder.inputs(shape), rows)
        rows = ArraySpec(name="slots", shape=(shape.rows,), dtype="int32")
        tables = self._page_tables(shape)
        num_words = num_mask_words(self.model.vocab_size)
        steps = (shape.length,) if shape.kind == "verify" else ()
        mask = ArraySpec(name="grammar_mask", shape=(shape.rows, *steps, num_words), dtype="uint32")
        if shape.kind == "decode":
            return rows, tables, mask, ArraySpec(name="step_limit", shape=(), dtype="int32")
        if shape.kind == "verify":
            drafts = ArraySpec(name="drafts", shape=(shape.rows, shape.length - 1), dtype="int32")
            return (
                rows,
                tables,
                mask,
                drafts,
                ArraySpec(name="num_drafts", shape=(shape.rows,), dtype="int32"),
            )
        grid = (shape.rows, shape.length)
        if shape.kind == "embed":
            return (
                tables,
                ArraySpec(name="tokens", shape=grid, dtype="int32"),
                *(
                    ArraySpec(name=name, shape=(shape.rows,), dtype="int32")
                    for name in ("starts", "lengths", "pooled_from")
                ),
            )
        of_chunks = (
            rows,
            tables,
            mask,
            ArraySpec(name="tokens", shape=grid, dtype="int32"),
            ArraySpec(name="starts", shape=(shape.rows,), dtype="int32"),
            ArraySpec(name="lengths", shape=(shape.rows,), dtype="int32"),
            ArraySpec(name="samples", shape=(shape.rows,), dtype="bool"),
        )
        if shape.kind == "score":
            return (*of_chunks, ArraySpec(name="targets", shape=grid, dtype="int32"))
        if self.images is None:
            return of_chunks
        index = ArraySpec(name="feature_index", shape=grid, dtype="int32")
        if not self.rotates_by_axes:
            return (*of_chunks, self.images.pool, index)
        axes = (shape.rows, NUM_ROPE_AXES, shape.length)
        positions = ArraySpec(name="rope_positions", shape=axes, dtype="int32")
        return (*of_chunks, self.images.pool, index, positions)

    def outputs(self, shape: ProgramShape) -> tuple[ArraySpec, ...]:
        """Return the specs of the `outputs` tuple."""
        if not shape.uses_weights or shape.kind == "encode_images":
            return ()
        if shape.kind == "embed":
            size = (shape.rows, self.model.hidden_size)
            return (ArraySpec(name="pooled", shape=size, dtype="float32"),)
        grid = (shape.length if shape.kind in ("decode", "verify") else 1, shape.rows)
        wide: tuple[int, ...] = (*grid, MAX_TOP_LOGPROBS)
        of_steps = (
            ArraySpec(name="tokens", shape=grid, dtype="int32"),
            ArraySpec(name="finished", shape=grid, dtype="int32"),
            ArraySpec(name="logprobs", shape=grid, dtype="float32"),
            ArraySpec(name="top_ids", shape=wide, dtype="int32"),
            ArraySpec(name="top_logprobs", shape=wide, dtype="float32"),
        )
        if shape.kind != "score":
            return of_steps
        wide = (shape.length, MAX_TOP_LOGPROBS)
        return (
            *of_steps,
            ArraySpec(name="prompt_logprobs", shape=(shape.length,), dtype="float32"),
            ArraySpec(name="prompt_top_ids", shape=wide, dtype="int32"),
            ArraySpec(name="prompt_top_logprobs", shape=wide, dtype="float32"),
        )

    def _page_tables(self, shape: ProgramShape) -> ArraySpec:
        """Describe the page tables of a dispatch: see `Rows.page_tables`."""
        is_split = shape.kind == "decode" and self.rows_are_slots
        rows = shape.rows // self.num_shards if is_split else shape.rows
        num_pages = -(-self.model.max_model_len // self.page_size)
        size = (self.num_shards, self.num_groups, rows, num_pages)
        return ArraySpec(name="page_tables", shape=size, dtype="int32", axes=("dp", None, None, None))

    @property
    def num_groups(self) -> int:
        """Groups of layers with pages of their own."""
        return max(self.kv_groups) + 1

    @property
    def rotates_by_axes(self) -> bool:
        """Whether tokens rotate by time, row and column."""
        return self.images is not None and self.images.rotates_by_axes

    @property
    def fields(self) -> tuple[Field, ...]:
        """The arrays of the state."""
        return state_fields(
            self.model.vocab_size, self.model.max_model_len, has_rope_offset=self.rotates_by_axes
        )
