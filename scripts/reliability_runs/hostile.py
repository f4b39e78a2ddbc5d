"""Bodies that cost much, and clients that are slow: what everyone else sees meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reliability_runs.client import Answer, at_most, completion, post, probe_while, request_bytes, send
from reliability_runs.figure import Figure, Run, judged, milliseconds, percentile, skipped
from reliability_runs.server import TinyServer, tiny_server, wait_until

HEADER_SECONDS = 3
NUM_SLOW = 200
PROBED_SECONDS = 2.0
"""Each body is sent again and again for so long."""
MIB = 2**20


def _text(num_bytes: int) -> str:
    return ("Some words of a text. " * (num_bytes // 22 + 1))[:num_bytes]


def _schema(num_properties: int) -> dict[str, Any]:
    names = [f"property_{i}" for i in range(num_properties)]
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}


def _chat(messages: Any, **fields: Any) -> bytes:
    body = {"model": "tiny", "messages": messages, "max_tokens": 1, **fields}
    return json.dumps(body, separators=(",", ":")).encode()


def bodies() -> Mapping[str, tuple[str, bytes]]:
    """Return hostile bodies by what they are: path and bytes, each within `max_body_bytes`."""
    message = {"role": "user", "content": "a"}
    completions, chat = "/v1/completions", "/v1/chat/completions"
    return {
        "a prompt of 1 MB": (completions, completion(prompt=_text(1_000_000))),
        "a prompt of 4 MB": (completions, completion(prompt=_text(4 * MIB - 4096))),
        "100,000 messages": (chat, _chat([message] * 100_000)),
        "100,000 parts": (
            chat,
            _chat([{"role": "user", "content": [{"type": "text", "text": "a"}] * 90_000}]),
        ),
        "100,000 items": (
            "/v1/responses",
            json.dumps({"model": "tiny", "input": [message] * 100_000}).encode(),
        ),
        "1,000,000 token ids": (completions, completion(prompt=[1] * 1_000_000)),
        "2,000,000 numbers as user": (chat, _chat([message], user=[1] * 2_000_000)),
        "a schema of 500 properties": (
            completions,
            completion(structured_outputs={"json": _schema(500)}, ignore_eos=False),
        ),
        "10,000 stops": (completions, completion(stop=["ab"] * 10_000)),
        "nesting of 100,000": (completions, b'{"model": ' + b"[" * 100_000),
        "a text of 4 MB to a chat": (chat, _chat([{"role": "user", "content": _text(4 * MIB - 4096)}])),
    }


def _kinds(answers: list[Answer]) -> str:
    return "/".join(sorted({str(answer.status) for answer in answers}))


def hostile_bodies(run: Run) -> list[Figure]:
    """Measure figure 6, and `/liveness` beside each hostile body."""
    with tiny_server(run.folder / "hostile") as server:
        asyncio.run(_warm(server))
        began = server.memory_bytes()
        _, idle_seconds = asyncio.run(probe_while(server.port, asyncio.sleep(2)))
        idle = milliseconds(percentile(idle_seconds, 0.99))
        found = {name: _beside(server, path, body) for name, (path, body) in bodies().items()}
        wait_until(server.is_idle, "an idle server")
        time.sleep(1)
        grown = (server.memory_bytes() - began) / MIB
        answers = server.complete().status_code
    slowest = max(seconds for seconds, _ in found.values())
    worst = [
        status for _, kinds in found.values() for status in kinds.split("/") if status >= "5" or status == "0"
    ]
    named = "; ".join(f"{name}: {kinds}, {milliseconds(seconds)}" for name, (seconds, kinds) in found.items())
    lag = max(found[name][0] for name in ("a prompt of 1 MB", "a schema of 500 properties"))
    return [
        judged(
            "6",
            "p99 of /liveness < 50 ms beside a prompt of 1 MB, and a schema of 500 properties",
            f"{milliseconds(lag)}, {idle} without; no image of 20 MB was sent: the tiny model takes none",
            lag < 0.05,
        ),
        judged(
            "hostile bodies",
            "eight at a time of any body that max_body_bytes allows: /liveness p99 < 100 ms, no 5xx",
            f"{named}; without: {idle}",
            slowest < 0.1 and not worst,
        ),
        judged(
            "memory",
            "after all of them, memory is given back (< 256 MiB more) and it answers",
            f"{grown:+.0f} MiB, then {answers}",
            grown < 256 and answers == 200,
        ),
    ]


async def _warm(server: TinyServer) -> None:
    await at_most(8, [functools.partial(post, server.port, completion())] * 16)


def _beside(server: TinyServer, path: str, body: bytes) -> tuple[float, str]:
    async def send_again_and_again() -> list[Answer]:
        calls = [functools.partial(send, server.port, "POST", path, body)] * 8
        ends = time.monotonic() + PROBED_SECONDS
        answers: list[Answer] = []
        while time.monotonic() < ends:
            answers += await at_most(8, calls)
        return answers

    answers, seconds = asyncio.run(probe_while(server.port, send_again_and_again()))
    return percentile(seconds, 0.99), _kinds(answers)


def slow_readers(run: Run) -> Figure:
    """Measure figure 8: the streams of others beside clients that read a byte per second."""
    with tiny_server(run.folder / "slow-readers") as server:

        async def throughput(*, slowly: bool) -> float:
            """Return the tokens per second of eight clients beside four others."""
            others = [asyncio.create_task(_read(server.port, slowly=slowly)) for _ in range(4)]
            began = time.monotonic()
            body = completion(max_tokens=200, stream=True)
            answers = await at_most(8, [functools.partial(post, server.port, body)] * 40)
            seconds = time.monotonic() - began
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            assert {answer.status for answer in answers} == {200}
            return 40 * 200 / seconds

        async def measure() -> tuple[float, float]:
            await throughput(slowly=False)
            alone, beside = [], []
            for _ in range(3):
                alone.append(await throughput(slowly=False))
                beside.append(await throughput(slowly=True))
            return max(alone), max(beside)

        alone, beside = asyncio.run(measure())
    return judged(
        "8",
        "four readers of 1 byte/s: the streams of others have 90% of the speed that they have beside four "
        "fast ones (best of three)",
        f"{alone:.0f} tokens/s beside fast ones, {beside:.0f} beside slow ones: {beside / alone:.0%}; how a "
        "stalled reader ends is in tests/server/http/test_http_limits.py",
        beside >= 0.9 * alone,
    )


async def _read(port: int, *, slowly: bool) -> None:
    """Read one stream, all at once or a byte per second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=64)
    try:
        writer.write(request_bytes("POST", "/v1/completions", completion(max_tokens=480, stream=True)))
        while await reader.read(1 if slowly else 2**16):
            if slowly:
                await asyncio.sleep(1)
    finally:
        writer.close()


def slow_senders(run: Run) -> list[Figure]:
    """Measure figure 13: 200 clients that never end their request."""
    wanted = (
        f"{NUM_SLOW} slow clients: a request meanwhile p99 < 1 s; their sockets are closed within the header "
        "timeout + 2 s"
    )
    config = {"header_timeout_seconds": HEADER_SECONDS}
    with tiny_server(run.folder / "slow-senders", server=config) as server:
        latency, closed = asyncio.run(_slowloris(server.port))
        tools = _slowhttptest(run.folder, server)
    return [
        judged(
            "13",
            wanted,
            f"p99 {milliseconds(latency)}, the last one closed after {closed:.1f} s of {HEADER_SECONDS} + 2",
            latency < 1 and closed < HEADER_SECONDS + 2,
        ),
        tools,
    ]


async def _slowloris(port: int) -> tuple[float, float]:
    """Return the p99 of a request's seconds, and when the last slow connection was closed."""

    async def dribble() -> float:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(OSError):
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
            end = asyncio.create_task(reader.read())
            while not end.done():
                writer.write(b"X-a: b\r\n")
                await asyncio.wait([end], timeout=0.5)
        writer.close()
        return time.monotonic() - began

    slow = [asyncio.create_task(dribble()) for _ in range(NUM_SLOW)]
    seconds = []
    while not all(task.done() for task in slow):
        seconds.append((await post(port, completion())).seconds)
        await asyncio.sleep(0.02)
    return percentile(seconds, 0.99), max([task.result() for task in slow])


def _slowhttptest(folder: Path, server: TinyServer) -> Figure:
    wanted = "slowhttptest -c 200 with -H, -B, -R and -X: a request p99 < 1 s during each attack"
    tool = shutil.which("slowhttptest")
    if tool is None:
        return skipped("13, slowhttptest", wanted, "slowhttptest is not in PATH")
    found = {}
    for attack in ("-H", "-B", "-R", "-X"):
        words = [tool, attack, "-c", "200", "-r", "100", "-l", "8", "-i", "1", "-p", "3", "-u", server.url]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        seconds = []
        while process.poll() is None:
            began = time.monotonic()
            assert server.complete(max_tokens=1).status_code == 200
            seconds.append(time.monotonic() - began)
        found[attack] = percentile(seconds, 0.99)
    named = ", ".join(f"{attack} {milliseconds(seconds)}" for attack, seconds in found.items())
    return judged("13, slowhttptest", wanted, named, max(found.values()) < 1)
