"""Compiles checked fields to a grammar, off the event loop, and builds a model's grammar compiler."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vinfer.engine.grammar import Grammar, GrammarCompiler, GrammarKind, GrammarSpec
from vinfer.engine.grammar_vocabulary import GrammarVocabulary
from vinfer.errors import RequestError
from vinfer.server.constrain.json_schema import closed
from vinfer.server.constrain.schema_checks import check_schema
from vinfer.server.fields.sampling import SamplingFields
from vinfer.server.fields.structured_outputs import MAX_GRAMMAR_CHARS, ResponseFormat, StructuredOutputs
from vinfer.server.model_table import ServedModel
from vinfer.server.services import Services
from vinfer.text.token_bytes import token_bytes
from vinfer.text.tokenizer import Tokenizer

MAX_SCHEMA_CHARS = 65_536
"""The limit of a JSON Schema, written without whitespace."""


def grammar_compiler(
    name: str, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Sequence[int]
) -> GrammarCompiler:
    """Build the grammar compiler of one model; the vocabulary is read when the first grammar is compiled.

    Args:
        vocab_size: the model's, which is at least the tokenizer's.
    """
    ends = [token_id for token_id in eos_token_ids if token_id < tokenizer.vocab_size]

    def vocabulary() -> GrammarVocabulary:
        return GrammarVocabulary(
            [token_bytes(tokenizer, token_id) for token_id in range(tokenizer.vocab_size)],
            special_ids=tokenizer.special_ids,
            eos_token_ids=ends,
            encode=tokenizer.encode_plain,
        )

    return GrammarCompiler(name=name, vocab_size=vocab_size, vocabulary=vocabulary if ends else None)


async def form_of(services: Services, fields: SamplingFields) -> GrammarSpec | None:
    """Return the form that an answer must have; None for any text.

    Raises:
        RequestError: names the field that cannot be enforced.
    """
    if fields.response_format is None and fields.structured_outputs is None:
        return None
    return await services.in_worker(grammar_spec, fields.response_format, fields.structured_outputs)


async def compile_grammar(services: Services, fields: SamplingFields, model: ServedModel) -> Grammar | None:
    """Return the grammar that constrains a plain completion; None if nothing does; errors as `form_of`."""
    spec = await form_of(services, fields)
    return None if spec is None else await model.grammars.compile(spec)


def grammar_spec(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> GrammarSpec | None:
    """Return what constrains the answer; None if nothing does. Large schemas take milliseconds.

    Raises:
        RequestError: a schema or the choices are too long, or no value of a schema ends.
    """
    if structured_outputs is not None:
        path = "structured_outputs"
        if structured_outputs.regex is not None:
            return GrammarSpec("regex", structured_outputs.regex, f"{path}.regex")
        if structured_outputs.grammar is not None:
            return GrammarSpec("lark", structured_outputs.grammar, f"{path}.grammar")
        if structured_outputs.choice is not None:
            return _as_json("choice", structured_outputs.choice, f"{path}.choice", MAX_GRAMMAR_CHARS)
        schema = structured_outputs.json_ or {}
        check_schema(schema, f"{path}.json")
        return _as_json("json_schema", closed(schema), f"{path}.json", MAX_SCHEMA_CHARS)
    if response_format is None or response_format.type == "text":
        return None
    if response_format.json_schema is None:
        return _as_json("json_schema", {"type": "object"}, "response_format", MAX_SCHEMA_CHARS)
    path = "response_format.json_schema.schema"
    check_schema(response_format.json_schema.schema_, path)
    return _as_json("json_schema", closed(response_format.json_schema.schema_), path, MAX_SCHEMA_CHARS)


def _as_json(
    kind: GrammarKind, value: Mapping[str, Any] | list[str], path: str, max_chars: int
) -> GrammarSpec:
    return GrammarSpec(kind, limited_json(value, path, max_chars), path)


def limited_json(value: Mapping[str, Any] | list[str], path: str, max_chars: int) -> str:
    """Return a value as JSON without whitespace.

    Raises:
        RequestError: the JSON is longer than `max_chars` characters; names the field at `path`.
    """
    # Keys keep their order: an answer has its properties in the schema's order.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(text) > max_chars:
        raise RequestError(
            f"{path} has {len(text)} characters as JSON; the limit is {max_chars}: shorten it", param=path
        )
    return text
