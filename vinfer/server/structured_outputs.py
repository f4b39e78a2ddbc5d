"""The fields that bind an answer to a form: `response_format` and `structured_outputs`, typed and bounded.

They become one `GrammarSpec`; what that allows is `vinfer.engine.grammar`'s matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from vinfer.engine.grammar import GrammarKind, GrammarSpec
from vinfer.errors import RequestError
from vinfer.server.body_model import Body
from vinfer.server.json_schema import closed
from vinfer.server.schema_rules import absent, all_of, any_of, exactly_one_of, having, present
from vinfer.server.tools import NAME_PATTERN

MAX_SCHEMA_CHARS = 65_536
"""Of a JSON Schema, written without white space."""
MAX_GRAMMAR_CHARS = 16_384
"""Of a regular expression or a Lark grammar, and of all choices together as JSON."""
MAX_CHOICES = 1_000
MAX_DESCRIPTION_CHARS = 4_096


class JsonSchemaFormat(Body):
    """`response_format.json_schema`. The schema is enforced whatever `strict` says."""

    name: str = Field(pattern=NAME_PATTERN)
    description: str | None = Field(None, max_length=MAX_DESCRIPTION_CHARS)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """`response_format`: the form of the answer, in OpenAI's words."""

    model_config = ConfigDict(
        json_schema_extra=any_of(
            all_of(having("type", "text", "json_object"), absent("json_schema")),
            all_of(having("type", "json_schema"), present("json_schema")),
        )
    )

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Body):
    """`structured_outputs`: the form of the answer, in vLLM's words; one of them."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of(("regex", "choice", "grammar", "json")))

    regex: str | None = Field(None, max_length=MAX_GRAMMAR_CHARS)
    choice: Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    grammar: str | None = Field(None, max_length=MAX_GRAMMAR_CHARS)
    json_: dict[str, Any] | None = Field(None, alias="json")


def binds_form(response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None) -> bool:
    """Say whether one of the fields binds the answer."""
    return structured_outputs is not None or (response_format is not None and response_format.type != "text")


def check_one_form(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None, *, ignore_eos: bool
) -> None:
    """Check what the fields say together.

    Raises:
        RequestError: names the field that is one too many, or missing.
    """
    if response_format is not None:
        has_schema = response_format.json_schema is not None
        if has_schema != (response_format.type == "json_schema"):
            raise RequestError(
                "response_format.json_schema is missing: send it"
                if not has_schema
                else "response_format.json_schema needs type json_schema: leave it out or change the type",
                param="response_format.json_schema",
            )
    if structured_outputs is not None:
        num_forms = len(structured_outputs.model_dump(exclude_none=True))
        if num_forms != 1:
            raise RequestError(
                f"structured_outputs has {num_forms} of regex, choice, grammar and json: send one",
                param="structured_outputs",
            )
        if binds_form(response_format, None):
            raise RequestError(
                "structured_outputs and response_format exclude each other: send one of them",
                param="structured_outputs",
            )
    if ignore_eos and binds_form(response_format, structured_outputs):
        raise RequestError(
            "ignore_eos does not go with response_format or structured_outputs: once the answer is complete, "
            "only the end token may follow; leave it out",
            param="ignore_eos",
        )


def grammar_spec(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> GrammarSpec | None:
    """Return what binds the answer, None for nothing. Large schemas take milliseconds.

    Raises:
        RequestError: a schema or the choices are too long.
    """
    if structured_outputs is not None:
        path = "structured_outputs"
        if structured_outputs.regex is not None:
            return GrammarSpec("regex", structured_outputs.regex, f"{path}.regex")
        if structured_outputs.grammar is not None:
            return GrammarSpec("lark", structured_outputs.grammar, f"{path}.grammar")
        if structured_outputs.choice is not None:
            return _as_json("choice", structured_outputs.choice, f"{path}.choice", MAX_GRAMMAR_CHARS)
        return _as_json(
            "json_schema", closed(structured_outputs.json_ or {}), f"{path}.json", MAX_SCHEMA_CHARS
        )
    if response_format is None or response_format.type == "text":
        return None
    if response_format.json_schema is None:
        return _as_json("json_schema", {"type": "object"}, "response_format", MAX_SCHEMA_CHARS)
    path = "response_format.json_schema.schema"
    return _as_json("json_schema", closed(response_format.json_schema.schema_), path, MAX_SCHEMA_CHARS)


def _as_json(
    kind: GrammarKind, value: Mapping[str, Any] | list[str], path: str, max_chars: int
) -> GrammarSpec:
    return GrammarSpec(kind, bounded_json(value, path, max_chars), path)


def bounded_json(value: Mapping[str, Any] | list[str], path: str, max_chars: int) -> str:
    """Write a value without white space.

    Raises:
        RequestError: names the field at `path`, where that is longer than `max_chars` characters.
    """
    # Keys stay in order: an answer has its properties in the schema's.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(text) > max_chars:
        raise RequestError(
            f"{path} has {len(text)} characters as JSON; the limit is {max_chars}: shorten it", param=path
        )
    return text
