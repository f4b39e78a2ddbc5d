"""Server-sent events: one generation as a stream of JSON chunks that always has an end.

Runs on the event loop. While the client's connection is full, `send` waits and new text accumulates in the
generation. It does not know what a chunk contains.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from vinfer.server.generate.generation import Generation
from vinfer.server.http.context import RequestContext
from vinfer.server.http.disconnect import unless_client_leaves
from vinfer.server.http.errors import error_object
from vinfer.server.http.gate import log_failure
from vinfer.server.services import Services

# A blank line is no event, and no parser trips over it. Some clients strip white space from what a network
# read returns, and would take a comment and the event after it for one line.
BLANK_PING = b"\n\n"
# Server-sent events end a line at \r and \n, which JSON escapes. Some clients also split at these.
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

Chunk = Mapping[str, object]
"""One of the events in `vinfer.server.answers`."""

Chunks = AsyncGenerator[Chunk | None, None]
"""Chunks to send as they come; None stands for a ping."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How chunks become events.

    Attributes:
        names_events: each event is named after its chunk's `type`.
        end: what follows the last chunk.
        failure: (error, request id) -> the last chunk of a stream that fails.
        ping: what is sent after a long silence; a blank line unless clients expect an event.
    """

    names_events: bool = False
    end: bytes = b"data: [DONE]\n\n"
    failure: Callable[[Exception, str], Chunk] = error_object
    ping: bytes = BLANK_PING

    def event(self, chunk: Chunk) -> bytes:
        """Return one chunk as an event."""
        name = f"event: {chunk['type']}\n" if self.names_events else ""
        text = json.dumps(chunk, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return f"{name}data: {text.translate(_LINE_ENDS)}\n\n".encode()


UNNAMED = Framing()
"""The framing of chat and plain completions."""


class EventStream:
    """An ASGI response that streams a started generation and closes it at the end."""

    def __init__(self, services: Services, generation: Generation, chunks: Chunks, framing: Framing) -> None:
        self._framing = framing
        self._services = services
        self._generation = generation
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream.

        Raises:
            ClientLeftError: the client closed the connection.
        """
        context = RequestContext.of(scope)
        try:
            await unless_client_leaves(receive, self._send_all(context, send))
        finally:
            await self._generation.close()

    async def _send_all(self, context: RequestContext, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        try:
            limit = self._services.deadlines.limit(context.elapsed_seconds(), context.own_seconds)
            async with limit, contextlib.aclosing(self._chunks):
                async for chunk in self._chunks:
                    await send(_body(self._framing.ping if chunk is None else self._framing.event(chunk)))
        except Exception as error:  # noqa: BLE001  the status has been sent: any error becomes an event
            context.failed = True
            log_failure(error, context.request_id)
            await send(_body(self._framing.event(self._framing.failure(error, context.request_id))))
        await send({"type": "http.response.body", "body": self._framing.end, "more_body": False})


def _body(event: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": event, "more_body": True}
