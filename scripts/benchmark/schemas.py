"""The command line of scripts/schemas: sends random schemas over HTTP, times grammars, writes the page.

Runs on its own event loop, in a process apart from the server; knows neither grammars nor tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from benchmark.process import ROOT, serving, vinfer_command
from benchmark.random_schemas import Schema, draw_schemas

SEED = 1
# OpenAI's defaults.
SAMPLING = {"temperature": 1, "top_p": 1}
PROMPT = "Make up an example. Keep it short."
# A grammar that gives every answer the same length, whatever the model: letters, spaces and punctuation.
NUM_COMPARED_TOKENS = 96
COMPARED_FORM = {"regex": "[A-Za-z ,.]{2000}"}
GROUP = 4
FIRST_COMPILES = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one schema: why it was refused, or how its answer ended."""

    schema: Schema
    seconds: float
    refusal: str | None = None
    finish_reason: str | None = None
    text: str = ""
    num_tokens: int = 0

    @property
    def is_valid(self) -> bool:
        try:
            return Draft202012Validator(self.schema).is_valid(json.loads(self.text))
        except ValueError:
            return False


class Server:
    """One model of a running server."""

    def __init__(self, client: httpx.AsyncClient, model: str) -> None:
        self._client = client
        self._model = model

    async def post(self, **fields: Any) -> httpx.Response:
        body = {"model": self._model, "messages": [{"role": "user", "content": PROMPT}]}
        return await self._client.post("/v1/chat/completions", json={**body, **SAMPLING, **fields})

    async def answer(self, schema: Schema, *, seed: int, max_tokens: int) -> Outcome:
        """Request an answer with this schema."""
        started = time.perf_counter()
        response = await self.post(response_format=_form(schema), seed=seed, max_tokens=max_tokens)
        seconds = time.perf_counter() - started
        content = response.json()
        if response.status_code == 400:
            return Outcome(schema, seconds, refusal=content["error"]["message"])
        response.raise_for_status()
        (choice,) = content["choices"]
        return Outcome(
            schema,
            seconds,
            finish_reason=choice["finish_reason"],
            text=choice["message"]["content"],
            num_tokens=content["usage"]["completion_tokens"],
        )


def _form(schema: Schema) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}


async def answer_all(
    server: Server, schemas: Sequence[Schema], *, streams: int, max_tokens: int
) -> list[Outcome]:
    """Request one answer per schema with `streams` concurrent requests; record each as it arrives."""
    places = iter(range(len(schemas)))
    outcomes: dict[int, Outcome] = {}

    async def one_stream() -> None:
        for place in places:
            outcomes[place] = await server.answer(schemas[place], seed=place, max_tokens=max_tokens)
            sys.stderr.write(f"{json.dumps(dataclasses.asdict(outcomes[place]))}\n")

    await asyncio.gather(*(one_stream() for _ in range(streams)))
    return [outcomes[place] for place in range(len(schemas))]


async def compile_seconds(server: Server, schemas: Sequence[Schema]) -> list[float]:
    """Return, per schema, how much slower its first one-token request is than its second."""
    gaps = []
    for schema in schemas:
        first = await server.answer(schema, seed=0, max_tokens=1)
        second = await server.answer(schema, seed=0, max_tokens=1)
        gaps.append(first.seconds - second.seconds)
    return gaps


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Mean seconds per request: for each group of a mixed run, and for a plain run."""

    constrained: float
    beside: float
    plain: float


async def cost_of_grammar(server: Server, repeats: int) -> Cost:
    """Time 4 constrained and 4 plain requests against 8 plain ones, alternately; return the medians."""
    runs: dict[str, list[float]] = {"constrained": [], "beside": [], "plain": []}
    for _ in range(repeats + 1):
        for num_constrained in (GROUP, 0):
            constrained, others = await _timed(server, num_constrained)
            if num_constrained:
                runs["constrained"].append(constrained)
                runs["beside"].append(others)
            else:
                runs["plain"].append(others)
    # The first run of each warms up.
    return Cost(**{name: statistics.median(seconds[1:]) for name, seconds in runs.items()})


async def _timed(server: Server, num_constrained: int) -> tuple[float, float]:
    async def one(place: int) -> float:
        form = {"structured_outputs": COMPARED_FORM} if place < num_constrained else {"ignore_eos": True}
        started = time.perf_counter()
        response = await server.post(seed=place, max_tokens=NUM_COMPARED_TOKENS, **form)
        response.raise_for_status()
        num_tokens = response.json()["usage"]["completion_tokens"]
        if num_tokens != NUM_COMPARED_TOKENS:
            raise ValueError(f"an answer has {num_tokens} tokens, not {NUM_COMPARED_TOKENS}: not comparable")
        return time.perf_counter() - started

    seconds = await asyncio.gather(*(one(place) for place in range(2 * GROUP)))
    constrained = seconds[:num_constrained]
    free = statistics.fmean(seconds[num_constrained:])
    return (statistics.fmean(constrained) if constrained else 0.0), free


def main(description: str | None) -> int:
    """Run the command line; return the exit code."""
    arguments = _parse(description)
    schemas = draw_schemas(arguments.count + FIRST_COMPILES, SEED)
    if arguments.url is not None:
        report = asyncio.run(_measure(arguments.url, arguments, schemas))
    else:
        command = vinfer_command(arguments.config, arguments.vinfer)
        with serving(command, ready_path="/readiness", timeout_seconds=1800) as (url, _):
            report = asyncio.run(_measure(url, arguments, schemas))
    sys.stdout.write(report.text)
    if arguments.write is not None:
        arguments.write.write_text(report.text)
    for outcome in report.wrong:
        sys.stderr.write(f"schemas: not valid: {json.dumps(outcome.schema)}: {outcome.text!r}\n")
    return 1 if report.wrong else 0


def _parse(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/schemas", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", nargs="?", type=Path, default=ROOT / "configs/smollm2.yaml", help="config to serve")
    add("--url", help="use this running server")
    add("--vinfer", metavar="PATH", help="path of the vinfer command")
    add("--count", type=int, default=1000, metavar="N", help="number of schemas (%(default)s)")
    add("--streams", type=int, default=16, metavar="N", help="concurrent requests (%(default)s)")
    add("--max-tokens", type=int, default=512, metavar="N", help="limit of each answer (%(default)s)")
    add("--repeats", type=int, default=5, metavar="N", help="alternating runs of each group (%(default)s)")
    add("--write", type=Path, metavar="FILE", help="also write the page to this file")
    return parser.parse_args()


@dataclasses.dataclass(frozen=True, slots=True)
class _Report:
    text: str
    wrong: list[Outcome]


async def _measure(url: str, arguments: argparse.Namespace, schemas: list[Schema]) -> _Report:
    async with httpx.AsyncClient(
        base_url=url, timeout=3600, limits=httpx.Limits(max_connections=64)
    ) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        server = Server(client, model)
        outcomes = await answer_all(
            server, schemas[: arguments.count], streams=arguments.streams, max_tokens=arguments.max_tokens
        )
        # Schemas that no request has used yet.
        compiles = await compile_seconds(server, schemas[arguments.count :])
        cost = await cost_of_grammar(server, arguments.repeats)
    return _report(arguments, model, outcomes, compiles, cost)


def _report(
    arguments: argparse.Namespace,
    model: str,
    outcomes: Sequence[Outcome],
    compiles: Sequence[float],
    cost: Cost,
) -> _Report:
    refused = [outcome for outcome in outcomes if outcome.refusal is not None]
    served = [outcome for outcome in outcomes if outcome.refusal is None]
    finished = [outcome for outcome in served if outcome.finish_reason == "stop"]
    wrong = [outcome for outcome in finished if not outcome.is_valid]
    lengths = sorted(outcome.num_tokens for outcome in finished)
    reasons = collections.Counter(_reason(outcome.refusal or "") for outcome in refused)
    listed = "\n".join(f"- {count}: {reason}" for reason, count in reasons.most_common()) or "- none"
    text = PAGE.format(
        count=len(outcomes),
        model=model,
        seed=SEED,
        prompt=PROMPT,
        streams=arguments.streams,
        max_tokens=arguments.max_tokens,
        refused=_share(len(refused), len(outcomes)),
        finished=_share(len(finished), len(served)),
        valid=_share(len(finished) - len(wrong), len(finished)),
        median=lengths[len(lengths) // 2],
        longest=lengths[-1],
        reasons=listed,
        num_compiles=len(compiles),
        compile=1000 * statistics.median(compiles),
        slowest=1000 * max(compiles),
        tokens=NUM_COMPARED_TOKENS,
        repeats=arguments.repeats,
        plain=cost.plain,
        constrained=cost.constrained,
        constrained_ratio=cost.constrained / cost.plain,
        beside=cost.beside,
        beside_ratio=cost.beside / cost.plain,
        machine=f"{platform.machine()}, Python {platform.python_version()}",
    )
    return _Report(text, wrong)


def _reason(message: str) -> str:
    """Return a refusal without its path and without details of one schema."""
    return re.sub(r"^\S+ cannot be enforced: ", "", message).removesuffix(": change it")


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / max(whole, 1):.1%})"


PAGE = """# Structured outputs

Written by `scripts/schemas`; do not edit. {count} random JSON Schemas (Hypothesis, seed {seed}) were sent
to {model} over HTTP as `response_format`: objects, arrays, tuples and choices nested three deep, with the
keywords of OpenAI's structured outputs, many without any limit on length. There were {streams} concurrent
requests, temperature and top_p were 1, `max_tokens` was {max_tokens}, and the prompt was:
"{prompt}"

| | |
|---|---|
| refused with 400 | {refused} |
| of the rest, ended with `stop` | {finished} |
| of those, valid according to `jsonschema` | {valid} |
| tokens per completed answer, median and longest | {median}, {longest} |

Reasons for refusals:

{reasons}

## Cost

**The first request of a schema** waits for its grammar. It takes {compile:.1f} ms longer than the second
request in the median of {num_compiles} schemas, and at most {slowest:.0f} ms longer; negative values are
noise. A server's first grammar also reads the model's vocabulary, which these figures exclude.

**A batch.** 4 constrained and 4 plain requests were compared with 8 plain ones, alternately. All answers had
{tokens} tokens; the table has the median of {repeats} runs:

| requests | seconds each | relative to 8 plain |
|---|---|---|
| 8 plain | {plain:.2f} | 1 |
| 4 constrained, with 4 plain | {constrained:.2f} | {constrained_ratio:.2f} |
| 4 plain, with 4 constrained | {beside:.2f} | {beside_ratio:.2f} |

Machine: {machine}.
"""
