"""`scripts/bench --peers`: starts the servers, runs every part, and makes one document of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmark.process import started

from peers import loads
from peers.ceiling import ceiling
from peers.charts import draw_charts
from peers.growth import growth
from peers.lookup import lookup
from peers.page import page
from peers.places import FIGURES, PAGE
from peers.process_tree import Peak, idle_cpu_fraction, pss_bytes
from peers.servers import (
    KV_NUMBERS_PER_TOKEN,
    SLOTS,
    Server,
    all_servers,
    kv_bytes,
    quickstarts,
    version_of,
)
from peers.sizes import FULL, QUICK, Sizes
from peers.starts import READY_SECONDS, cold_starts, side_of
from peers.turns import Side, in_turns, say
from vinfer.errors import AnswerError

PARTS = ("start", "memory", "fixed", "drawn", "lone", "shared", "beside", "growth", "ceiling", "lookup")
_KEPT = ("servers", "absent", "parts", "measured")
_IDLE_SECONDS = 3.0
# A server is started beside the others only while this much memory is free.
_FREE_BYTES = 4 << 30

Document = dict[str, Any]


def names_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of names such as `fixed,drawn`, for argparse."""

    def names(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return found

    return names


def run_peers(
    peers: Sequence[str],
    *,
    is_quick: bool,
    parts: Sequence[str],
    vinfer: str | None,
    before: str | None,
    machine: Mapping[str, Any],
) -> Document:
    """Measure the peers and return the document, after the page is written.

    Args:
        before: the `vinfer` command of an older checkout, for starts and the host's ceiling. It lies in an
            environment of that checkout, such as `.venv/run/bin/vinfer`.

    Raises:
        AnswerError: vinfer itself cannot be measured.
    """
    # Servers end with this process also when it is asked to end.
    signal.signal(signal.SIGTERM, _leave)
    sizes = QUICK if is_quick else FULL
    servers, absent = all_servers(peers, vinfer)
    kept = _kept()
    found = {server.name: _facts(server) for server in servers}
    document: Document = {
        "machine": machine,
        "conditions": {
            "slots": SLOTS,
            "kv_bytes": kv_bytes(),
            "kv_tokens": kv_bytes() // (4 * KV_NUMBERS_PER_TOKEN),
        },
        "servers": {**kept["servers"], **found},
        "absent": {**{name: why for name, why in kept["absent"].items() if name not in found}, **absent},
        "parts": kept["parts"],
        "measured": kept["measured"],
    }
    run = _Run(servers, sizes, document)
    if "start" in parts:
        pair = quickstarts(servers[0].command[0], before) if before else []
        run.keep("start", cold_starts([*servers, *pair], sizes.cold_starts))
    run.beside_each_other([part for part in parts if part in _BESIDE])
    if "ceiling" in parts:
        run.keep("ceiling", ceiling(servers[0].command[0], before, sizes))
    if "lookup" in parts:
        run.keep("lookup", lookup(servers[0].command[0], sizes))
    if not is_quick:
        draw_charts(document)
        PAGE.write_text(page(document))
    return document


class _Run:
    """The servers of one run, and the document that it fills."""

    def __init__(self, servers: Sequence[Server], sizes: Sizes, document: Document) -> None:
        self._servers = servers
        self._sizes = sizes
        self._document = document

    def keep(self, part: str, figures: Any) -> None:
        self._document["parts"][part] = figures
        self._document["measured"][part] = {
            "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
            "turns": self._sizes.turns_of(part),
            "load_average_1min": os.getloadavg()[0],
        }
        if self._sizes is FULL:
            kept = json.dumps({name: self._document[name] for name in _KEPT}, indent=1)
            FIGURES.write_text(f"{kept}\n")

    def beside_each_other(self, parts: Sequence[str]) -> None:
        """Start every server, and run parts that compare them, one server under load at a time."""
        if not parts:
            return
        with contextlib.ExitStack() as stack:
            sides = []
            for server in self._servers:
                try:
                    sides.append(self._started(server, stack))
                except AnswerError as error:
                    self._document["absent"][server.name] = error.message
                    say(f"{server.name}: {error.message}")
            for part in parts:
                self.keep(part, asyncio.run(_BESIDE[part](sides, self._sizes)))

    def _started(self, server: Server, stack: contextlib.ExitStack) -> Side:
        if (free := _available_bytes()) < _FREE_BYTES:
            raise AnswerError(f"not started beside the others: {free / (1 << 30):.1f} GiB of memory are free")
        served = stack.enter_context(
            started(
                server.command,
                ready_path=server.ready_path,
                timeout_seconds=READY_SECONDS,
                environment=server.variables,
            )
        )
        say(f"{server.name} is ready at {served.url}")
        return side_of(server, served)


async def _memory(sides: Sequence[Side], sizes: Sizes) -> dict[str, Any]:
    """Sample the memory of each server during a load that no other figure counts."""

    async def measure(side: Side, _: int) -> dict[str, float]:
        pid = side.served.pid
        idle = await asyncio.to_thread(idle_cpu_fraction, pid, _IDLE_SECONDS)
        peak = Peak()
        streams = 1 if side.server.is_slow else max(sizes.fixed)
        with peak.sampling(pid):
            await loads.throughput(loads.FIXED_TOKENS, streams, 1, sizes.memory_tokens)(side, 0)
            if not side.server.is_slow:
                await loads.lone(loads.LONG_TOKENS, 1)(side, 0)
        return {
            "peak_bytes": peak.num_bytes,
            "after_bytes": pss_bytes(pid),
            "idle_cpu_fraction": idle,
        }

    return await in_turns("memory", sides, 1, measure)


def _by_streams(part: str, tokens: int | tuple[int, int]) -> Callable[..., Any]:
    async def run(sides: Sequence[Side], sizes: Sizes) -> dict[str, Any]:
        measured = {}
        for streams in getattr(sizes, part):
            able = [side for side in sides if not side.server.is_slow or streams in sizes.slow]
            rounds = sizes.rounds_of(streams)
            measured[f"{streams}"] = await in_turns(
                f"{part}, {streams} streams", able, sizes.repeats, loads.throughput(tokens, streams, rounds)
            )
        return measured

    return run


async def _lone(sides: Sequence[Side], sizes: Sizes) -> dict[str, Any]:
    measured = {}
    for tokens, requests in ((loads.FIXED_TOKENS, sizes.lone), (loads.LONG_TOKENS, sizes.lone_long)):
        able = [side for side in sides if not side.server.is_slow or tokens == loads.FIXED_TOKENS]
        measured[f"{tokens}"] = await in_turns(
            f"lone {tokens}", able, sizes.repeats, loads.lone(tokens, requests)
        )
    return measured


async def _shared(sides: Sequence[Side], sizes: Sizes) -> dict[str, Any]:
    return await in_turns("shared prefix", _quick_ones(sides), sizes.repeats, loads.shared)


async def _beside(sides: Sequence[Side], sizes: Sizes) -> dict[str, Any]:
    return await in_turns("long prompt beside 8 streams", _quick_ones(sides), sizes.repeats, loads.beside(8))


async def _growth(sides: Sequence[Side], sizes: Sizes) -> dict[str, Any]:
    return await growth(_quick_ones(sides), sizes)


def _quick_ones(sides: Sequence[Side]) -> list[Side]:
    return [side for side in sides if not side.server.is_slow]


_BESIDE: Mapping[str, Callable[..., Any]] = {
    "memory": _memory,
    "fixed": _by_streams("fixed", loads.FIXED_TOKENS),
    "drawn": _by_streams("drawn", loads.DRAWN_TOKENS),
    "lone": _lone,
    "shared": _shared,
    "beside": _beside,
    "growth": _growth,
}


def command_of(server: Server) -> str:
    """Return a server's command with file names instead of paths, which are of one machine."""
    variables = (f"{name}={value}" for name, value in server.variables.items() if "/" not in value)
    words = (word.rpartition("/")[2] for part in server.command for word in part.split())
    return " ".join((*variables, *words))


def _facts(server: Server) -> dict[str, Any]:
    return {
        "title": server.title,
        "command": command_of(server),
        "packages": version_of(server.name),
        "planned_bytes": server.planned_bytes,
    }


def _kept() -> dict[str, dict[str, Any]]:
    """Return what earlier runs kept of the parts that they measured."""
    kept: dict[str, dict[str, Any]] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return {name: kept.get(name, {}) for name in _KEPT}


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
