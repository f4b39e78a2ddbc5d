"""End tokens and sampling defaults that a checkpoint states besides its weights.

Runs in the build half, on any thread. Knows no tokenizer: the tokenizer's end token id is an
argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from vinfer.bundle.sampling import NUMBERS
from vinfer.checkpoint.config_keys import ConfigKeys


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFacts:
    """Token ids and the sampling defaults of the checkpoint.

    Attributes:
        eos_token_ids: ascending; the union over all places that name one, because each place is
            incomplete in some published checkpoint.
        sampling: the numbers of `bundle.sampling` that it states, and `max_new_tokens`.
        notes: which ids are ignored, a line each.
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    sampling: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_generation_facts(
    generation_config: Mapping[str, object],
    model_config: Mapping[str, object],
    *,
    tokenizer_eos_id: int | None,
    vocab_size: int,
    where: str,
) -> GenerationFacts:
    """Merge generation_config.json over config.json; both may be empty.

    Raises:
        CheckpointError: an invalid token id, or a sampling value of the wrong type.
    """
    model_keys = ConfigKeys(model_config, f"{where}/config.json")
    keys = ConfigKeys(generation_config, f"{where}/generation_config.json")
    notes: list[str] = []
    eos = {
        id_
        for source in (keys, model_keys)
        for id_ in _within(_token_ids(source, "eos_token_id"), source, "eos_token_id", vocab_size, notes)
    }
    if tokenizer_eos_id is not None:
        eos.add(tokenizer_eos_id)
    return GenerationFacts(
        eos_token_ids=tuple(sorted(eos)),
        bos_token_id=_first(
            _within(_token_ids(source, "bos_token_id"), source, "bos_token_id", vocab_size, notes)
            for source in (keys, model_keys)
        ),
        pad_token_id=_first(
            _within(_token_ids(source, "pad_token_id"), source, "pad_token_id", vocab_size, notes)
            for source in (keys, model_keys)
        ),
        sampling=_sampling(keys),
        notes=tuple(dict.fromkeys(notes)),
    )


def _token_ids(keys: ConfigKeys, key: str) -> list[int]:
    """Read an id or a list of ids. -1 stands for "none" in old Llama checkpoints."""
    value = keys.values.get(key)
    ids: list[int] = []
    for id_ in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(id_, bool) or not isinstance(id_, int) or id_ < -1:
            raise keys.refusal(key, "must be a token id, or a list of them")
        if id_ >= 0:
            ids.append(id_)
    return ids


def _within(ids: list[int], keys: ConfigKeys, key: str, vocab_size: int, notes: list[str]) -> list[int]:
    """Return the ids that the model has; the others can never be generated.

    Raises:
        CheckpointError: it has none of them, and padding is not all that they are for.
    """
    known = [id_ for id_ in ids if id_ < vocab_size]
    if len(known) == len(ids):
        return ids
    if not known and key != "pad_token_id":
        raise keys.refusal(key, f"must be a token id below vocab_size = {vocab_size}, or a list of them")
    unknown = ", ".join(str(id_) for id_ in ids if id_ >= vocab_size)
    notes.append(f"{keys.where}: {key} {unknown} is ignored: the model's vocab_size is {vocab_size}")
    return known


def _first(candidates: Iterable[list[int]]) -> int | None:
    return next((ids[0] for ids in candidates if ids), None)


def _sampling(keys: ConfigKeys) -> dict[str, float]:
    stated: dict[str, float] = {}
    for number in NUMBERS:
        if number.is_stated and keys.has(number.name):
            # -1 is off too, as in vLLM.
            stated[number.name] = (
                max(keys.integer(number.name, minimum=-1), 0)
                if number.dtype == "int32"
                else _number(keys, number.name)
            )
    if keys.has("max_new_tokens"):
        stated["max_new_tokens"] = keys.integer("max_new_tokens")
    return stated


def _number(keys: ConfigKeys, key: str) -> float:
    """Read a number >= 0: 0 is a legal temperature and min_p."""
    value = keys.values[key]
    return 0.0 if value == 0 and not isinstance(value, bool) else keys.number(key)
