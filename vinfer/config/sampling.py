"""The block `models[].sampling`: what requests leave out."""

from __future__ import annotations

from pydantic import Field

from vinfer.config.block import MAX_INT32, Block, Count


class SamplingConfig(Block):
    """Defaults for omitted request fields; null: the checkpoint's generation_config, or else OpenAI's."""

    max_tokens: Count | None = Field(default=None, description="Most tokens to generate per choice.")
    n: int | None = Field(
        default=None, ge=1, le=128, description="Choices per request, at most server.max_n."
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="Softmax temperature; 0 is greedy."
    )
    top_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Sample from the most likely tokens with this total probability; 1 is off, and 0 takes "
        "the most likely one.",
    )
    top_k: int | None = Field(
        default=None,
        ge=-1,
        le=MAX_INT32,
        description="Sample only from this many of the most likely tokens; 0 and -1 are off.",
    )
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Lowest probability of a token, relative to the most likely one; 0 is off.",
    )
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Divides the logits of tokens seen in the prompt or output; 1 is off.",
    )
    presence_penalty: float | None = Field(
        default=None,
        ge=-2,
        le=2,
        description="Subtracted from the logits of tokens seen in the output; 0 is off.",
    )
    frequency_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Subtracted once per occurrence in the output; 0 is off."
    )
