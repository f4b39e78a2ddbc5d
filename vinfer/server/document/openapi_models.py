"""Adds this server's models to the request schemas: their names, and limits that no type knows.

Pure functions, run in a worker thread. A schema cannot distinguish models, so each limit is that of the most
permissive model. While a model is still loading its limits are unknown, and nothing is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vinfer.server.fields.anthropic.thinking import thinking_types
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.template_kwargs import KWARG_SCHEMAS, reads_reasoning_effort, settable_kwargs
from vinfer.server.fields.treatment import Treatment
from vinfer.server.json_object import Json
from vinfer.server.model_table import ModelTable, ServedModel

Narrow = Callable[[Json, Sequence[ServedModel]], Json]


_EFFORT_UNREAD = "The chat template does not read it."


def names(models: ModelTable) -> list[str]:
    """Return the model names that a request may use, in the order of the config."""
    return [status.name for status in models.statuses]


def narrow_to_models(schemas: Json, forms: Iterable[RequestForm[Any]], models: ModelTable) -> None:
    """Write the models' names and limits into the schemas of request bodies."""
    known = names(models)
    loaded = models.served_models
    served = loaded if len(loaded) == len(known) else ()
    for form in forms:
        schema = schemas[form.fields.__name__]
        _name_models(schema, known)
        if not served:
            continue
        for field, narrow in _NARROW.items():
            rule = form.rules.get(field)
            if rule is not None and rule.treatment is Treatment.APPLIED:
                schema["properties"][field] = narrow(schema["properties"][field], served)
    if served and all(model.manifest.images is None for model in served):
        schemas["ContentPart"]["properties"]["type"]["enum"] = ["text"]
        for name in ("ImagePart", "ImageBlock"):
            schemas[name] = {"not": {}, "description": "No model on this server takes images."}
    if served:
        reasoning = schemas["ReasoningOptions"]["properties"]
        reasoning["effort"] = _as_effort(reasoning["effort"], served)
        config = schemas["OutputConfig"]["properties"]
        if not any(map(reads_reasoning_effort, served)):
            # Not the type null alone, for which generators of clients have no name.
            config["effort"] |= {"not": {"type": "string"}, "description": _EFFORT_UNREAD}
        kinds = set().union(*map(thinking_types, served))
        schemas["Thinking"]["properties"]["type"]["enum"] = sorted(kinds)


def _name_models(schema: Json, known: list[str]) -> None:
    required: list[str] = schema.setdefault("required", [])
    if len(known) > 1 and "model" not in required:
        required.append("model")
    named: Json = {"type": "string", "enum": known}
    schema["properties"]["model"] = named if "model" in required else {"anyOf": [named, {"type": "null"}]}


def _limited(schema: Json, *, maximum: int, max_items: int | None = None) -> Json:
    """Return a copy of a schema with a maximum for its integers and for the length of integer arrays."""

    def limited(part: Any) -> Any:
        if isinstance(part, list):
            return [limited(inner) for inner in part]
        return _limited(part, maximum=maximum, max_items=max_items) if isinstance(part, dict) else part

    copy = {key: limited(part) for key, part in schema.items()}
    if copy.get("type") == "integer":
        copy["maximum"] = min(maximum, copy.get("maximum", maximum))
    if max_items is not None and copy.get("items", {}).get("type") == "integer":
        copy["maxItems"] = min(max_items, copy.get("maxItems", max_items))
    return copy


def _below(size: Callable[[ServedModel], int], length: Callable[[ServedModel], int] | None = None) -> Narrow:
    """Return what limits integers to less than the largest size, and arrays of them to the largest length."""

    def narrow(schema: Json, served: Sequence[ServedModel]) -> Json:
        max_items = None if length is None else max(map(length, served))
        return _limited(schema, maximum=max(map(size, served)) - 1, max_items=max_items)

    return narrow


def _vocab_size(model: ServedModel) -> int:
    return model.card.vocab_size


def _max_model_len(model: ServedModel) -> int:
    return model.max_model_len


def _as_biases(schema: Json, served: Sequence[ServedModel]) -> Json:
    known: Json = dict(schema["anyOf"][0])
    (bias,) = known["patternProperties"].values()
    keys = numbers_below(max(map(_vocab_size, served)))
    return {**schema, "anyOf": [{**known, "patternProperties": {keys: bias}}, {"type": "null"}]}


def numbers_below(limit: int) -> str:
    """Return the pattern of the decimal numbers from 0 to `limit` - 1, without leading zeros."""
    largest = str(limit - 1)
    parts = ["0", largest]
    if len(largest) > 1:
        parts.append(f"[1-9][0-9]{{0,{len(largest) - 2}}}")
    for i, digit in enumerate(largest):
        least = "1" if i == 0 else "0"
        if digit > least:
            parts.append(f"{largest[:i]}[{least}-{int(digit) - 1}][0-9]{{{len(largest) - i - 1}}}")
    return f"^({'|'.join(parts)})$"


def _as_dimensions(schema: Json, served: Sequence[ServedModel]) -> Json:
    sizes = [model.manifest.embeddings.size for model in served if model.manifest.embeddings is not None]
    return _limited(schema, maximum=max(sizes)) if sizes else schema


def _as_kwargs(schema: Json, served: Sequence[ServedModel]) -> Json:
    kinds: dict[str, set[str]] = {}
    for model in served:
        for name, kind in settable_kwargs(model).items():
            kinds.setdefault(name, set()).add(kind)
    known = {
        "type": "object",
        "properties": {
            name: {"anyOf": [*(KWARG_SCHEMAS[kind] for kind in sorted(theirs)), {"type": "null"}]}
            for name, theirs in kinds.items()
        },
        "additionalProperties": False,
    }
    return {**schema, "anyOf": [known, {"type": "null"}]}


def _as_effort(schema: Json, served: Sequence[ServedModel]) -> Json:
    if any(reads_reasoning_effort(model) for model in served):
        return schema
    none = {"type": "string", "enum": ["none"]}
    return {"anyOf": [none, {"type": "null"}], "description": _EFFORT_UNREAD}


_NARROW: Mapping[str, Narrow] = {
    # A prompt has at least one token.
    "min_tokens": _below(_max_model_len),
    "stop_token_ids": _below(_vocab_size),
    "logit_bias": _as_biases,
    "prompt": _below(_vocab_size, _max_model_len),
    # Without a limit of length: `truncate_prompt_tokens` may cut it.
    "input": _below(_vocab_size),
    "tokens": _below(lambda model: model.tokenizer.vocab_size),
    "dimensions": _as_dimensions,
    "chat_template_kwargs": _as_kwargs,
    "reasoning_effort": _as_effort,
}
