"""The applied fields of `/v1/completions`, typed and limited.

Limits that depend on the model or the config are checked in `generate.sampling` and `generate.prompts`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from vinfer.engine.request import MAX_TOP_LOGPROBS
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.rules import Condition, Problem, Rule, any_of, having
from vinfer.server.fields.sampling import MAX_INT32, STREAM_OPTIONS_NEED_STREAM, NoLimit, SamplingFields
from vinfer.server.fields.structured_outputs import CONSTRAINT_PROBLEMS, ONE_CONSTRAINT, UNCONSTRAINED
from vinfer.server.fields.treatment import COMPLETION_OTHERS

MAX_PROMPTS = 256
"""The limit of prompts of `/v1/completions`, or inputs of `/v1/embeddings`, in one request. More are refused
before they are tokenized."""


_TOKEN_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def prompts_schema(text: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a text, token ids, or several of these; `text` is the schema of a text.

    `generate.prompts` parses what is sent.
    """
    return {
        "anyOf": [
            text,
            _TOKEN_IDS_SCHEMA,
            {
                "type": "array",
                "items": {"anyOf": [text, _TOKEN_IDS_SCHEMA]},
                "minItems": 1,
                "maxItems": MAX_PROMPTS,
            },
        ]
    }


_NOT_ZERO = Condition(
    {"properties": {"max_tokens": {"not": {"const": 0}}}}, lambda fields: fields.max_tokens != 0
)


class CompletionFields(SamplingFields):
    """`POST /v1/completions`; `generate.prompts` parses `prompt`, and max_tokens may be 0 only with echo."""

    rules = (
        STREAM_OPTIONS_NEED_STREAM,
        Rule(any_of(UNCONSTRAINED, *ONE_CONSTRAINT), *CONSTRAINT_PROBLEMS),
        Rule(
            any_of(_NOT_ZERO, having("echo", True)),
            Problem("max_tokens", "is 0; must be at least 1 without echo: true, which returns the prompt"),
        ),
    )

    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT32), NoLimit] | None = None

    prompt: Annotated[Any, WithJsonSchema(prompts_schema({"type": "string"}))]
    best_of: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool = False

    @property
    def scores_prompt(self) -> bool:
        """Whether the logprobs of the prompt's own tokens are requested."""
        return self.echo and self.logprobs is not None


COMPLETION = RequestForm(CompletionFields, COMPLETION_OTHERS)
