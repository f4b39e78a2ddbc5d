"""The body of `/v1/capabilities`. These are models, because parts of it are models of the bundle."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vinfer.bundle.manifest import Embeddings
from vinfer.bundle.sampling import SamplingNumbers
from vinfer.server.answers.bodies import Count
from vinfer.server.model_table import ParityVerdict


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RefusedField(_Part):
    """A refused field, the reason, and the values that pass as they ask for nothing; null always does."""

    field: str
    reason: str
    neutral: list[Any]


class FormCapabilities(_Part):
    """How each field of one form of a route's body is treated; any other field is unknown."""

    path: str
    required: list[str]
    applied: list[str]
    refused: list[RefusedField]
    accepted: list[str] = Field(description="Accepted without effect.")
    aliases: dict[str, str] = Field(description="Other names of applied fields.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _NumChoices:
    n: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingDefaultValues(SamplingNumbers, _NumChoices):
    """The value of each field that a request leaves out."""

    __pydantic_config__ = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)


class RequestLimits(_Part):
    """The largest numbers that a request may ask for; limits of single fields are in `/openapi.json`."""

    max_n: Count
    max_top_logprobs: Count
    max_logit_bias: Count
    max_stop: Count
    max_stop_string_chars: Count
    max_stop_token_ids: Count = Field(description="In addition to the model's own end tokens.")
    max_prompts: Count = Field(description="In one request to /v1/completions or /v1/embeddings.")
    max_tokenize_chars: Count
    max_detokenize_tokens: Count
    max_images: Count = Field(description="In one request; 0 if the model takes none.")


class ModelCapabilities(_Part):
    """What one model supports."""

    id: str
    task: str
    architecture: str
    max_model_len: Count
    num_slots: Count
    vocab_size: Count
    parity_verdict: ParityVerdict
    prompt_logprobs: bool = Field(description="Whether `echo` may be combined with `logprobs`.")
    deterministic: bool = Field(
        description="Whether tokens and logprobs are the same whatever shares the batch."
    )
    embeddings: Embeddings | None = Field(description="Null if the model does not support embeddings.")
    forms: list[FormCapabilities]
    response_formats: list[str]
    chat_template_kwargs: dict[str, str] = Field(
        description="The variables allowed by the config and read by the chat template, with their types."
    )
    reasoning_effort: bool = Field(description="Whether the chat template reads it; if not, it is refused.")
    limits: RequestLimits
    sampling_defaults: SamplingDefaultValues
    default_max_tokens: dict[str, Count | None] = Field(
        description="By route; null means all the room that the prompt leaves."
    )


class Capabilities(_Part):
    """What the server and each served model can do."""

    version: str
    unknown_fields: Literal["refuse", "ignore"]
    max_body_bytes: Count
    request_timeout_seconds: float
    models: list[ModelCapabilities]
