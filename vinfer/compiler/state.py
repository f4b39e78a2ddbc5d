"""The device-resident state of the slots: its arrays, and what one request writes into them.

It holds everything that decoding needs, so the host never sends a token back.
"""

from __future__ import annotations

import dataclasses

from vinfer.bundle.manifest import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, ArraySpec, StateSpec, num_mask_words
from vinfer.bundle.sampling import NUMBERS


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of the state: [num_slots, *shape]."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    initial: bool | int | float
    is_request: bool
    """Written by set_slot from the request; the others start at `initial`."""

    @property
    def changes(self) -> bool:
        """Whether sampling a token changes it."""
        return not self.is_request or self.name in ("generated", "output_counts", "remaining")


def state_fields(vocab_size: int, max_model_len: int, *, has_rope_offset: bool = False) -> tuple[Field, ...]:
    """List the arrays of the state.

    Two of them have the size of the vocabulary: how often each token is in the answer, and one bit for each
    token of the prompt.

    Args:
        max_model_len: no token is in an answer more often.
        has_rope_offset: tokens of an answer rotate by their position plus an offset, because the prompt's
            images take fewer positions than tokens (`vinfer.engine.rope_positions`).
    """

    def own(name: str, dtype: str, initial: bool | int | float, *shape: int) -> Field:
        return Field(name, shape, dtype, initial, is_request=False)

    def of_request(name: str, dtype: str, initial: bool | int | float, *shape: int) -> Field:
        return Field(name, shape, dtype, initial, is_request=True)

    offset = (of_request("rope_offset", "int32", 0),) if has_rope_offset else ()
    return (
        own("token", "int32", 0),
        own("position", "int32", 0),
        own("active", "bool", False),
        of_request("generated", "int32", 0),
        of_request("output_counts", _count_dtype(max_model_len), 0, vocab_size),
        of_request("remaining", "int32", 0),
        of_request("seed", "uint32", 0, 2),
        *(of_request(number.name, number.dtype, number.off) for number in NUMBERS),
        of_request("min_tokens", "int32", 0),
        of_request("wants_logprobs", "bool", False),
        of_request("stop_ids", "int32", -1, MAX_STOP_TOKEN_IDS),
        of_request("logit_bias_ids", "int32", -1, MAX_LOGIT_BIAS),
        of_request("logit_bias_values", "float32", 0.0, MAX_LOGIT_BIAS),
        of_request("prompt_mask", "uint32", 0, num_mask_words(vocab_size)),
        *offset,
    )


def _count_dtype(largest: int) -> str:
    """Return the smallest dtype in which counts up to `largest` are exact."""
    return "uint16" if largest < 2**16 else "int32"


def state_specs(
    vocab_size: int, max_model_len: int, num_slots: int, *, has_rope_offset: bool = False
) -> tuple[StateSpec, ...]:
    """Return the state's arrays as the manifest lists them: slots are split over dp."""
    return tuple(
        StateSpec(
            name=field.name,
            shape=(num_slots, *field.shape),
            dtype=field.dtype,
            axes=("dp", *(None for _ in field.shape)),
            initial=field.initial,
        )
        for field in state_fields(vocab_size, max_model_len, has_rope_offset=has_rope_offset)
    )


def set_slot_inputs(
    vocab_size: int, max_model_len: int, *, has_rope_offset: bool = False
) -> tuple[ArraySpec, ...]:
    """Return the inputs of set_slot: the slot, then one row of every request field."""
    rows = (
        ArraySpec(name=field.name, shape=field.shape, dtype=field.dtype)
        for field in state_fields(vocab_size, max_model_len, has_rope_offset=has_rope_offset)
        if field.is_request
    )
    return (ArraySpec(name="slot", shape=(), dtype="int32"), *rows)
