"""Asks a server over HTTP: its models, its readiness, and chat completions as streams of pieces.

Blocking. Knows OpenAI's API and the answers of `/readiness`, but no terminals and no conversations.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import httpx

from vinfer.errors import AnswerError

CONNECT_SECONDS = 10.0
_MAX_REASON_CHARS = 500


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """What a part of an answer adds: text, or reasoning before it."""

    text: str = ""
    reasoning: str = ""


@dataclasses.dataclass(slots=True)
class Stats:
    """Figures of one answer; times in seconds from the request, tokens as the server counts them.

    Attributes:
        first_seconds: time to the first piece; None if there was none.
        last_seconds: time to the last piece.
    """

    first_seconds: float | None = None
    last_seconds: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first piece by the time that they took; None if that is not known."""
        if self.first_seconds is None or not self.completion_tokens or self.completion_tokens < 2:
            return None
        seconds = self.last_seconds - self.first_seconds
        return (self.completion_tokens - 1) / seconds if seconds > 0 else None

    def count(self, usage: Mapping[str, Any]) -> None:
        """Take the tokens from a `usage` object."""
        self.prompt_tokens = usage.get("prompt_tokens")
        self.completion_tokens = usage.get("completion_tokens")
        details = usage.get("prompt_tokens_details") or {}
        self.cached_tokens = details.get("cached_tokens")


class Client:
    """A connection to one server.

    Args:
        url: with or without `/v1` at its end.
        api_key: sent as a bearer token, if there is one.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        # An answer may wait for a slot as long as it likes: whoever waits can stop it.
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Return the ids of the server's models.

        Raises:
            AnswerError: the server cannot be reached, or does not list models.
        """
        try:
            response = self._http.get("/v1/models")
            self._check(response)
            return [str(model["id"]) for model in response.json()["data"]]
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except (ValueError, KeyError, TypeError):
            raise AnswerError(f"{self.url}/v1/models has no list of models: is this an OpenAI API?") from None

    def phase(self) -> str | None:
        """Return what a starting server does; `ready` at the end, None while nothing answers."""
        try:
            return str(self._http.get("/readiness").json()["phase"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None

    def stream(self, body: Mapping[str, Any], stats: Stats) -> Generator[Piece, None, None]:
        """Yield the answer piece by piece, and fill in `stats`; closing the iterator stops the server's work.

        Raises:
            AnswerError: the server cannot be reached, refuses the request or breaks off.
        """
        sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
        started = time.monotonic()
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=sent) as response:
                self._check(response)
                for event in _events(response.iter_lines()):
                    piece = _read(event, stats)
                    if piece.text or piece.reasoning:
                        stats.last_seconds = time.monotonic() - started
                        if stats.first_seconds is None:
                            stats.first_seconds = stats.last_seconds
                        yield piece
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if stats.finish_reason is None:
            raise AnswerError(f"{self.url} broke the answer off: see its log")

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        response.read()
        try:
            reason = str(response.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            reason = response.text
        hint = ": set VINFER_API_KEY to a key of this server" if response.status_code == 401 else ""
        raise AnswerError(
            f"{self.url} answers {response.status_code}: {reason[:_MAX_REASON_CHARS] or 'no reason'}{hint}"
        )

    def _unreachable(self, error: httpx.HTTPError) -> AnswerError:
        return AnswerError(
            f"{self.url} cannot be reached ({str(error) or type(error).__name__}): check the URL, or start "
            "the server with vinfer serve"
        )


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of server-sent events up to `[DONE]`.

    Raises:
        AnswerError: the stream has an error, or something else than JSON objects.
    """
    for line in lines:
        name, _, value = line.partition(":")
        if name != "data":
            continue
        if value.strip() == "[DONE]":
            return
        try:
            event = json.loads(value)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise AnswerError(f"the server sent {value[:80]!r}, which is no event of a chat completion")
        if error := event.get("error"):
            message = error.get("message") if isinstance(error, dict) else error
            raise AnswerError(f"the server ended the answer: {str(message)[:_MAX_REASON_CHARS]}")
        yield event


def _read(event: Mapping[str, Any], stats: Stats) -> Piece:
    """Return what an event adds to the answer, and count its usage."""
    if usage := event.get("usage"):
        stats.count(usage)
    for choice in event.get("choices") or ():
        stats.finish_reason = choice.get("finish_reason") or stats.finish_reason
        delta = choice.get("delta") or {}
        return Piece(delta.get("content") or "", delta.get("reasoning_content") or "")
    return Piece()
