"""The sampling fields that chat and plain completions share, typed and limited.

Parsed on the event loop or, for large bodies, in a worker thread. Limits that depend on the model or the
config (vocabulary, max_model_len, max_n) are checked in `generate.sampling`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from vinfer.engine.request import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS
from vinfer.server.api_keys import MAX_PRIORITY
from vinfer.server.fields.body_model import Body
from vinfer.server.fields.problems import string_or_array
from vinfer.server.fields.rules import Problem, Rule, all_of, any_of, having, inside, one_of
from vinfer.server.fields.structured_outputs import ResponseFormat, StructuredOutputs

MAX_INT32 = 2**31 - 1
MAX_STOP_STRINGS = 64
"""OpenAI allows four, and several clients send more."""
MAX_STOP_STRING_CHARS = 1024
MAX_CACHE_SALT_CHARS = 256


_TOKEN_ID_KEY = re.compile(r"^(0|[1-9][0-9]{0,9})\Z")


def _one_as_list(value: Any) -> Any:
    return [value] if isinstance(string_or_array(value), str) else value


def _no_limit(value: Any) -> Any:
    """Parse -1, which LM Studio, llama.cpp and Ollama know as "no limit": whatever fits is generated."""
    return MAX_INT32 if type(value) is int and value == -1 else value


def _key_as_token_id(key: Any) -> Any:
    """Parse a key of `logit_bias` as a token id: JSON has only string keys."""
    if isinstance(key, str) and _TOKEN_ID_KEY.match(key):
        return int(key)
    raise PydanticCustomError("token_id", "is not a token id: use the id's decimal digits as the key")


NoLimit = BeforeValidator(_no_limit, json_schema_input_type=Annotated[int, Field(ge=-1, le=MAX_INT32)])
_SentMaxTokens = Annotated[int, Field(ge=-1, le=MAX_INT32, json_schema_extra={"not": {"const": 0}})]
MaxTokens = Annotated[
    int,
    Field(ge=1, le=MAX_INT32),
    BeforeValidator(_no_limit, json_schema_input_type=_SentMaxTokens),
]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_STRING_CHARS)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT32)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]
TokenIdKey = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,9})$")]


class StreamOptions(Body):
    """What a stream contains besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = Field(False, description="Has no effect: chunks are never padded.")


_ASKS_NOTHING = all_of(*(one_of(name, None, False) for name in StreamOptions.model_fields))
STREAM_OPTIONS_NEED_STREAM = Rule(
    any_of(inside("stream_options", _ASKS_NOTHING), having("stream", True)),
    Problem("stream_options", "needs stream: true"),
)


class SamplingFields(Body):
    """The fields that chat and plain completions share; None means left out."""

    model: str = Field(min_length=1)
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    n: int | None = Field(None, ge=1)
    stop: Annotated[
        StopStrings, BeforeValidator(_one_as_list, json_schema_input_type=StopString | StopStrings)
    ] = []
    stop_token_ids: list[TokenId] = Field([], max_length=MAX_STOP_TOKEN_IDS)
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[
        Annotated[int, BeforeValidator(_key_as_token_id, json_schema_input_type=TokenIdKey)],
        Annotated[float, Field(ge=-100, le=100)],
    ] = Field({}, max_length=MAX_LOGIT_BIAS, json_schema_extra={"additionalProperties": False})
    # A boolean in chat completions.
    logprobs: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Clients of other servers send -1 for "off" as well as 0.
    top_k: int | None = Field(None, ge=-1, le=MAX_INT32)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    min_tokens: int = Field(0, ge=0, le=MAX_INT32)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    return_token_ids: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: int = Field(0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    cache_salt: str | None = Field(None, min_length=1, max_length=MAX_CACHE_SALT_CHARS)
    # llama.cpp's name: false computes the whole prompt.
    cache_prompt: bool = True

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def includes_continuous_usage(self) -> bool:
        """Whether every chunk of a stream carries the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    def check(self, path: str = "") -> None:
        if self.response_format is not None:
            self.response_format.check("response_format")
        if self.structured_outputs is not None:
            self.structured_outputs.check("structured_outputs")
        super().check(path)
