"""One request to an ASGI app in the same process, with an answer that can be read while it is written.

Runs on the app's event loop. Knows neither models nor fields.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.types import ASGIApp, Message

_HEADERS = ((b"host", b"localhost"), (b"content-type", b"application/json"))


class Exchange:
    """A POST of one JSON object. Use it as a context manager: leaving early is leaving the server.

    Attributes:
        status: of the answer.
    """

    def __init__(self, app: ASGIApp, path: str, body: Mapping[str, Any]) -> None:
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": list(_HEADERS),
            "client": ("127.0.0.1", 0),
            "server": ("localhost", 80),
        }
        self._app = app
        self._body: bytes | None = json.dumps(body).encode()
        self._sent: asyncio.Queue[Message | None] = asyncio.Queue()
        self._left = asyncio.Event()
        self.status = 0

    async def __aenter__(self) -> Exchange:
        self._task = asyncio.create_task(self._run())
        while (message := await self._sent.get()) is not None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                break
        return self

    async def __aexit__(self, *_: object) -> None:
        self._left.set()
        await self._task

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as the app sends it; it ends early if the app fails."""
        while (message := await self._sent.get()) is not None:
            yield message.get("body", b"")

    async def content(self) -> bytes:
        """Return the whole body."""
        return b"".join([piece async for piece in self.pieces()])

    async def lines(self) -> AsyncGenerator[str, None]:
        """Yield the body line by line."""
        pending = b""
        async for piece in self.pieces():
            *whole, pending = (pending + piece).split(b"\n")
            for line in whole:
                yield line.decode()

    async def _run(self) -> None:
        # The app has logged it, and the answer that is missing says it.
        with contextlib.suppress(Exception):
            await self._app(self._scope, self._receive, self._send)
        await self._sent.put(None)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self._sent.put(message)
