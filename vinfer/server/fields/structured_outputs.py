"""The fields that constrain an answer: `response_format` and `structured_outputs`, typed and limited.

They become one `GrammarSpec`; `vinfer.engine.grammar` decides what that allows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from vinfer.errors import RequestError
from vinfer.server.fields.body_model import Body
from vinfer.server.fields.rules import NEEDS_SCHEMA_TYPE, ByType, OfType, exactly_one_of
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


_BY_TYPE = ByType(
    OfType(("text", "json_object"), lacks=("json_schema",)),
    OfType(("json_schema",), needs=("json_schema",)),
    advice=NEEDS_SCHEMA_TYPE,
)


class ResponseFormat(Body):
    """`response_format`: the form of the answer, in OpenAI's format."""

    model_config = ConfigDict(json_schema_extra=_BY_TYPE.schema)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: Annotated[None, BeforeValidator(_nested_schema, json_schema_input_type=NoObject)] = Field(
        None, alias="schema"
    )


class StructuredOutputs(Body):
    """`structured_outputs`: the form of the answer, in vLLM's format; exactly one field must be set."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of(("regex", "choice", "grammar", "json")))

    regex: str | None = Field(None, max_length=MAX_GRAMMAR_CHARS)
    choice: Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    grammar: str | None = Field(None, max_length=MAX_GRAMMAR_CHARS)
    json_: dict[str, Any] | None = Field(None, alias="json")


def constrains_answer(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> bool:
    """Return whether one of the fields constrains the answer."""
    return structured_outputs is not None or (response_format is not None and response_format.type != "text")


def check_one_form(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None, *, ignore_eos: bool
) -> None:
    """Check the fields against each other.

    Raises:
        RequestError: names the field that is missing or must be left out.
    """
    if response_format is not None:
        _BY_TYPE.check(response_format, response_format.type, "response_format")
    if structured_outputs is not None:
        num_forms = len(structured_outputs.model_dump(exclude_none=True))
        if num_forms != 1:
            raise RequestError(
                f"structured_outputs has {num_forms} of regex, choice, grammar and json: send one",
                param="structured_outputs",
            )
        if constrains_answer(response_format, None):
            raise RequestError(
                "structured_outputs and response_format exclude each other: send one of them",
                param="structured_outputs",
            )
    if ignore_eos and constrains_answer(response_format, structured_outputs):
        raise RequestError(
            "ignore_eos cannot be combined with response_format or structured_outputs: once the answer is "
            "complete, only the end token may follow; leave it out",
            param="ignore_eos",
        )
