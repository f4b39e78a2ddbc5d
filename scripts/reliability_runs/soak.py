"""What grows: memory, descriptors, tasks and slots over a long mixed load, and over clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
import statistics
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from reliability_runs.client import at_most, completion, post, request_bytes
from reliability_runs.figure import Figure, Run, judged
from reliability_runs.server import TinyServer, tiny_server, wait_until

CONCURRENCY = 12
MAX_MIB_PER_MINUTE = 1.0
FEW_MIB = 8.0
"""A short soak may grow by so much in all: an allocator does not stand still."""
WARM_UP_FRACTION = 0.3
# Bytes and descriptors differ a little between two moments of rest.
FEW_FDS, FEW_TASKS = 4, 2
_SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}


def _bodies(rng: random.Random) -> bytes:
    """Return one request of the mix."""
    kind = rng.randrange(4)
    fields: dict[str, Any] = {"prompt": f"Story {rng.randrange(200)}", "max_tokens": rng.randrange(1, 48)}
    if kind == 1:
        fields |= {"stream": True}
    elif kind == 2:
        fields |= {"ignore_eos": False, "structured_outputs": {"json": _SCHEMA}}
    elif kind == 3:
        fields |= {"temperature": 1, "n": 2, "seed": rng.randrange(1000)}
    return completion(**fields)


async def _leave(port: int, body: bytes, seconds: float, *, resets: bool) -> None:
    """Send a request, and close or reset the connection a little later."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_bytes("POST", "/v1/completions", body))
    with contextlib.suppress(OSError):
        await writer.drain()
        await asyncio.sleep(seconds)
    if resets:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    del reader


async def _mixed(port: int, is_over: Callable[[int], bool]) -> Counter[int]:
    """Send the mix until it is over; -1 counts clients that left."""
    rng = random.Random(1)
    statuses: Counter[int] = Counter()
    num_begun = 0

    async def client() -> None:
        nonlocal num_begun
        while not is_over(num_begun):
            num_begun += 1
            body = _bodies(rng)
            if rng.random() < 0.2:
                await _leave(port, body, rng.random() * 0.1, resets=rng.random() < 0.5)
                statuses[-1] += 1
            else:
                statuses[(await post(port, body)).status] += 1

    await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
    return statuses


async def _sampled(
    server: TinyServer, is_over: Callable[[int], bool]
) -> tuple[Counter[int], list[tuple[float, int]]]:
    """Send the mix, and return the server's memory over time meanwhile."""
    task = asyncio.create_task(_mixed(server.port, is_over))
    memory = []
    while not task.done():
        memory.append((time.monotonic(), server.memory_bytes()))
        await asyncio.sleep(0.5)
    return task.result(), memory


def _rest(server: TinyServer) -> tuple[int, int]:
    """Return descriptors and tasks of a server without work."""
    wait_until(server.is_idle, "an idle server")
    # Its last connections are closed a moment later.
    time.sleep(1)
    return server.num_fds(), server.num_tasks()


def _soak(run: Run, number: str, wanted: str, make_is_over: Callable[[], Callable[[int], bool]]) -> Figure:
    with tiny_server(run.folder / f"soak-{number}") as server:
        asyncio.run(_mixed(server.port, lambda num: num >= 200))
        before = _rest(server)
        is_over = make_is_over()
        began = time.monotonic()
        statuses, memory = asyncio.run(_sampled(server, is_over))
        minutes = (time.monotonic() - began) / 60
        after = _rest(server)
        samples = server.metrics()
    steady = memory[int(len(memory) * WARM_UP_FRACTION) :]
    slope = 0.0
    if len(steady) > 2:
        slope = statistics.linear_regression(*zip(*steady, strict=True)).slope * 60 / 2**20
    counted = ", ".join(
        f"{count} {'left' if status < 0 else f'x {status}'}" for status, count in sorted(statuses.items())
    )
    is_flat = after[0] - before[0] <= FEW_FDS and after[1] - before[1] <= FEW_TASKS
    is_steady = slope < MAX_MIB_PER_MINUTE or slope * minutes * (1 - WARM_UP_FRACTION) < FEW_MIB
    is_free = samples["kv_cache_usage_perc"] == samples["num_requests_running"] == 0
    compiles = samples["post_ready_compiles_total"]
    return judged(
        number,
        wanted,
        f"{sum(statuses.values())} requests in {minutes:.1f} min ({counted}); memory "
        f"{memory[-1][1] / 2**20:.0f} MiB, {slope:+.2f} MiB/min after {WARM_UP_FRACTION:.0%} of the time; "
        f"descriptors {before[0]} -> {after[0]}, tasks {before[1]} -> {after[1]}; KV cache in use "
        f"{samples['kv_cache_usage_perc']:.0%}, {compiles:.0f} compiles",
        set(statuses) <= {-1, 200} and is_steady and is_flat and is_free and not compiles,
    )


def soaks(run: Run) -> list[Figure]:
    """Measure figure 5, by time and by number of requests."""

    def for_time() -> Callable[[int], bool]:
        end = time.monotonic() + run.soak_seconds
        return lambda num: time.monotonic() >= end

    flat = (
        f"memory < {MAX_MIB_PER_MINUTE:g} MiB/min or {FEW_MIB:g} MiB in all; descriptors, tasks and slots "
        "flat; no compile, no error"
    )
    return [
        _soak(run, "5", f"{run.soak_seconds:.0f} s of mixed load with clients that leave: {flat}", for_time),
        _soak(
            run,
            "soak by number",
            f"{run.soak_requests} requests: {flat}",
            lambda: lambda num: num >= run.soak_requests,
        ),
    ]


def disconnects(run: Run) -> list[Figure]:
    """Measure figure 7: slots of clients that leave, and what is left of many of them."""
    with tiny_server(run.folder / "leave", models=[{"max_queue": 256}]) as server:
        long = completion(max_tokens=480, stream=True)
        slowest = 0.0
        for resets in (False, True):
            for body in (long, completion(max_tokens=480), completion(max_tokens=100, prompt="x " * 200)):
                asyncio.run(_leave(server.port, body, 0.05, resets=resets))
                slowest = max(slowest, wait_until(server.is_idle, "a free slot"))
        aborted = server.num_outcomes("aborted")
        before, memory = _rest(server), server.memory_bytes()
        rng = random.Random(2)
        leaving = [
            functools.partial(_leave, server.port, long, rng.random() * 0.02, resets=rng.random() < 0.5)
            for _ in range(run.num_disconnects)
        ]
        asyncio.run(at_most(64, leaving))
        after = _rest(server)
        grown = (server.memory_bytes() - memory) / 2**20
        answers = server.complete().status_code
    return [
        judged(
            "7",
            "closed and reset connections, streams and whole answers, short and long prompts: slot free "
            "within 1 s",
            f"{slowest:.2f} s at most, probes included; {aborted:.0f} of 6 counted as aborted",
            slowest < 1 and aborted >= 1,
        ),
        judged(
            "7, many",
            f"{run.num_disconnects} clients that leave: descriptors, tasks and slots flat; it still answers",
            f"descriptors {before[0]} -> {after[0]}, tasks {before[1]} -> {after[1]}, memory {grown:+.1f} "
            f"MiB, then {answers}",
            after[0] - before[0] <= FEW_FDS and after[1] - before[1] <= FEW_TASKS and answers == 200,
        ),
    ]
