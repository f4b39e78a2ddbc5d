"""The programs of a bundle as pure functions: set_slot, prefill, decode.

    (weights, kv, state, inputs) -> (kv, state, outputs)

Every argument is a tuple of arrays in the manifest's order. State names and shapes are those of `state.py`;
sampling is `sampler.py`; the model is whatever `EasyDeLModel` offers. Nothing here knows files or exports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from vinfer.build.kv_cache import Rows
from vinfer.build.sampler import Row, keep_allowed, process_logits, sample, top_logprobs
from vinfer.build.state import set_slot_inputs, state_fields
from vinfer.bundle import MAX_TOP_LOGPROBS, ArraySpec, ProgramShape, num_mask_words

Arrays = tuple[jax.Array, ...]
Program = Callable[[Arrays, Arrays, Arrays, Arrays], tuple[Arrays, Arrays, Arrays]]

NOT_FINISHED, FINISHED_STOP, FINISHED_LENGTH = 0, 1, 2
NO_TOKEN = -1


class Model(Protocol):
    """What the programs need of a model."""

    max_model_len: int
    vocab_size: int

    def forward(
        self, weights: Arrays, kv: Arrays, tokens: jax.Array, rows: Rows
    ) -> tuple[Arrays, jax.Array]: ...

    def logits(self, weights: Arrays, hidden: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Programs:
    """Makes the function of each program shape.

    Attributes:
        num_tokens: ids from there on are never sampled (padded vocabularies).
        rows_are_slots: decode dispatches run all slots, row i being slot i, and read the cache in place: what
            is split over dp must not move. Otherwise rows are gathered, which is a little faster too.
    """

    model: Model
    num_slots: int
    num_tokens: int
    rows_are_slots: bool

    def function(self, shape: ProgramShape) -> Program:
        """Return the pure function of a shape."""
        if shape.kind == "set_slot":
            return self._set_slot
        if shape.kind == "prefill":
            return lambda weights, kv, state, inputs: self._prefill(shape, weights, kv, state, inputs)
        return lambda weights, kv, state, inputs: self._decode(shape, weights, kv, state, inputs)

    def inputs(self, shape: ProgramShape) -> tuple[ArraySpec, ...]:
        """Return the specs of the `inputs` tuple."""
        if shape.kind == "set_slot":
            return set_slot_inputs(self.model.vocab_size)
        rows = ArraySpec(name="slots", shape=(shape.rows,), dtype="int32")
        num_words = num_mask_words(self.model.vocab_size)
        mask = ArraySpec(name="grammar_mask", shape=(shape.rows, num_words), dtype="uint32")
        if shape.kind == "decode":
            return rows, mask, ArraySpec(name="step_limit", shape=(), dtype="int32")
        return (
            rows,
            mask,
            ArraySpec(name="tokens", shape=(shape.rows, shape.length), dtype="int32"),
            ArraySpec(name="starts", shape=(shape.rows,), dtype="int32"),
            ArraySpec(name="lengths", shape=(shape.rows,), dtype="int32"),
            ArraySpec(name="is_final", shape=(shape.rows,), dtype="bool"),
        )

    def outputs(self, shape: ProgramShape) -> tuple[ArraySpec, ...]:
        """Return the specs of the `outputs` tuple."""
        if shape.kind == "set_slot":
            return ()
        grid = (shape.length if shape.kind == "decode" else 1, shape.rows)
        wide = (*grid, MAX_TOP_LOGPROBS)
        return (
            ArraySpec(name="tokens", shape=grid, dtype="int32"),
            ArraySpec(name="finished", shape=grid, dtype="int32"),
            ArraySpec(name="logprobs", shape=grid, dtype="float32"),
            ArraySpec(name="top_ids", shape=wide, dtype="int32"),
            ArraySpec(name="top_logprobs", shape=wide, dtype="float32"),
        )

    def _set_slot(
        self, weights: Arrays, kv: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Write one request's row; the slot stays idle until its prompt is prefilled."""
        slot, *values = inputs
        of_request = iter(values)
        rows = []
        for field, array in zip(state_fields(self.model.vocab_size), state, strict=True):
            row = next(of_request) if field.is_request else jnp.full(field.shape, field.initial, array.dtype)
            rows.append(array.at[slot].set(row))
        return kv, tuple(rows), ()

    def _prefill(
        self, shape: ProgramShape, weights: Arrays, kv: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Write one chunk of each prompt; sample a first token where a prompt ends.

        Inputs: slots int32 [rows] (num_slots where the row is padding), grammar_mask uint32 [rows, words]
        (see `keep_allowed`), tokens int32 [rows, length], starts int32 [rows], lengths int32 [rows] (tokens
        of the chunk), is_final bool [rows].
        """
        slots, grammar_mask, tokens, starts, lengths, is_final = inputs
        offsets = jnp.arange(shape.length, dtype=jnp.int32)
        positions = jnp.where(
            offsets[None, :] < lengths[:, None], starts[:, None] + offsets, self.model.max_model_len
        )
        rows = Rows(slots=slots, positions=positions, kv_length=shape.kv_length)
        kv, hidden = self.model.forward(weights, kv, tokens, rows)
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
        row = self._gather(state, slots)
        row["active"] = is_final
        row["position"] = starts + lengths
        row, outputs = self._sample_step(weights, hidden, row, grammar_mask)
        return kv, self._scatter(state, slots, row), tuple(output[None] for output in outputs)

    def _decode(
        self, shape: ProgramShape, weights: Arrays, kv: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Run up to step_limit steps for some slots; end early when none of them is active.

        Inputs: slots int32 [rows] (num_slots where the row is padding), grammar_mask uint32 [rows, words]
        (see `keep_allowed`; it is that of every step, so a row with a grammar asks for a step_limit of 1),
        step_limit int32. Where rows are slots, `slots` only names who takes part.
        """
        slots, grammar_mask, step_limit = inputs
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
                slots=None if self.rows_are_slots else slots, positions=positions, kv_length=shape.kv_length
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
        # A slot that sat this dispatch out keeps its activity.
        row["active"] = jnp.where(takes_part, row["active"], was_active)
        state = self._ordered(row) if self.rows_are_slots else self._scatter(state, slots, row)
        return kv, state, outputs

    def _sample_step(
        self, weights: Arrays, hidden: jax.Array, row: Row, grammar_mask: jax.Array
    ) -> tuple[Row, Arrays]:
        """Sample the next token of each active row and account for it.

        Args:
            hidden: [rows, hidden], of the last token of each row.
            grammar_mask: uint32 [rows, words].
        """
        active = row["active"]
        raw = self.model.logits(weights, hidden)
        processed = process_logits(raw, row, num_tokens=self.num_tokens)
        token = sample(keep_allowed(processed, grammar_mask), row)
        logprob, top_ids, top_values = top_logprobs(raw, token, row["wants_logprobs"] & active)
        is_stop = jnp.any(row["stop_ids"] == token[:, None], axis=-1)
        remaining = row["remaining"] - active
        finished = jnp.where(is_stop, FINISHED_STOP, jnp.where(remaining <= 0, FINISHED_LENGTH, NOT_FINISHED))
        finished = jnp.where(active, finished, NOT_FINISHED).astype(jnp.int32)
        lines = jnp.arange(token.shape[0])
        row = {
            **row,
            "token": jnp.where(active, token, row["token"]),
            "generated": row["generated"] + active,
            "remaining": remaining,
            "active": active & (finished == NOT_FINISHED),
            "output_counts": row["output_counts"].at[lines, token].add(active.astype(jnp.int32)),
        }
        return row, (jnp.where(active, token, NO_TOKEN), finished, logprob, top_ids, top_values)

    def _named(self, state: Arrays) -> Row:
        fields = state_fields(self.model.vocab_size)
        return {field.name: array for field, array in zip(fields, state, strict=True)}

    def _ordered(self, row: Row) -> Arrays:
        return tuple(row[field.name] for field in state_fields(self.model.vocab_size))

    def _gather(self, state: Arrays, slots: jax.Array) -> Row:
        return {name: array.at[slots].get(mode="clip") for name, array in self._named(state).items()}

    def _scatter(self, state: Arrays, slots: jax.Array, row: Row) -> Arrays:
        fields = state_fields(self.model.vocab_size)
        return tuple(
            array.at[slots].set(row[field.name], mode="drop") if field.changes else array
            for field, array in zip(fields, state, strict=True)
        )
