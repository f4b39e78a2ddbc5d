"""The fields that constrain an answer: `response_format` and `structured_outputs`, typed and limited.

They become one `GrammarSpec`; `vinfer.engine.grammar` decides what that allows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from vinfer.server.fields.body_model import Body
from vinfer.server.fields.rules import (
    NEEDS_SCHEMA_TYPE,
    ByType,
    Condition,
    ExactlyOne,
    OfType,
    Problem,
    absent,
    all_of,
    any_of,
    inside,
    one_of,
)
from vinfer.server.fields.tools import NAME_PATTERN

MAX_GRAMMAR_CHARS = 16_384
"""The limit of a regular expression, of a Lark grammar, and of all choices together as JSON."""
MAX_CHOICES = 1_000
MAX_DESCRIPTION_CHARS = 4_096


class JsonSchemaFormat(Body):
    """`response_format.json_schema`. The schema is enforced whatever `strict` says."""

    name: str = Field(pattern=NAME_PATTERN)
    description: str | None = Field(None, max_length=MAX_DESCRIPTION_CHARS)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


# Not the type null alone, for which generators of clients have no name.
NoObject = Annotated[dict[str, Any] | None, Field(json_schema_extra={"not": {"type": "object"}})]


def _nested_schema(value: Any) -> Any:
    """Say where llama.cpp's form of a schema goes here: without it, nothing would be enforced."""
    raise PydanticCustomError("schema", "is not read: use type json_schema, and json_schema.schema")


class ResponseFormat(Body):
    """`response_format`: the form of the answer, in OpenAI's format."""

    rules = (
        ByType(
            OfType(("text", "json_object"), lacks=("json_schema",)),
            OfType(("json_schema",), needs=("json_schema",)),
            advice=NEEDS_SCHEMA_TYPE,
        ),
    )

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: Annotated[None, BeforeValidator(_nested_schema, json_schema_input_type=NoObject)] = Field(
        None, alias="schema"
    )


class StructuredOutputs(Body):
    """`structured_outputs`: the form of the answer, in vLLM's format; exactly one field must be set."""

    rules = (ExactlyOne("regex", "choice", "grammar", "json"),)

    regex: str | None = Field(None, max_length=MAX_GRAMMAR_CHARS)
    choice: Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    grammar: str | None = Field(None, max_length=MAX_GRAMMAR_CHARS)
    json_: dict[str, Any] | None = Field(None, alias="json")


IS_TEXT = Condition({"properties": {"type": {"const": "text"}}}, lambda sent: sent.type == "text")
TEXT_OR_NOTHING = inside("response_format", IS_TEXT)
UNCONSTRAINED = all_of(absent("structured_outputs"), TEXT_OR_NOTHING)
ENDS_BY_ITSELF = one_of("ignore_eos", None, False)
ONE_CONSTRAINT = (
    all_of(absent("structured_outputs"), ENDS_BY_ITSELF),
    all_of(TEXT_OR_NOTHING, ENDS_BY_ITSELF),
)
CONSTRAINT_PROBLEMS = (
    Problem(
        "structured_outputs",
        "and response_format exclude each other: send one of them",
        any_of(absent("structured_outputs"), TEXT_OR_NOTHING),
    ),
    Problem(
        "ignore_eos",
        "cannot be combined with response_format or structured_outputs: once the answer is complete, only "
        "the end token may follow; leave it out",
        any_of(UNCONSTRAINED, ENDS_BY_ITSELF),
    ),
)
