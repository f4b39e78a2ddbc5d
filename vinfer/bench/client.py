"""Sends one streamed completion over a plain socket and records the time of every event.

Runs on the event loop of the load. Written by hand because it shares the machine with the server: an HTTP
library spends more CPU on a chunk than a small model's server does. Knows no statistics.
"""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import ssl
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any

from vinfer.errors import AnswerError

_PORTS = {"http": 80, "https": 443}
_MAX_REASON_CHARS = 300


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """Tokens that arrived in one event; `num_tokens` is 0 if the server does not report their number."""

    seconds: float
    num_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One finished request. All times are from one monotonic clock, in seconds.

    Attributes:
        num_cached_tokens: prompt tokens from the server's prefix cache; None if it does not say.
    """

    sent_seconds: float
    done_seconds: float
    arrivals: tuple[Arrival, ...]
    num_prompt_tokens: int | None
    num_tokens: int
    num_cached_tokens: int | None
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """The address and model of completion requests."""

    url: str
    model: str
    api_key: str | None
    is_chat: bool

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    def body(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """Return a request body that asks for a stream."""
        content = {"messages": [{"role": "user", "content": prompt}]} if self.is_chat else {"prompt": prompt}
        return {"model": self.model, **content, "stream": True, **fields}

    def body_with_image(self, prompt: str, url: str, **fields: Any) -> dict[str, Any]:
        """Return a streaming chat completion body about the image in a data URL."""
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
        message = {"role": "user", "content": parts}
        return {"model": self.model, "messages": [message], "stream": True, **fields}


def fetch(url: str, *, api_key: str | None = None, timeout_seconds: float = 10) -> bytes:
    """GET a small document.

    Raises:
        AnswerError: no answer, or a status other than 200.
    """
    parts = urllib.parse.urlsplit(url)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(*_address(url), timeout=timeout_seconds)
    try:
        connection.request("GET", parts.path, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise AnswerError(f"GET {url}: {error}") from None
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise AnswerError(f"GET {url}: status {answer.status}")
    return content


def first_model(url: str, *, api_key: str | None = None) -> str:
    """Return the id of the first model that a server lists.

    Args:
        url: without `/v1`.

    Raises:
        AnswerError: no answer, or no list of models.
    """
    content = fetch(f"{url}/v1/models", api_key=api_key)
    try:
        models = [str(model["id"]) for model in json.loads(content)["data"]]
    except (ValueError, KeyError, TypeError):
        raise AnswerError(f"{url}/v1/models has no list of models: is this an OpenAI API?") from None
    if not models:
        raise AnswerError(f"{url} has no model yet: wait until {url}/readiness answers 200")
    return models[0]


async def complete(
    endpoint: Endpoint, body: dict[str, Any], *, on_tokens: Callable[[int], None] = lambda _: None
) -> Record:
    """Send one request on its own connection and record its stream.

    Args:
        on_tokens: receives the number of tokens of each event as it arrives; 0 if the server does not say.

    Raises:
        AnswerError: the server rejected the request or closed the stream early.
    """
    arrivals: list[Arrival] = []
    num_tokens, num_prompt_tokens, num_cached_tokens = 0, None, None
    text = ""
    sent_seconds = time.perf_counter()
    async for seconds, event in _events(endpoint, body):
        if "error" in event:
            raise AnswerError(f"{endpoint.url} ended a stream with an error: {event['error']}")
        counted = 0
        if usage := event.get("usage"):
            counted = usage["completion_tokens"] - num_tokens
            num_tokens, num_prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
            num_cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        new_text = _text(event)
        text += new_text
        if new_text or (counted and event["choices"]):
            arrivals.append(Arrival(seconds, counted))
            on_tokens(counted)
    if not arrivals:
        raise AnswerError(f"{endpoint.url} sent no token")
    return Record(
        sent_seconds,
        time.perf_counter(),
        tuple(arrivals),
        num_prompt_tokens,
        num_tokens or len(arrivals),
        num_cached_tokens,
        text,
    )


def _text(event: dict[str, Any]) -> str:
    return "".join(
        choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        for choice in event.get("choices") or ()
    )


async def _events(endpoint: Endpoint, body: dict[str, Any]) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    """Yield each event of the stream with the time at which its bytes arrived."""
    parts = urllib.parse.urlsplit(endpoint.url)
    host, port = _address(endpoint.url)
    content = json.dumps(body).encode()
    key = f"Authorization: Bearer {endpoint.api_key}\r\n" if endpoint.api_key else ""
    head = (
        f"POST {parts.path.rstrip('/')}{endpoint.path} HTTP/1.1\r\nHost: {host}:{port}\r\n{key}"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    try:
        secure = ssl.create_default_context() if parts.scheme == "https" else None
        reader, writer = await asyncio.open_connection(host, port, ssl=secure)
    except OSError as error:
        raise AnswerError(f"{endpoint.url}: {error}") from None
    try:
        writer.write(head.encode() + content)
        status, is_chunked = await _read_head(reader)
        pieces = _chunks(reader) if is_chunked else _rest(reader)
        if status != 200:
            answer = b"".join([piece async for piece in pieces]).decode(errors="replace")
            raise AnswerError(f"{endpoint.url} answered {status}: {_reason(answer)}")
        pending = b""
        async for piece in pieces:
            seconds = time.perf_counter()
            *whole, pending = (pending + piece).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in whole:
                if event.startswith(b"data:") and event != b"data: [DONE]":
                    yield seconds, json.loads(event[len(b"data:") :])
    except (asyncio.IncompleteReadError, OSError) as error:
        raise AnswerError(f"{endpoint.url} closed a stream early: {error}") from None
    finally:
        writer.close()


def _address(url: str) -> tuple[str, int]:
    """Return host and port of a URL.

    Raises:
        AnswerError: it has none, or another scheme than http and https.
    """
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port or _PORTS[parts.scheme]
    except (KeyError, ValueError):
        port = 0
    if not parts.hostname or not port:
        raise AnswerError(f"{url} is no URL of a server: write one such as http://127.0.0.1:8000")
    return parts.hostname, port


def _reason(answer: str) -> str:
    """Return the message of a refusal, or what it says instead."""
    try:
        return str(json.loads(answer)["error"]["message"])[:_MAX_REASON_CHARS]
    except (ValueError, KeyError, TypeError):
        return answer[:_MAX_REASON_CHARS]


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    return int(lines[0].split()[1]), "transfer-encoding: chunked" in lines


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _rest(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(65536):
        yield piece
