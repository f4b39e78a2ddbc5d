"""Asks a server over HTTP: its models, its readiness, and chat completions as streams of pieces.

Blocking. Knows OpenAI's API and the answers of `/readiness`, but no terminals and no conversations.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Mapping
from typing import Any

import httpx

from vinfer.chat.answer import AnswerReader, Piece, Stats, parse_line
from vinfer.errors import AnswerError

CONNECT_SECONDS = 10.0
_MAX_REASON_CHARS = 500


@dataclasses.dataclass(frozen=True, slots=True)
class Readiness:
    """What a server does, `ready` at the end, and how many seconds it will take in all, if that is known."""

    phase: str
    expected_seconds: float | None = None

    def __str__(self) -> str:
        seconds = self.expected_seconds
        return self.phase if seconds is None or seconds < 1 else f"{self.phase}, about {seconds:.0f} s"


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

    def readiness(self) -> Readiness | None:
        """Return what a starting server does; None while nothing answers."""
        try:
            body = self._http.get("/readiness").json()
            phase = str(body["phase"])
            seconds = [model.get("expected_seconds") for model in body["models"] if model["phase"] == phase]
        except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError):
            return None
        return Readiness(phase, seconds[0] if seconds else None)

    def stream(self, body: Mapping[str, Any], stats: Stats) -> Generator[Piece, None, None]:
        """Yield the answer piece by piece, and fill in `stats`; closing the iterator stops the server's work.

        Raises:
            AnswerError: the server cannot be reached, refuses the request or breaks off.
        """
        sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
        reader, started = AnswerReader(stats), time.monotonic()
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=sent) as response:
                self._check(response)
                for line in response.iter_lines():
                    if (event := parse_line(line)) is None:
                        break
                    piece = reader.push(event)
                    if piece != Piece():
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
