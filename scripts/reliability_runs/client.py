"""Requests on plain sockets, many at a time, each with its status, headers and time."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")
TIMEOUT_SECONDS = 300.0


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What came back; status 0 if the connection broke."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


def request_bytes(
    method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, *, close: bool = True
) -> bytes:
    sent = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **(headers or {})}
    if body:
        sent["Content-Type"] = "application/json"
    if close:
        sent["Connection"] = "close"
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def completion(**fields: Any) -> bytes:
    """Return the body of a completion of a fixed length."""
    body = {"model": "tiny", "prompt": "Once upon", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    return json.dumps({**body, **fields}).encode()


async def send(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Answer:
    """Send one request on a connection of its own, and read the answer to its end."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
            try:
                writer.write(request_bytes(method, path, body, headers))
                raw = await reader.read()
                while piece := await reader.read(2**20):
                    raw += piece
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return Answer(0, {}, b"", time.monotonic() - began)
    head, _, content = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    named = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
    status = int(first.split()[1]) if first.startswith("HTTP/") else 0
    return Answer(status, named, content, time.monotonic() - began)


async def post(port: int, body: bytes, **headers: str) -> Answer:
    return await send(port, "POST", "/v1/completions", body, headers)


async def at_most(num: int, calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Make all calls, so many at a time."""
    turn = asyncio.Semaphore(num)

    async def call(each: Callable[[], Awaitable[T]]) -> T:
        async with turn:
            return await each()

    return list(await asyncio.gather(*(call(each) for each in calls)))


async def probe_while(port: int, work: Awaitable[T]) -> tuple[T, list[float]]:
    """Await some work, and return its result with the seconds of each GET /liveness meanwhile.

    Another process sends these, so that they do not wait for what sends the work.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    prober = context.Process(target=_probe, args=(port, theirs), daemon=True)
    prober.start()
    # It has begun.
    await asyncio.to_thread(ours.recv)
    result = await work
    ours.send("end")
    seconds = await asyncio.to_thread(ours.recv)
    prober.join()
    return result, seconds


def _probe(port: int, pipe: Connection) -> None:
    seconds: list[float] = []
    pipe.send("begun")
    while not pipe.poll(0.01):
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("GET", "/liveness")
            is_good = connection.getresponse().status == 200
        except OSError:
            is_good = False
        finally:
            connection.close()
        seconds.append(time.monotonic() - began if is_good else TIMEOUT_SECONDS)
    pipe.send(seconds)
