"""A bundle's programs as pure functions: set_slot, copy_page, encode_images, prefill, score, embed, decode.

    (weights, kv, state, inputs) -> (kv, state, outputs)

Every argument is a tuple of arrays in the manifest's order. State names and shapes are those of `state.py`;
sampling is `sampler.py`; the model has the interface of `model.Model`. Nothing here knows files or exports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from vinfer.bundle.manifest import MAX_TOP_LOGPROBS, ArraySpec, num_mask_words
from vinfer.bundle.programs import NO_TOKEN, Finish, ProgramShape
from vinfer.compiler.kv_cache import Rows
from vinfer.compiler.model import Arrays, Images, Model
from vinfer.compiler.sampler import Row, allowed_logits, sample, top_logprobs
from vinfer.compiler.score import prompt_logprobs
from vinfer.compiler.state import Field, set_slot_inputs, state_fields
from vinfer.compiler.vision.features import ImageFeatures, store

Program = Callable[[Arrays, Arrays, Arrays, Arrays], tuple[Arrays, Arrays, Arrays]]

NUM_ROPE_AXES = 3
"""Time, row and column."""


@dataclasses.dataclass(frozen=True)
class Programs:
    """Builds the function of each program shape.

    Attributes:
        num_tokens: ids from this value on are never sampled (padded vocabularies).
        rows_are_slots: decode dispatches run all slots, with row i being slot i, because slots that are split
            over dp must not move. Otherwise the state's rows are gathered.
        page_size: positions of a page.
        kv_groups: the group of each array of the KV cache.
        num_shards: dp; each shard has its own pages and its own slots.
        images: None for a model without images.
    """

    model: Model
    num_slots: int
    num_tokens: int
    rows_are_slots: bool
    page_size: int
    kv_groups: Sequence[int]
    num_shards: int = 1
    images: Images | None = None

    def function(self, shape: ProgramShape) -> Program:
        """Return the pure function of a shape."""
        if shape.kind == "set_slot":
            return self._set_slot
        if shape.kind == "copy_page":
            return self._copy_page
        if shape.kind == "encode_images":
            return self._encode_images
        of_shape = {
            "prefill": self._prefill,
            "score": self._score,
            "embed": self._embed,
            "decode": self._decode,
        }[shape.kind]
        return lambda weights, kv, state, inputs: of_shape(shape, weights, kv, state, inputs)

    def inputs(self, shape: ProgramShape) -> tuple[ArraySpec, ...]:
        """Return the specs of the `inputs` tuple."""
        if shape.kind == "set_slot":
            return set_slot_inputs(
                self.model.vocab_size, self.model.max_model_len, has_rope_offset=self._rotates_by_axes
            )
        if shape.kind == "copy_page":
            by_group = (self.num_shards, self._num_groups)
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
        mask = ArraySpec(name="grammar_mask", shape=(shape.rows, num_words), dtype="uint32")
        if shape.kind == "decode":
            return rows, tables, mask, ArraySpec(name="step_limit", shape=(), dtype="int32")
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
        if not self._rotates_by_axes:
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
        grid = (shape.length if shape.kind == "decode" else 1, shape.rows)
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

    def _set_slot(
        self, weights: Arrays, kv: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Write one request's row; the slot stays idle until its prompt is prefilled."""
        slot, *values = inputs
        of_request = iter(values)
        rows = []
        for field, array in zip(self._fields, state, strict=True):
            row = next(of_request) if field.is_request else jnp.full(field.shape, field.initial, array.dtype)
            rows.append(array.at[slot].set(row))
        return kv, tuple(rows), ()

    def _copy_page(
        self, weights: Arrays, kv: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Copy one page of every group.

        Inputs: sources, targets int32 [shards, groups]; NO_PAGE as a target copies nothing.
        """
        sources, targets = inputs
        copied = self.model.copy_pages(kv, sources, targets)
        return copied, state, ()

    def _prefill(
        self, shape: ProgramShape, weights: Arrays, kv: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Write one chunk of each prompt; sample a first token if the prompt ends.

        Inputs: those of `_run_chunks`. With images, followed by the pool [feature rows, hidden] and the index
        int32 [rows, length] of `ImageFeatures`. If tokens rotate by axes, then their rope_positions
        int32 [rows, 3, length].
        """
        images = None
        if self.images is not None:
            num_own = 3 if self._rotates_by_axes else 2
            images = ImageFeatures(*inputs[-num_own:])
            inputs = inputs[:-num_own]
        kv, state, outputs, _ = self._run_chunks(shape, weights, kv, state, inputs, images)
        return kv, state, outputs

    def _encode_images(
        self, weights: Arrays, features: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Write the features of some images into the pool, which is passed in place of the KV cache.

        Weights: only the encoder's. Inputs: those of `encode`, then feature_rows int32 [rows, max features],
        which point beyond the pool's end for padding and for features that an image does not have.
        """
        assert self.images is not None
        (pool,) = features
        *images, rows = inputs
        return (store(pool, self.images.encoder.encode(weights, *images), rows),), state, ()

    def _score(
        self, shape: ProgramShape, weights: Arrays, kv: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Prefill one chunk of one prompt, and also return the logprobs of its tokens.

        Inputs: those of prefill, then targets int32 [1, length]: the prompt token after each token of the
        chunk. Except in the last chunk, the last target is the first token of the next chunk.
        """
        *of_chunks, targets = inputs
        kv, state, outputs, hidden = self._run_chunks(shape, weights, kv, state, tuple(of_chunks))
        *_, lengths, _ = of_chunks
        scored = prompt_logprobs(
            lambda rows: self.model.logits(weights, rows), hidden[0], targets[0], lengths[0]
        )
        return kv, state, (*outputs, *scored)

    def _embed(
        self, shape: ProgramShape, weights: Arrays, kv: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Prefill one chunk of each prompt, and return the sum of its hidden states instead of tokens.

        Inputs: page_tables, tokens, starts and lengths as in `_run_chunks`, then pooled_from int32 [rows]:
            the first token of the chunk that counts. The state is neither read nor written.
        """
        page_tables, tokens, starts, lengths, pooled_from = inputs
        kv, hidden = self._forward_chunks(shape, weights, kv, page_tables, tokens, starts, lengths)
        return kv, state, (pooled_sum(hidden, pooled_from, lengths),)

    def _run_chunks(
        self,
        shape: ProgramShape,
        weights: Arrays,
        kv: Arrays,
        state: Arrays,
        inputs: Arrays,
        images: ImageFeatures | None = None,
    ) -> tuple[Arrays, Arrays, Arrays, jax.Array]:
        """Write chunks; also return the outputs of sampling and the hidden states [rows, length, hidden].

        Inputs: slots int32 [rows] (num_slots for a padded row), page_tables (see `Rows`), grammar_mask
        uint32 [rows, words] (see `keep_allowed`), tokens int32 [rows, length], starts int32 [rows], lengths
        int32 [rows] (tokens of the chunk), samples bool [rows] (whether the prompt ends here and needs a
        first token).
        """
        slots, page_tables, grammar_mask, tokens, starts, lengths, samples = inputs
        kv, hidden = self._forward_chunks(shape, weights, kv, page_tables, tokens, starts, lengths, images)
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        row = self._gather(state, slots)
        row["active"] = samples
        row["position"] = starts + lengths
        last_hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
        row, outputs = self._sample_step(weights, last_hidden, row, grammar_mask)
        return kv, self._scatter(state, slots, row), tuple(output[None] for output in outputs), hidden

    def _forward_chunks(
        self,
        shape: ProgramShape,
        weights: Arrays,
        kv: Arrays,
        page_tables: jax.Array,
        tokens: jax.Array,
        starts: jax.Array,
        lengths: jax.Array,
        images: ImageFeatures | None = None,
    ) -> tuple[Arrays, jax.Array]:
        """Write chunks, as in `_run_chunks`; return the new kv and hidden [rows, length, hidden]."""
        offsets = jnp.arange(shape.length, dtype=jnp.int32)
        positions = jnp.where(
            offsets[None, :] < lengths[:, None], starts[:, None] + offsets, self.model.max_model_len
        )
        spans = None
        if images is not None and self.images is not None and self.images.attends_both_ways:
            spans = images.spans(starts)
        rows = Rows(
            page_tables=page_tables,
            positions=positions,
            max_model_len=self.model.max_model_len,
            rope_positions=None if images is None else images.rope_positions,
            spans=spans,
        )
        return self.model.forward(weights, kv, tokens, rows, images)

    def _decode(
        self, shape: ProgramShape, weights: Arrays, kv: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Run up to step_limit steps for some slots; stop early when none of them is active.

        Inputs: slots int32 [rows] (num_slots for a padded row), page_tables (see `Rows`; they have pages for
        every step), grammar_mask uint32 [rows, words] (see `keep_allowed`; it applies to every step, so a row
        with a grammar needs a step_limit of 1), step_limit int32. If rows are slots, `slots` only says which
        slots take part.
        """
        slots, page_tables, grammar_mask, step_limit = inputs
        if self.rows_are_slots:
            takes_part = jnp.zeros(self.num_slots, jnp.bool_).at[slots].set(True, mode="drop")
            row = self._named(state)
        else:
            takes_part = slots < self.num_slots
            row = self._gather(state, slots)
        was_active = row["active"]
        row["active"] = was_active & takes_part
        outputs = tuple(jnp.zeros(spec.shape, spec.dtype) for spec in self.outputs(shape))
        outputs = (jnp.full_like(outputs[0], NO_TOKEN), *outputs[1:])

        def goes_on(carry: tuple[jax.Array, Arrays, Row, Arrays]) -> jax.Array:
            step, _, row, _ = carry
            return (step < step_limit) & jnp.any(row["active"])

        def step_once(
            carry: tuple[jax.Array, Arrays, Row, Arrays],
        ) -> tuple[jax.Array, Arrays, Row, Arrays]:
            step, kv, row, outputs = carry
            positions = jnp.where(row["active"], row["position"], self.model.max_model_len)[:, None]
            rows = Rows(
                page_tables=page_tables,
                positions=positions,
                max_model_len=self.model.max_model_len,
                is_split=self.rows_are_slots,
                rope_positions=self._answer_rope_positions(row) if self._rotates_by_axes else None,
            )
            kv, hidden = self.model.forward(weights, kv, row["token"][:, None], rows)
            row = {**row, "position": row["position"] + row["active"]}
            row, new = self._sample_step(weights, hidden[:, 0], row, grammar_mask)
            outputs = tuple(
                lax.dynamic_update_index_in_dim(whole, part, step, 0)
                for whole, part in zip(outputs, new, strict=True)
            )
            return step + 1, kv, row, outputs

        start = (jnp.int32(0), kv, row, outputs)
        _, kv, row, outputs = lax.while_loop(goes_on, step_once, start)
        # A slot that did not take part in this dispatch stays active or inactive.
        row["active"] = jnp.where(takes_part, row["active"], was_active)
        state = self._ordered(row) if self.rows_are_slots else self._scatter(state, slots, row)
        return kv, state, outputs

    def _sample_step(
        self, weights: Arrays, hidden: jax.Array, row: Row, grammar_mask: jax.Array
    ) -> tuple[Row, Arrays]:
        """Sample the next token of each active row and update the row.

        Args:
            hidden: [rows, hidden], hidden state of the last token of each row.
            grammar_mask: uint32 [rows, words].
        """
        active = row["active"]
        raw = self.model.logits(weights, hidden)
        token = sample(allowed_logits(raw, row, grammar_mask, num_tokens=self.num_tokens), row)
        logprob, top_ids, top_values = top_logprobs(raw, token, row["wants_logprobs"] & active)
        is_stop = jnp.any(row["stop_ids"] == token[:, None], axis=-1)
        remaining = row["remaining"] - active
        finished = jnp.where(is_stop, Finish.STOP, jnp.where(remaining <= 0, Finish.LENGTH, Finish.NOT))
        finished = jnp.where(active, finished, Finish.NOT).astype(jnp.int32)
        lines = jnp.arange(token.shape[0])
        row = {
            **row,
            "token": jnp.where(active, token, row["token"]),
            "generated": row["generated"] + active,
            "remaining": remaining,
            "active": active & (finished == Finish.NOT),
            "output_counts": row["output_counts"]
            .at[lines, token]
            .add(active.astype(row["output_counts"].dtype)),
        }
        return row, (jnp.where(active, token, NO_TOKEN), finished, logprob, top_ids, top_values)

    def _answer_rope_positions(self, row: Row) -> jax.Array:
        """Return int32 [rows, 3, 1]: answers are text, whose three positions are equal."""
        places = row["position"] + row["rope_offset"]
        return jnp.broadcast_to(places[:, None, None], (places.shape[0], NUM_ROPE_AXES, 1))

    def _page_tables(self, shape: ProgramShape) -> ArraySpec:
        """Describe the page tables of a dispatch: see `Rows.page_tables`."""
        is_split = shape.kind == "decode" and self.rows_are_slots
        rows = shape.rows // self.num_shards if is_split else shape.rows
        num_pages = -(-self.model.max_model_len // self.page_size)
        size = (self.num_shards, self._num_groups, rows, num_pages)
        return ArraySpec(name="page_tables", shape=size, dtype="int32", axes=("dp", None, None, None))

    @property
    def _num_groups(self) -> int:
        return max(self.kv_groups) + 1

    @property
    def _rotates_by_axes(self) -> bool:
        return self.images is not None and self.images.rotates_by_axes

    @property
    def _fields(self) -> tuple[Field, ...]:
        return state_fields(
            self.model.vocab_size, self.model.max_model_len, has_rope_offset=self._rotates_by_axes
        )

    def _named(self, state: Arrays) -> Row:
        return {field.name: array for field, array in zip(self._fields, state, strict=True)}

    def _ordered(self, row: Row) -> Arrays:
        return tuple(row[field.name] for field in self._fields)

    def _gather(self, state: Arrays, slots: jax.Array) -> Row:
        return {name: array.at[slots].get(mode="clip") for name, array in self._named(state).items()}

    def _scatter(self, state: Arrays, slots: jax.Array, row: Row) -> Arrays:
        return tuple(
            array.at[slots].set(row[field.name], mode="drop") if field.changes else array
            for field, array in zip(self._fields, state, strict=True)
        )


def pooled_sum(hidden: jax.Array, pooled_from: jax.Array, lengths: jax.Array) -> jax.Array:
    """Sum the hidden states of the pooled tokens: a chunk's part of an embedding.

    Mean and last-token pooling are both sums, over different tokens. So one program serves both, for
    prompts of any length: the host adds up the sums of the chunks.

    Args:
        hidden: [rows, length, hidden], after the final norm, padded.
        pooled_from: int32 [rows], the first pooled token.
        lengths: int32 [rows], tokens of the chunk; pooling ends there.

    Returns:
        float32 [rows, hidden]; zero if no token is pooled.
    """
    places = jnp.arange(hidden.shape[1], dtype=jnp.int32)
    counts = (places >= pooled_from[:, None]) & (places < lengths[:, None])
    # A product would let non-finite values of padding through.
    return jnp.sum(jnp.where(counts[:, :, None], hidden.astype(jnp.float32), 0.0), axis=1)
