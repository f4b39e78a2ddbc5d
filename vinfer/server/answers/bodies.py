"""Bodies and events of OpenAI's other routes, of vLLM's and of our own.

Those of `/v1/responses` are in `response_types`, those of `/v1/messages` in `message_types`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, with_config
from typing_extensions import TypedDict

from vinfer.bundle.certificate import ParityReport
from vinfer.engine.request import FinishReason
from vinfer.server.model_table import ParityVerdict


@with_config(ConfigDict(extra="forbid"))
class Answer(TypedDict):
    """The base of every response body and of every object in one."""


def dumped(model: type[BaseModel]) -> GetPydanticSchema:
    """Give what `model_dump` returns the schema of its model."""
    return GetPydanticSchema(lambda source, handler: handler(model))


# With items of some type, because generators of clients know no arrays of nothing.
Nothing = Annotated[list[dict[str, Any]], Field(max_length=0)]
ChatFinishReason = FinishReason | Literal["tool_calls"]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Byte = Annotated[int, Field(ge=0, le=255)]


class ErrorDetails(Answer):
    """What went wrong, in OpenAI's format; `param` is the path of the field."""

    message: str
    type: str
    param: str | None
    code: str | None
    request_id: Annotated[
        str, Field(description="What the log calls the request; also in the header x-request-id.")
    ]


class ErrorBody(Answer):
    """The body of every error."""

    error: ErrorDetails


class CachedTokens(Answer):
    """Details of the prompt's tokens."""

    cached_tokens: Count


class PredictedTokens(Answer):
    """Tokens of drafts that were verified."""

    accepted_prediction_tokens: Annotated[Count, Field(description="Those that became part of the answer.")]
    rejected_prediction_tokens: Annotated[
        Count, Field(description="Those that did not; they count nowhere else.")
    ]


class Usage(Answer):
    """Tokens and time of one request."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: CachedTokens
    completion_tokens_details: NotRequired[
        Annotated[PredictedTokens | None, Field(description="Only of a model that speculates.")]
    ]
    tokens_per_second: Annotated[float, Field(ge=0)]
    processing_time: Annotated[float, Field(ge=0, description="Seconds since the request arrived.")]


class TopLogprob(Answer):
    """A candidate token and its logprob."""

    token: str
    logprob: float
    bytes: list[Byte]


class TokenLogprob(TopLogprob):
    """A generated token and its logprobs."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """Logprobs of a chat completion's tokens."""

    content: list[TokenLogprob]
    refusal: Nothing | None


class AnsweredFunction(Answer):
    """The function that is called; `arguments` is JSON text as the model wrote it."""

    name: str
    arguments: str


class AnsweredCall(Answer):
    """A tool call."""

    id: str
    type: Literal["function"]
    function: AnsweredFunction


class AnswerMessage(Answer):
    """The model's message. If it has `tool_calls`, `content` may be null."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: NotRequired[
        Annotated[str, Field(description="Reasoning before the answer; left out if there is none.")]
    ]
    tool_calls: NotRequired[Annotated[list[AnsweredCall], Field(min_length=1)]]
    refusal: Annotated[str | None, Field(description="Always null: a model's refusal is its content.")]
    annotations: Nothing


TokenIds = Annotated[Sequence[Count], Field(description="If `return_token_ids` asks.")]


class WithTokenIds(Answer, total=False):
    """The tokens of a choice."""

    token_ids: TokenIds


class WithPromptIds(Answer, total=False):
    """The tokens of a prompt."""

    prompt_token_ids: TokenIds


class ChatChoice(WithTokenIds):
    """One of `n` answers."""

    index: Count
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class _Head(Answer):
    id: str
    created: Count
    model: str
    system_fingerprint: Annotated[str, Field(description="Key of the bundle.")]


class ChatCompletion(_Head, WithPromptIds):
    """A whole chat completion."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(Answer):
    """New parts of a called function: its name once, then its arguments."""

    name: NotRequired[str]
    arguments: str


class CallDelta(Answer):
    """New parts of a streamed tool call; `id` and `type` come with its name."""

    index: Count
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class MessageDelta(Answer):
    """New parts of a streamed message."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[Annotated[list[CallDelta], Field(min_length=1)]]
    refusal: NotRequired[Annotated[str | None, Field(description="Always null.")]]


class ChatChunkChoice(WithTokenIds):
    """New parts of one of `n` streamed answers."""

    index: Count
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None


class ChatChunk(_Head, WithPromptIds):
    """One event of a streamed chat completion, with `usage` if `stream_options` asks for it."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


class ParallelLogprobs(Answer):
    """Logprobs of a plain completion's tokens; all four lists have the same length."""

    tokens: list[str]
    token_logprobs: Annotated[
        list[float | None], Field(description="Null for the first token of an echoed prompt.")
    ]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class TokenIdsOfChoice(WithTokenIds, WithPromptIds):
    """The tokens of a completion and, with its first piece, of its prompt."""


class _CompletionText(TokenIdsOfChoice):
    index: Count
    text: str
    logprobs: ParallelLogprobs | None


class CompletionChunkChoice(_CompletionText):
    """New parts of one of the streamed completions."""

    finish_reason: FinishReason | None


class CompletionChoice(_CompletionText):
    """One of the completions: `n` for each prompt, in order."""

    finish_reason: FinishReason


class Completion(_Head):
    """Whole completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(_Head):
    """One event of streamed completions, with `usage` if `stream_options` asks for it."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: NotRequired[Usage | None]


class Embedding(Answer):
    """One input as an L2-normalized vector."""

    object: Literal["embedding"]
    index: Count
    embedding: Annotated[list[float] | str, Field(description="Numbers, or base64 of little-endian float32.")]


class EmbeddingUsage(Answer):
    """Tokens of all inputs."""

    prompt_tokens: Count
    total_tokens: Count


class EmbeddingList(Answer):
    """The inputs as vectors, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class TokenCount(Answer):
    """The number of tokens in a text or a conversation."""

    model: str
    count: Count


class Tokenized(Answer):
    """Token ids and, if requested, their spelling in the vocabulary."""

    count: Count
    max_model_len: Count
    tokens: Sequence[Count]
    token_strs: list[str] | None


class Detokenized(Answer):
    """The text of token ids."""

    prompt: str


class AddedToken(Answer):
    """A token added to the vocabulary, with transformers' field names."""

    content: str
    lstrip: bool
    normalized: bool
    rstrip: bool
    single_word: bool
    special: bool


class TokenizerInfo(Answer):
    """A tokenizer, with the field names of transformers' tokenizer_config.json.

    `added_tokens_decoder` is keyed by token id.
    """

    model: str
    tokenizer_class: str
    model_max_length: Count
    vocab_size: Count
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    additional_special_tokens: list[str]
    added_tokens_decoder: dict[str, AddedToken]
    chat_template: Annotated[str | None, Field(description="Jinja source.")]


class ModelInfo(Answer):
    """A served model; `parity` is its comparison with transformers."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    permission: Nothing
    root: str
    max_model_len: Count
    parity_verdict: ParityVerdict
    parity: Annotated[dict[str, Any], dumped(ParityReport)] | None


class ModelList(Answer):
    """The served models."""

    object: Literal["list"]
    data: list[ModelInfo]


class Liveness(Answer):
    """The process is alive."""

    status: Literal["alive"]


class ModelProgress(Answer):
    """One model's progress: `done` of `total` units of work in `phase`, and its seconds so far and in all."""

    name: str
    phase: str
    done: Count
    total: Count
    elapsed_seconds: Seconds | None
    expected_seconds: Seconds | None


class Readiness(Answer):
    """The server's progress."""

    phase: str
    done: Count
    total: Count
    models: list[ModelProgress]


class Health(Answer):
    """`ok`, or the phase that the server is in."""

    status: str


class Welcome(Answer):
    """Where to go from here."""

    message: str
    models: Literal["/v1/models"]
    documentation: Literal["/openapi.json"]


class Version(Answer):
    """The version of vinfer."""

    version: str
