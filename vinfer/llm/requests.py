"""Requests to the app in this process, and what becomes of its answers. Runs on the app's event loop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any

from vinfer.chat.answer import AnswerReader, Piece, Stats, ToolCall, parse_line
from vinfer.errors import EngineError, NotReadyError, QueueFullError, RequestError, VinferError
from vinfer.llm.host import Host

Messages = str | Sequence[Mapping[str, Any]]
"""A question, or the messages of a conversation as in the API."""

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """A whole answer; `str()` of it is its text.

    Attributes:
        text: of the first choice; "" if it has none.
        usage: tokens, as in the API.
        body: everything that the API answers, all choices included.
    """

    text: str
    reasoning: str
    calls: tuple[ToolCall, ...]
    finish_reason: str
    usage: Mapping[str, Any]
    body: Mapping[str, Any]

    def __str__(self) -> str:
        return self.text


def chat_body(host: Host, messages: Messages, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a chat completion; the fields are those of the API.

    Raises:
        RequestError: `stream` is given.
    """
    if "stream" in fields:
        raise RequestError("stream is no field here: call stream() or chat()", param="stream")
    asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return {"model": host.model_names[0], "messages": asked, **fields}


def embedding_body(host: Host, texts: str | Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a request for embeddings."""
    return {"model": host.model_names[0], "input": texts if isinstance(texts, str) else list(texts), **fields}


async def post(host: Host, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON object that a route answers.

    Raises:
        VinferError: it refuses the request, or fails.
    """
    async with host.exchange(path, body) as exchange:
        content = await exchange.content()
        if exchange.status != 200:
            raise _error(exchange.status, content)
        answer: dict[str, Any] = json.loads(content)
        return answer


async def stream(host: Host, body: dict[str, Any], stats: Stats) -> AsyncGenerator[Piece, None]:
    """Yield the first choice of a chat completion; closing the generator stops the work.

    Raises:
        VinferError: the request is refused, or fails.
    """
    sent = {"stream_options": {"include_usage": True}, **body, "stream": True}
    reader = AnswerReader(stats)
    async with host.exchange(CHAT, sent) as exchange:
        if exchange.status != 200:
            raise _error(exchange.status, await exchange.content())
        async with contextlib.aclosing(exchange.lines()) as lines:
            async for line in lines:
                if (event := parse_line(line)) is None:
                    return
                if (piece := reader.push(event)) != Piece():
                    yield piece
    raise EngineError("the answer broke off: see the log")


def chat_answer(body: Mapping[str, Any]) -> ChatAnswer:
    """Return what the API answers as an object."""
    [choice, *_] = body["choices"]
    message = choice["message"]
    calls = (
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    )
    return ChatAnswer(
        text=message["content"] or "",
        reasoning=message.get("reasoning_content") or "",
        calls=tuple(calls),
        finish_reason=choice["finish_reason"],
        usage=body["usage"],
        body=body,
    )


def vectors(body: Mapping[str, Any]) -> list[list[float]]:
    """Return the embeddings in the order of their inputs."""
    return [each["embedding"] for each in sorted(body["data"], key=lambda each: each["index"])]


def _error(status: int, content: bytes) -> VinferError:
    """Return the error that the app answered with."""
    try:
        error = json.loads(content)["error"]
        message, code, param = error["message"], error["code"], error["param"]
    except (ValueError, KeyError, TypeError):
        return EngineError("the request failed: see the log")
    fallback = RequestError if status < 500 else EngineError
    kinds = {(kind.status, kind.code): kind for kind in _request_errors()}
    return kinds.get((status, code), fallback)(message, param=param)


def _request_errors(base: type[VinferError] = RequestError) -> Iterator[type[VinferError]]:
    """Yield the classes that a request may fail with."""
    if base is RequestError:
        yield from (QueueFullError, NotReadyError, EngineError)
    yield base
    for kind in base.__subclasses__():
        yield from _request_errors(kind)
