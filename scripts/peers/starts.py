"""Cold starts of servers in turns, one server on the machine at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from benchmark.process import Served, started

from peers.loads import FIXED_TOKENS, prompts
from peers.process_tree import Peak
from peers.servers import Server
from peers.turns import Side, Values, median, say
from vinfer.bench.client import Endpoint, first_model
from vinfer.bench.load import negotiate
from vinfer.errors import AnswerError

READY_SECONDS = 1800.0
GREEDY = {"temperature": 0}


def cold_starts(servers: Sequence[Server], repeats: int) -> dict[str, dict[str, Any]]:
    """Time starts of each server to its readiness and to its first answer, after one that is not counted.

    Returns:
        By server: `turns` and `median`; or `failure`.
    """
    turns: dict[str, list[Values]] = {server.name: [] for server in servers}
    failures: dict[str, str] = {}
    for turn in range(repeats + 1):
        for server in servers:
            if server.name in failures or turn > server.cold_starts:
                continue
            try:
                values = _start(server)
            except AnswerError as error:
                failures[server.name] = error.message
                say(f"start of {server.name}: {error.message}")
                continue
            # The first one may build or compile, and reads files that later ones find in memory.
            turns[server.name] += [values] if turn else []
            say(f"start {turn} of {server.name}: ready after {values['ready_seconds']:.2f} s")
    return {
        name: {"failure": failures[name]} if name in failures else {"turns": values, "median": median(values)}
        for name, values in turns.items()
    }


def _start(server: Server) -> Values:
    peak = Peak()
    with started(
        server.command,
        ready_path=server.ready_path,
        timeout_seconds=READY_SECONDS,
        environment=server.variables,
    ) as served:
        # The request that finds out which fields it accepts is its first.
        side_of(server, served)
        answered = time.perf_counter()
        peak.sample(served.pid)
    return {
        "ready_seconds": served.ready_seconds,
        "first_answer_seconds": answered - served.began,
        "memory_bytes": peak.num_bytes,
    }


def side_of(server: Server, served: Served) -> Side:
    """Return a running server as a side, with the fields that it accepts.

    Raises:
        AnswerError: it answers no form of the request.
    """
    endpoint = Endpoint(served.url, first_model(served.url), None, is_chat=False)
    dialect = asyncio.run(negotiate(endpoint, prompts(FIXED_TOKENS, "negotiation")))
    return Side(server, served, endpoint, {**GREEDY, **dialect})
