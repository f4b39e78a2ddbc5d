"""The command line of scripts/bench: chooses server and loads, prints one table and one JSON line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import platform
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from peers.main import PARTS, names_of, run_peers
from peers.servers import PEERS

from benchmark.beside_images import run_load
from benchmark.process import ROOT, serving, vinfer_command
from benchmark.shared_prefix import (
    SharedFigures,
    median_of_shared,
    run_shared,
    shared_lines,
    shared_ratios,
)
from vinfer.bench.client import Endpoint, fetch, first_model
from vinfer.bench.figures import Figures, median_of
from vinfer.bench.load import Prompts, negotiate
from vinfer.errors import AnswerError

SAMPLED = {"temperature": 0.7, "top_p": 0.95, "top_k": 50}
GREEDY = {"temperature": 0}
# Tokens of a warm-up request.
WARM_UP_TOKENS = 8

Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Side:
    """A server and its sampling parameters; two sides are measured alternately and compared."""

    url: str
    sampling: dict[str, Any]
    title: str
    image_streams: int = 0


def main(description: str | None) -> int:
    """Run the command line; return the exit code."""
    arguments = _parse(description)
    try:
        report = _measure(arguments)
    except AnswerError as error:
        sys.stderr.write(f"bench: error: {error}\n")
        return 1
    facts = {} if arguments.peers else {"machine": machine_facts(), "load": _load_facts(arguments)}
    print(json.dumps({**facts, **report}))
    return 0


def _parse(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", nargs="?", type=Path, default=ROOT / "configs/smollm2.yaml", help="config to serve")
    add("--url", help="measure this running server, without a cold start")
    add("--pair", metavar="'URL_A URL_B'", help="measure two running servers alternately and print A / B")
    add("--serve", metavar="COMMAND", help="start another server; {port} stands for the port")
    add("--ready-path", default="/readiness", help="answers 200 once the server is ready (%(default)s)")
    add("--ready-timeout", type=float, default=1800, metavar="SECONDS", help="(%(default)s)")
    add("--vinfer", metavar="PATH", help="path of the vinfer command")
    add(
        "--cold-starts",
        type=int,
        default=3,
        metavar="N",
        help="timed starts after the first one (%(default)s)",
    )
    add("--streams", default="1,4,16", metavar="N,N", help="concurrent requests (%(default)s)")
    add("--rounds", type=int, default=3, metavar="N", help="requests per stream and run (%(default)s)")
    add("--repeats", type=int, default=3, metavar="N", help="runs per load; reports the median (%(default)s)")
    add("--prompt-words", type=int, default=61, metavar="N", help="(%(default)s: 67 tokens for SmolLM2)")
    add("--new-tokens", type=int, default=64, metavar="N", help="tokens per answer (%(default)s)")
    add("--sampled", action="store_true", help=f"sample with {SAMPLED} instead of greedily")
    add(
        "--against-greedy",
        action="store_true",
        help=f"measure {SAMPLED} and greedy alternately on one server and print sampled / greedy",
    )
    add(
        "--beside-images",
        type=int,
        default=0,
        metavar="N",
        help="measure chat with and without N streams that send a new image each time, alternately",
    )
    add(
        "--shared-prefix",
        action="store_true",
        help="measure requests with one system prompt and a chat of six turns instead; also with --pair",
    )
    add(
        "--peers",
        nargs="?",
        const=",".join(PEERS),
        type=names_of(PEERS),
        metavar="NAMES",
        help=f"instead: measure vinfer beside other servers, which it installs; some of {', '.join(PEERS)}",
    )
    add("--quick", action="store_true", help="with --peers: fewer loads and repeats, and no report")
    add(
        "--parts",
        default=",".join(PARTS),
        type=names_of(PARTS),
        metavar="NAMES",
        help=f"with --peers: some of {', '.join(PARTS)}",
    )
    add(
        "--before",
        metavar="PATH",
        help="with --peers: vinfer of an older checkout, for starts and the ceiling",
    )
    add("--chat", action="store_true", help="use /v1/chat/completions instead of /v1/completions")
    add("--model", help="model id (default: the first in /v1/models)")
    add("--api-key", help="bearer token")
    arguments = parser.parse_args()
    if bool(arguments.pair) + arguments.against_greedy + bool(arguments.beside_images) > 1:
        parser.error("--pair, --against-greedy and --beside-images exclude each other: use one of them")
    # Images are parts of messages.
    arguments.chat |= bool(arguments.beside_images)
    return arguments


def _measure(arguments: argparse.Namespace) -> Report:
    if arguments.peers:
        return run_peers(
            arguments.peers,
            is_quick=arguments.quick,
            parts=arguments.parts,
            vinfer=arguments.vinfer,
            before=arguments.before,
            machine=machine_facts(),
        )
    if arguments.pair:
        sampling = SAMPLED if arguments.sampled else GREEDY
        first, second = arguments.pair.split()
        if arguments.shared_prefix:
            return _shared(arguments, [Side(url, GREEDY, url) for url in (first, second)])
        return _compared(arguments, [Side(url, sampling, url) for url in (first, second)])
    if arguments.url:
        return _of_server(arguments, arguments.url, arguments.url)
    return _start_and_measure(arguments)


def _of_server(arguments: argparse.Namespace, url: str, title: str) -> Report:
    """Measure one server; alternately sampled and greedy if requested."""
    if arguments.shared_prefix:
        return _shared(arguments, [Side(url, GREEDY, title)])
    if arguments.against_greedy:
        sides = [(SAMPLED, "sampled"), (GREEDY, "greedy")]
        return _compared(arguments, [Side(url, sampling, f"{title} {name}") for sampling, name in sides])
    sampling = SAMPLED if arguments.sampled else GREEDY
    if arguments.beside_images:
        numbers = [(arguments.beside_images, "with images"), (0, "alone")]
        return _compared(arguments, [Side(url, sampling, f"{title} {name}", n) for n, name in numbers])
    side = Side(url, sampling, title)
    return _table(title, asyncio.run(_runs(arguments, [side]))[0])


def _start_and_measure(arguments: argparse.Namespace) -> Report:
    command = (
        shlex.split(arguments.serve)
        if arguments.serve
        else vinfer_command(arguments.config, arguments.vinfer)
    )
    starts = []
    # The first start may need a build, and the page cache is cold.
    for number in range(arguments.cold_starts + 1):
        with serving(command, ready_path=arguments.ready_path, timeout_seconds=arguments.ready_timeout) as (
            url,
            ready_seconds,
        ):
            starts.append(ready_seconds)
            _say(f"start {number}: ready after {ready_seconds:.1f} s")
            if number == arguments.cold_starts:
                report = _of_server(arguments, url, shlex.join(command))
                counters = _vinfer_counters(url)
    cold = statistics.median(starts[1:] or starts)
    print(f"first start {starts[0]:.1f} s, cold start {cold:.1f} s (median of {len(starts[1:] or starts)})")
    return {
        "command": shlex.join(command),
        "first_start_seconds": starts[0],
        "cold_start_seconds": cold,
        **report,
        **({"counters": counters} if counters else {}),
    }


def _compared(arguments: argparse.Namespace, sides: list[Side]) -> Report:
    runs = asyncio.run(_runs(arguments, sides))
    a, b = (
        {"url": side.url, "sampling": side.sampling, **_table(side.title, figures)}
        for side, figures in zip(sides, runs, strict=True)
    )
    ratios = []
    for of_a, of_b in zip(*runs, strict=True):
        ratio = {
            "tokens_per_second": of_a.tokens_per_second / of_b.tokens_per_second,
            **{
                f"{name}_p50": getattr(of_a, name).p50 / max(getattr(of_b, name).p50, 1e-9)
                for name in ("ttft_seconds", "itl_seconds", "e2e_seconds")
            },
            "itl_seconds_p99": of_a.itl_seconds.p99 / max(of_b.itl_seconds.p99, 1e-9),
        }
        ratios.append({"streams": of_a.streams, **ratio})
        print(
            f"A / B at {of_a.streams}: " + ", ".join(f"{name} {value:.2f}" for name, value in ratio.items())
        )
    return {"a": a, "b": b, "ratios": ratios}


def _shared(arguments: argparse.Namespace, sides: list[Side]) -> Report:
    """Measure the loads with shared beginnings on the sides alternately."""
    figures = asyncio.run(_shared_runs(arguments, sides))
    for side, of_side in zip(sides, figures, strict=True):
        print(shared_lines(side.title, of_side))
    report: Report = {
        "shared_prefix": [
            {"url": side.url, **dataclasses.asdict(of_side)}
            for side, of_side in zip(sides, figures, strict=True)
        ]
    }
    if len(sides) > 1:
        report["ratios"] = shared_ratios(*figures)
        print("A / B: " + ", ".join(f"{name} {value:.2f}" for name, value in report["ratios"].items()))
    return report


async def _shared_runs(arguments: argparse.Namespace, sides: list[Side]) -> list[SharedFigures]:
    runs: list[list[SharedFigures]] = [[] for _ in sides]
    endpoints = [_endpoint(side, arguments) for side in sides]
    dialects = [
        await negotiate(endpoint, Prompts((arguments.prompt_words,) * 2, seed=0)) for endpoint in endpoints
    ]
    for repeat in range(arguments.repeats + 1):
        for of_side, side, endpoint, dialect in zip(runs, sides, endpoints, dialects, strict=True):
            run = await run_shared(endpoint, {**side.sampling, **dialect})
            # The first one warms up.
            if repeat:
                of_side.append(run)
            _say(f"{side.title} run {repeat}: {run.wall_seconds:.2f} s")
    return [median_of_shared(of_side) for of_side in runs]


def _endpoint(side: Side, arguments: argparse.Namespace) -> Endpoint:
    url = side.url.rstrip("/").removesuffix("/v1")
    model = arguments.model or first_model(url, api_key=arguments.api_key)
    return Endpoint(url, model, arguments.api_key, arguments.chat)


async def _runs(arguments: argparse.Namespace, sides: list[Side]) -> list[list[Figures]]:
    """Measure every load on the sides alternately; return the medians by side and load."""
    endpoints = [_endpoint(side, arguments) for side in sides]
    prompts = Prompts((arguments.prompt_words,) * 2, seed=0)
    dialects = [await negotiate(endpoint, prompts) for endpoint in endpoints]
    loads = [int(text) for text in arguments.streams.split(",")]
    runs: list[list[list[Figures]]] = [[[] for _ in loads] for _ in sides]
    for place, streams in enumerate(loads):
        for side, endpoint, dialect in zip(sides, endpoints, dialects, strict=True):
            fields = {**side.sampling, **dialect, "max_tokens": WARM_UP_TOKENS}
            await run_load(endpoint, prompts, streams=streams, rounds=1, fields=fields)
        for repeat in range(arguments.repeats):
            for number, (side, endpoint, dialect) in enumerate(zip(sides, endpoints, dialects, strict=True)):
                fields = {**side.sampling, **dialect, "max_tokens": arguments.new_tokens}
                run = await run_load(
                    endpoint,
                    prompts,
                    streams=streams,
                    rounds=arguments.rounds,
                    fields=fields,
                    image_streams=side.image_streams,
                )
                runs[number][place].append(run)
                rate = f"{run.tokens_per_second:.1f} tokens/s"
                _say(f"{side.title} {streams} streams, run {repeat + 1}: {rate}")
    return [[median_of(repeats) for repeats in of_side] for of_side in runs]


def _table(title: str, runs: list[Figures]) -> Report:
    """Print one server's figures; return them for the JSON line."""
    print(f"\n{title}")
    print(f"{'streams':>7} {'tokens/s':>9} {'TTFT p50':>9} {'p99':>7} {'ITL p50':>9} {'p99':>7}", end="")
    print(f" {'gap p50':>8} {'p99':>7} {'e2e p50':>9} {'p99':>7}   (milliseconds)")
    for run in runs:
        cells = [run.ttft_seconds, run.itl_seconds, run.chunk_gap_seconds, run.e2e_seconds]
        times = "".join(f" {spread.p50 * 1000:9.0f} {spread.p99 * 1000:7.0f}" for spread in cells)
        print(f"{run.streams:7d} {run.tokens_per_second:9.1f}{times}")
    return {"runs": [dataclasses.asdict(run) for run in runs]}


def _vinfer_counters(url: str) -> dict[str, float]:
    """Return the counters of a vinfer server; empty for another server."""
    try:
        lines = fetch(f"{url}/metrics").decode().splitlines()
    except AnswerError:
        return {}
    wanted = ("post_ready_compiles", "num_decode_dispatches", "num_overlapped_dispatches")
    counters: dict[str, float] = {}
    for line in lines:
        with contextlib.suppress(ValueError):
            name, value = line.rsplit(" ", 1)
            short = name.split("{")[0].removeprefix("vinfer:").removesuffix("_total")
            if short in wanted:
                counters[short] = counters.get(short, 0) + float(value)
    return counters


def _load_facts(arguments: argparse.Namespace) -> Report:
    return {
        "sampling": SAMPLED if arguments.sampled or arguments.against_greedy else GREEDY,
        "new_tokens": arguments.new_tokens,
        "rounds": arguments.rounds,
        "repeats": arguments.repeats,
        "route": "chat" if arguments.chat else "completions",
    }


def machine_facts() -> Report:
    return {
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "load_average_1min": os.getloadavg()[0],
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
