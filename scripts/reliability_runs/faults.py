"""Signals, deaths, hangs, exhausted descriptors, and starts that must fail."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from reliability_runs.client import at_most, completion, post
from reliability_runs.figure import Figure, Run, judged
from reliability_runs.server import TinyServer, tiny_server, wait_until
from vinfer.bench.client import Endpoint, Record, complete
from vinfer.errors import AnswerError

DRAIN_SECONDS = 20
PAUSE_SECONDS = 5
_BOTH = [{"name": "tiny"}, {"name": "other"}]


class _Load:
    """Streams in the background, and how they ended."""

    def __init__(self, port: int, num: int, **fields: Any) -> None:
        self.ends: Counter[str] = Counter()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all(port, num, fields)))
        self._thread.start()

    async def _all(self, port: int, num: int, fields: dict[str, Any]) -> None:
        endpoint = Endpoint(f"http://127.0.0.1:{port}", "tiny", None, is_chat=False)
        await at_most(num, [functools.partial(self._one, endpoint, fields) for _ in range(num)])

    async def _one(self, endpoint: Endpoint, fields: dict[str, Any]) -> None:
        wanted = {"ignore_eos": True, "temperature": 0, "max_tokens": 400, **fields}
        try:
            record = await complete(endpoint, endpoint.body("Once", **wanted))
        except AnswerError as error:
            self.ends["cut" if "error" in str(error) else "refused"] += 1
        else:
            assert isinstance(record, Record)
            self.ends["whole"] += 1

    def end(self) -> Counter[str]:
        self._thread.join(120)
        return self.ends


def signals(run: Run) -> list[Figure]:
    """Measure figure 9."""
    return [_drain(run), _second_signal(run), _drain_of_nothing(run)]


def _drain(run: Run) -> Figure:
    with tiny_server(run.folder / "drain", server={"drain_timeout_seconds": DRAIN_SECONDS}) as server:
        load = _Load(server.port, 16)
        wait_until(lambda: server.metrics()["num_requests_running"] >= 8, "load")
        children = psutil.Process(server.process.pid).children(recursive=True)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        not_ready = wait_until(lambda: server.status("/readiness") in (503, 0), "503")
        refused = _refusal_while_draining(server)
        ends = load.end()
        code = server.wait()
        seconds = time.monotonic() - began
        orphans = [child for child in children if child.is_running()]
    return judged(
        "9",
        f"SIGTERM under load: /readiness 503 at once, new requests 503, streams end whole, exit 0 within "
        f"{DRAIN_SECONDS} + 2 s, no orphans",
        f"503 after {not_ready:.2f} s; new request: {refused}; {ends['whole']} of 16 streams whole; exit "
        f"{code} after {seconds:.1f} s; {len(orphans)} orphans",
        ends == Counter(whole=16) and code == 0 and seconds < DRAIN_SECONDS + 2 and not orphans,
    )


def _refusal_while_draining(server: TinyServer) -> str:
    """Return what a new request gets: a refusal, or no connection once the drain is over."""
    try:
        answer = server.complete(max_tokens=1)
    except httpx.TransportError:
        return "no connection: already over"
    return f"{answer.status_code} with Connection: {answer.headers.get('connection')}"


@contextlib.contextmanager
def _hanging(folder: Path, *, drain_timeout_seconds: int) -> Iterator[TinyServer]:
    """Yield a server whose step hangs while requests wait for it."""
    with tiny_server(folder, server={"drain_timeout_seconds": drain_timeout_seconds}) as server:
        server.fail("engine-tiny/decode hang")
        load = _Load(server.port, 4)
        # Those of a step that hangs still count as waiting.
        wait_until(lambda: not server.is_idle(), "load")
        yield server
        load.end()


def _second_signal(run: Run) -> Figure:
    with _hanging(run.folder / "second", drain_timeout_seconds=60) as server:
        server.signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.log, "a drain")
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        code = server.wait()
        seconds = time.monotonic() - began
    return judged(
        "9, twice",
        "a second SIGTERM while a step hangs: gone within 2 s, exit 143",
        f"exit {code} after {seconds:.2f} s",
        code == 143 and seconds < 2,
    )


def _drain_of_nothing(run: Run) -> Figure:
    with _hanging(run.folder / "zero", drain_timeout_seconds=0) as server:
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        code = server.wait()
        seconds = time.monotonic() - began
    return judged(
        "9, timeout 0",
        "drain_timeout_seconds 0 while a step hangs: gone within 4 s, exit 1, since requests were cut",
        f"exit {code} after {seconds:.2f} s",
        code == 1 and seconds < 4,
    )


def deaths(run: Run) -> list[Figure]:
    """Measure figure 10: each kind of death of one of two models, and a hang."""
    found = []
    with tiny_server(run.folder / "deaths", models=_BOTH) as server:
        for kind in ("raise", "exit", "oom"):
            server.fail(f"engine-tiny/decode {kind}")
            failed = server.complete(max_tokens=40)
            unready = wait_until(lambda: server.status("/readiness") == 503, "503")
            other = server.complete(model="other").status_code
            healed = wait_until(lambda: server.status("/readiness") == 200, "a new engine")
            again = server.complete().status_code
            tracebacks = server.log.count("Traceback")
            found.append((kind, failed.status_code, unready, other, healed, again))
        samples = server.metrics()
    named = "; ".join(
        f"{kind}: {status}, 503 after {unready:.2f} s, other model {other}, healed after {healed:.1f} s, "
        f"then {again}"
        for kind, status, unready, other, healed, again in found
    )
    statuses = {(status, other, again) for _, status, _, other, _, again in found}
    return [
        judged(
            "10",
            "exception, SystemExit and out-of-memory in a step: 500, readiness 503, the other model serves, "
            "the engine is restarted, one traceback each, no compile",
            f"{named}; {tracebacks} tracebacks, {samples['post_ready_compiles_total']:.0f} compiles",
            statuses == {(500, 200, 200)} and tracebacks == 3 and not samples["post_ready_compiles_total"],
        ),
        _end(run, "10, repeated", "raise*", {}, [{"max_restarts": 0}], "no restart left"),
        _end(run, "10, hang", "hang", {"step_timeout_seconds": 2}, None, "a hang, step_timeout_seconds 2"),
    ]


def _end(
    run: Run, number: str, kind: str, config: dict[str, Any], models: list[dict[str, Any]] | None, what: str
) -> Figure:
    with tiny_server(run.folder / number.replace(", ", "-"), server=config, models=models) as server:
        server.fail(f"engine-tiny/decode {kind}")
        began = time.monotonic()
        status = server.complete(max_tokens=40).status_code
        failed = time.monotonic() - began
        unready = server.status("/readiness")
        code = server.wait()
        seconds = time.monotonic() - began - failed
    return judged(
        number,
        f"{what}: the request gets 500, /readiness 503 first, then exit 1 within 5 s",
        f"{status} after {failed:.1f} s, /readiness {unready}, exit {code} {seconds:.1f} s later",
        (status, unready, code) == (500, 503, 1) and seconds < 5,
    )


def descriptors(run: Run) -> Figure:
    """Measure figure 12: no descriptors left, then some again."""
    with tiny_server(run.folder / "descriptors", max_files=128) as server:
        sockets = []
        for _ in range(200):
            sock = socket.socket()
            sock.settimeout(2)
            sock.connect(("127.0.0.1", server.port))
            sockets.append(sock)
        process = psutil.Process(server.process.pid)
        process.cpu_percent()
        time.sleep(2)
        busy = process.cpu_percent()
        for sock in sockets:
            sock.close()
        recovered = wait_until(lambda: server.status("/readiness") == 200, "an answer")
        status = server.complete().status_code
    return judged(
        "12",
        "descriptors exhausted (128, 200 connections): no busy loop, and it recovers",
        f"{busy:.0f}% CPU meanwhile, answers {recovered:.1f} s after they are free, then {status}",
        status == 200 and busy < 50,
    )


def failed_starts(run: Run) -> Figure:
    """Measure the rest of figure 12: exit codes of starts that cannot succeed."""
    with tiny_server(run.folder / "healthy") as healthy:
        key = healthy.complete().json()["system_fingerprint"]
        bundle = next(path for path in (_cache() / "bundles").iterdir() if path.name == key)
        truncated = run.folder / "truncated"
        shutil.copytree(bundle, truncated)
        weights = next(iter(sorted((truncated / "weights").iterdir())))
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        cases = {
            "port in use": ({"port": healthy.port}, {}, 6),
            "truncated weights": ({}, {"source": str(truncated), **_AS_BUILT}, 5),
            "no checkpoint": ({}, {"source": str(run.folder / "nothing")}, 3),
            "unknown key": ({"prot": 1}, {}, 2),
        }
        found = {
            name: _failed_start(run.folder / name.replace(" ", "-"), *settings)
            for name, settings in cases.items()
        }
    named = "; ".join(
        f"{name}: exit {code} after {seconds:.1f} s" for name, (code, seconds, _) in found.items()
    )
    return judged(
        "12, starts",
        "port in use, truncated weights, no checkpoint, wrong key: their exit code, one line, no traceback",
        named,
        all(is_right for _, _, is_right in found.values()),
    )


_AS_BUILT = {"max_model_len": None, "num_slots": 16, "precompile": [{}]}


def _failed_start(
    folder: Path, config: dict[str, Any], model: dict[str, Any], code: int
) -> tuple[int, float, bool]:
    port = int(config.pop("port", 0))
    began = time.monotonic()
    with tiny_server(folder, server=config, models=[model], port=port, is_ready=False) as server:
        found = server.wait()
        log = server.log
    return found, time.monotonic() - began, found == code and "Traceback" not in log


def _cache() -> Path:
    from tiny.checkpoints import CACHE

    return Path(CACHE) / "reliability-cache"


def pause(run: Run) -> Figure:
    """Measure figure 15: the process stands still for some seconds."""
    with tiny_server(run.folder / "pause", server={"step_timeout_seconds": 60}) as server:
        load = _Load(server.port, 8)
        wait_until(lambda: server.metrics()["num_requests_running"] >= 4, "load")
        server.signal(signal.SIGSTOP)
        time.sleep(PAUSE_SECONDS)
        server.signal(signal.SIGCONT)
        ends = load.end()
        status = server.complete().status_code
        answers = asyncio.run(at_most(4, [functools.partial(post, server.port, completion())] * 4))
    return judged(
        "15",
        f"SIGSTOP for {PAUSE_SECONDS} s: streams go on, nothing times out; a jump of the clock was not made",
        f"{json.dumps(ends)} of 8 streams, then {status}",
        ends == Counter(whole=8) and status == 200 and {answer.status for answer in answers} == {200},
    )
