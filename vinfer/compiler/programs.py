"""A bundle's programs as pure functions, one for each kind of `ProgramShape`.

    (weights, kv, state, inputs) -> (kv, state, outputs)

Every argument is a tuple of arrays in the manifest's order. State names and shapes are those of `state.py`;
sampling is `sampler.py`; the model has the interface of `model.Model`. Nothing here knows files or exports.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from vinfer.bundle.programs import NO_TOKEN, Finish, ProgramShape
from vinfer.compiler.kv_cache import Rows
from vinfer.compiler.model import Arrays
from vinfer.compiler.pooling import pooled_sum
from vinfer.compiler.program_signatures import NUM_ROPE_AXES, ProgramSignatures
from vinfer.compiler.sampler import Row, next_tokens, top_logprobs
from vinfer.compiler.score import prompt_logprobs
from vinfer.compiler.vision.features import ImageFeatures, store
from vinfer.errors import BuildError

Program = Callable[[Arrays, Arrays, Arrays, Arrays], tuple[Arrays, Arrays, Arrays]]


class Programs(ProgramSignatures):
    """Builds the function of each program shape."""

    def function(self, shape: ProgramShape) -> Program:
        """Return the pure function of a shape.

        Raises:
            BuildError: layers keep something per slot that such a program cannot keep right. Embed programs
                have no slots, and what a wrong draft did to a recurrent state cannot be undone.
        """
        if self.keeps_slot_arrays and shape.kind in ("embed", "verify"):
            raise BuildError(
                f"{shape.name} is not possible for a model that keeps a state per slot: "
                "remove embeddings and speculation"
            )
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
            "verify": self._verify,
        }[shape.kind]
        return lambda weights, kv, state, inputs: of_shape(shape, weights, kv, state, inputs)

    def _set_slot(
        self, weights: Arrays, kv: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Write one request's row; the slot stays idle until its prompt is prefilled."""
        slot, *values = inputs
        of_request = iter(values)
        rows = []
        for field, array in zip(self.fields, state, strict=True):
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
            num_own = 3 if self.rotates_by_axes else 2
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
        kv, hidden = self._forward_chunks(
            shape, weights, kv, page_tables, tokens, starts, lengths, images, slots=slots
        )
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        row = self._gather(state, slots)
        row["active"] = samples
        row["position"] = starts + lengths
        last_hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
        row, outputs = self._sample_step(self.model.logits(weights, last_hidden), row, grammar_mask)
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
        rope_positions: jax.Array | None = None,
        slots: jax.Array | None = None,
    ) -> tuple[Arrays, jax.Array]:
        """Write chunks, as in `_run_chunks`; return the new kv and hidden [rows, length, hidden].

        Args:
            slots: see `Rows.slots`.
            rope_positions: see `Rows.rope_positions`; those of `images`, if there are images.
        """
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
            rope_positions=rope_positions if images is None else images.rope_positions,
            spans=spans,
            slots=slots,
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
                rope_positions=self._answer_rope_positions(row, 1),
                slots=jnp.arange(self.num_slots, dtype=jnp.int32) if self.rows_are_slots else slots,
            )
            kv, hidden = self.model.forward(weights, kv, row["token"][:, None], rows)
            row = {**row, "position": row["position"] + row["active"]}
            row, new = self._sample_step(self.model.logits(weights, hidden[:, 0]), row, grammar_mask)
            return step + 1, kv, row, _with_step(outputs, new, step)

        start = (jnp.int32(0), kv, row, self._no_steps(shape))
        _, kv, row, outputs = lax.while_loop(goes_on, step_once, start)
        # A slot that did not take part in this dispatch stays active or inactive.
        row["active"] = jnp.where(takes_part, row["active"], was_active)
        state = self._ordered(row) if self.rows_are_slots else self._scatter(state, slots, row)
        return kv, state, outputs

    def _verify(
        self, shape: ProgramShape, weights: Arrays, kv: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Run the newest token and the draft of each row in one pass; sample as far as the draft is right.

        A row samples a token after its newest one, and after each token of the draft that is what the row
        has just sampled. So it samples what decode samples, by the same state. What it wrote of a wrong draft
        lies behind its position, where nothing sees it before the next dispatches write over it.

        Inputs: slots and page_tables as in `_decode`, grammar_mask uint32 [rows, length, words] (for the
        token after the newest one, and after each token of the draft), drafts int32 [rows, length - 1],
        num_drafts int32 [rows]. Rows are gathered even if decode's rows are slots.
        """
        slots, page_tables, grammar_mask, drafts, num_drafts = inputs
        takes_part = slots < self.num_slots
        row = self._gather(state, slots)
        was_active = row["active"]
        row["active"] = was_active & takes_part
        kv, hidden = self._forward_chunks(
            shape,
            weights,
            kv,
            page_tables,
            jnp.concatenate([row["token"][:, None], drafts], axis=1),
            row["position"],
            jnp.where(row["active"], num_drafts + 1, 0),
            rope_positions=self._answer_rope_positions(row, shape.length),
        )
        # All at once, because the head is read once then.
        logits = self.model.logits(weights, hidden.reshape(-1, hidden.shape[-1]))
        logits = logits.reshape(*hidden.shape[:2], -1)
        # What each step is to sample for the next one to follow; nothing is after the last.
        expected = jnp.pad(drafts, ((0, 0), (0, 1)))

        def goes_on(carry: tuple[jax.Array, jax.Array, Row, Arrays]) -> jax.Array:
            step, _, row, _ = carry
            return (step < shape.length) & jnp.any(row["active"])

        def step_once(
            carry: tuple[jax.Array, jax.Array, Row, Arrays],
        ) -> tuple[jax.Array, jax.Array, Row, Arrays]:
            step, stays_active, row, outputs = carry
            samples = row["active"]
            row = {**row, "position": row["position"] + samples}
            row, new = self._sample_step(logits[:, step], row, grammar_mask[:, step])
            stays_active = jnp.where(samples, row["active"], stays_active)
            is_right = (step < num_drafts) & (row["token"] == expected[:, step])
            row["active"] = row["active"] & is_right
            return step + 1, stays_active, row, _with_step(outputs, new, step)

        start = (jnp.int32(0), was_active, row, self._no_steps(shape))
        _, stays_active, row, outputs = lax.while_loop(goes_on, step_once, start)
        row["active"] = stays_active
        return kv, self._scatter(state, slots, row), outputs

    def _no_steps(self, shape: ProgramShape) -> Arrays:
        """Return the outputs of steps that no row has taken."""
        tokens, *others = (jnp.zeros(spec.shape, spec.dtype) for spec in self.outputs(shape))
        return (jnp.full_like(tokens, NO_TOKEN), *others)

    def _sample_step(self, raw: jax.Array, row: Row, grammar_mask: jax.Array) -> tuple[Row, Arrays]:
        """Sample the next token of each active row and update the row.

        Args:
            raw: float32 [rows, vocab], the model's logits after the last token of each row.
            grammar_mask: uint32 [rows, words].
        """
        active = row["active"]
        token = next_tokens(raw, row, grammar_mask, num_tokens=self.num_tokens)
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

    def _answer_rope_positions(self, row: Row, length: int) -> jax.Array | None:
        """Return int32 [rows, 3, length] if tokens rotate by axes: those of text are equal."""
        if not self.rotates_by_axes:
            return None
        places = row["position"] + row["rope_offset"]
        places = places[:, None] + jnp.arange(length, dtype=jnp.int32)
        return jnp.broadcast_to(places[:, None], (places.shape[0], NUM_ROPE_AXES, length))

    def _named(self, state: Arrays) -> Row:
        return {field.name: array for field, array in zip(self.fields, state, strict=True)}

    def _ordered(self, row: Row) -> Arrays:
        return tuple(row[field.name] for field in self.fields)

    def _gather(self, state: Arrays, slots: jax.Array) -> Row:
        return {name: array.at[slots].get(mode="clip") for name, array in self._named(state).items()}

    def _scatter(self, state: Arrays, slots: jax.Array, row: Row) -> Arrays:
        return tuple(
            array.at[slots].set(row[field.name], mode="drop") if field.changes else array
            for field, array in zip(self.fields, state, strict=True)
        )


def _with_step(outputs: Arrays, new: Arrays, step: jax.Array) -> Arrays:
    """Return the outputs of all steps, [steps, ...] each, with those of one step."""
    return tuple(
        lax.dynamic_update_index_in_dim(whole, part, step, 0)
        for whole, part in zip(outputs, new, strict=True)
    )
