"""uvicorn's HTTP protocol with the limits it lacks: header bytes and count, slow senders, slow readers.

One object per connection, on the event loop. It counts raw bytes, because httptools reports a header's value
only once it is complete. Knows nothing of routes.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import http
import json
import logging
import re
import uuid
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from vinfer.config import ServerConfig
from vinfer.errors import HeadersTooLargeError, RequestError, RequestTimeoutError
from vinfer.server.http.errors import error_object

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
MAX_NUM_HEADERS = 100
MIN_BODY_BYTES_PER_TIMEOUT = 1024
# The most bytes of chunked framing per byte of body; a stream of one-byte chunks has six.
MAX_FRAMING_RATIO = 8
WRITE_STALL_SECONDS = 60.0
PROBE_SECONDS = (0.0, 0.2, 2.0)
"""When a half-closed connection is probed, after its end was read."""

_HTTP2_OFFER = re.compile(rb"\r\nupgrade:(?=[ \t]*h2c[ \t]*\r\n)", re.IGNORECASE)


def uvicorn_config(app: ASGIApp, config: ServerConfig, **others: Any) -> uvicorn.Config:
    """Return how uvicorn serves an app: with this protocol, and without what it logs or believes by itself.

    Args:
        others: further arguments of `uvicorn.Config`.
    """
    # uvicorn takes any callable here, although its annotation says `type`.
    protocol: Any = functools.partial(
        LimitedHttpProtocol, receive_timeout_seconds=config.header_timeout_seconds
    )
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,
        # Our own access log contains no paths or queries from clients.
        access_log=False,
        # We have no use for the client address that a proxy reports.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=config.keep_alive_seconds,  # type: ignore[arg-type]
        **others,
    )


class _Phase(enum.Enum):
    HEADERS = "headers"
    BODY = "body"
    RECEIVED = "received"


class LimitedHttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 on one connection, within limits.

    - Headers: at most MAX_HEADER_BYTES and MAX_NUM_HEADERS (431), complete within the timeout (408).
    - Body: at least MIN_BODY_BYTES_PER_TIMEOUT per timeout, or its end (408).
    - Response: a client that leaves the buffer full for WRITE_STALL_SECONDS is disconnected.

    A client that has closed its half of the connection gets its answer. One that has left looks the same
    until something is sent to it, so a few bytes without meaning are sent.

    HTTP/1.0 knows no chunks: an answer of unknown length ends with the connection.

    Args:
        receive_timeout_seconds: `server.header_timeout_seconds`.
    """

    def __init__(self, *args: Any, receive_timeout_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn's access line contains the path and the query as the client sent them. Its own switch can be
        # undone by a logging configuration.
        self.access_log = False
        self._receive_timeout_seconds = receive_timeout_seconds
        self._receive_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._phase = _Phase.RECEIVED
        self._is_half_closed = False
        self._refusal: RequestError | None = None
        self._num_messages = 0
        # For the current message: the raw bytes, and what the parser made of them.
        self._num_raw_bytes = 0
        self._num_header_bytes = 0
        self._num_body_bytes = 0
        self._num_body_bytes_at_timer = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request of a new connection."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self._disarm()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser and count the bytes that it does not report."""
        if self.transport.is_closing():
            return
        num_messages = self._num_messages
        if self._is_idle():
            # uvicorn stops its keep-alive timer now, even for bytes that do not begin a request.
            self._arm()
            data = _without_http2_offer(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if num_messages == self._num_messages and self._phase is not _Phase.RECEIVED:
            # A piece in which a message begins is not counted; that is at most one read buffer.
            self._num_raw_bytes += len(data)
            num_framing_bytes = self._num_raw_bytes - self._num_body_bytes
            if num_framing_bytes > MAX_HEADER_BYTES + MAX_FRAMING_RATIO * self._num_body_bytes:
                self._refuse(_headers_too_large())
        elif self._is_idle() and self._receive_timer is None and self.timeout_keep_alive_task is None:
            # The body ended after its response, when uvicorn had already armed and stopped its timer.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection of a client that may still wait for its answer."""
        cycle = self._open_cycle()
        if cycle is None or self._phase is not _Phase.RECEIVED:
            return False
        self._is_half_closed = True
        for seconds in PROBE_SECONDS:
            self.loop.call_later(seconds, self._probe)
        return True

    def _probe(self) -> None:
        """Send what a waiting client ignores; a client that has left makes the second write fail."""
        cycle = self._open_cycle()
        if cycle is None or self.transport.is_closing():
            return
        if not cycle.response_started:
            if cycle.scope["http_version"] == "1.1":
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Only streams of events have no length; a blank line between two of them is no event.
        elif cycle.chunked_encoding:
            self.transport.write(b"2\r\n\n\n\r\n")

    def on_response_complete(self) -> None:
        """Close the connection after the last answer to a client that cannot ask again."""
        is_last = not self.pipeline
        super().on_response_complete()
        if self._is_half_closed and is_last:
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            app = _Unframed(app, cycle)
        super()._start_asgi_task(cycle, app)

    def on_message_begin(self) -> None:
        """Start counting a request's headers."""
        super().on_message_begin()
        self._phase = _Phase.HEADERS
        self._num_messages += 1
        self._num_raw_bytes = self._num_header_bytes = 0
        self._num_body_bytes = self._num_body_bytes_at_timer = 0
        self._arm()

    def on_url(self, url: bytes) -> None:
        """Count the request line."""
        self._count_header_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count one header; trailers arrive here too."""
        self._count_header_bytes(len(name) + len(value))
        if len(self.headers) >= MAX_NUM_HEADERS:
            raise self._note(_headers_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the headers as a whole, and start counting the body."""
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if num_hosts > 1 or (not num_hosts and self.parser.get_http_version() == "1.1"):
            raise self._note(
                RequestError(f"the request has {num_hosts or 'no'} Host headers: send exactly one")
            )
        self._phase = _Phase.BODY
        self._num_raw_bytes = 0
        self._arm()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count the body."""
        self._num_body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the client's timer while the server works."""
        self._phase = _Phase.RECEIVED
        self._disarm()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Start the timer for a client that does not read."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that timer."""
        self._stop_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP, or what a callback refused, with an error object."""
        self._refuse(self._refusal or RequestError("this is not a well-formed HTTP/1.1 request"))

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: clients routinely offer HTTP/2 and continue without it."""

    def _is_idle(self) -> bool:
        return self._phase is _Phase.RECEIVED and self._open_cycle() is None

    def _open_cycle(self) -> RequestResponseCycle | None:
        """Return the request that is being answered; None if there is none."""
        cycle: RequestResponseCycle | None = self.cycle
        return None if cycle is None or cycle.response_complete else cycle

    def _count_header_bytes(self, num: int) -> None:
        self._num_header_bytes += num
        if self._num_header_bytes > MAX_HEADER_BYTES:
            raise self._note(_headers_too_large())

    def _note(self, refusal: RequestError) -> RequestError:
        """Record why a callback stops the parser; httptools reports only that it did."""
        self._refusal = refusal
        return refusal

    def _arm(self) -> None:
        self._disarm()
        self._receive_timer = self.loop.call_later(self._receive_timeout_seconds, self._on_receive_timeout)

    def _disarm(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _on_receive_timeout(self) -> None:
        num_new_bytes = self._num_body_bytes - self._num_body_bytes_at_timer
        if self.flow.read_paused or num_new_bytes >= MIN_BODY_BYTES_PER_TIMEOUT:
            self._num_body_bytes_at_timer = self._num_body_bytes
            self._arm()
        elif self._phase is _Phase.RECEIVED:
            self.transport.close()
        else:
            self._refuse(
                RequestTimeoutError(
                    f"the {self._phase.value} did not arrive within "
                    f"server.header_timeout_seconds, {self._receive_timeout_seconds:g}: send faster"
                )
            )

    def _refuse(self, error: RequestError) -> None:
        """Answer with an error, unless another answer has started, and close the connection."""
        self._disarm()
        cycle = self._open_cycle()
        if self._phase is _Phase.BODY:
            is_unanswered = cycle is not None and not cycle.response_started
        else:
            # A request has no cycle until its headers are complete: an open one is the previous request's.
            is_unanswered = cycle is None
        if is_unanswered:
            self.transport.write(_response(error))
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


class _Unframed:
    """An app for HTTP/1.0: a body without content-length is sent as it is, and ends with the connection."""

    def __init__(self, app: ASGIApp, cycle: RequestResponseCycle) -> None:
        self._app = app
        self._cycle = cycle
        self._is_unframed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._is_unframed = all(name.lower() != b"content-length" for name, _ in message["headers"])
                if self._is_unframed:
                    self._cycle.chunked_encoding = False
            elif self._is_unframed:
                # uvicorn holds every piece against the length that is left.
                self._cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, send_unframed)


def _without_http2_offer(data: bytes) -> bytes:
    """Rename the header that offers HTTP/2, because the parser would then read the request's body as HTTP/2.

    It is found only if the headers arrive in one piece, as they do from Java's HttpClient, which sends it.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _HTTP2_OFFER.sub(b"\r\nx-offer:", head + end) + rest if end else data


def _headers_too_large() -> HeadersTooLargeError:
    return HeadersTooLargeError(
        f"the headers exceed {MAX_HEADER_BYTES} bytes or number more than {MAX_NUM_HEADERS}: send fewer"
    )


def _response(error: RequestError) -> bytes:
    request_id = uuid.uuid4().hex
    content = json.dumps(error_object(error, request_id)).encode()
    logger.info("refused with %d before its route was known request_id=%s", error.status, request_id)
    head = (
        f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(content)}\r\n"
        f"x-request-id: {request_id}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + content
