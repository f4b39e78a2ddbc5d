"""One run of `vinfer bench`: its options, the loads one after another, and the file that a run is saved in.

Blocking, but for the load itself.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vinfer.bench.client import Endpoint, first_model
from vinfer.bench.figures import Figures
from vinfer.bench.load import Load, Prompts, negotiate, send_load
from vinfer.chat.conversation import parse_value
from vinfer.errors import AnswerError, ConfigError

FORMAT = 1
_WARM_UP_TOKENS = 8
_MAX_STREAMS = 1024
# What the load decides.
_OURS = frozenset(
    {"ignore_eos", "max_tokens", "messages", "model", "n", "prompt", "stream", "stream_options"}
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What is sent.

    Attributes:
        streams: numbers of concurrent requests, each of which is one load.
        requests: requests per stream.
        prompt_words: fewest and most words of a prompt; a word is about one token.
        output_tokens: length of every answer; a server that ends answers itself may send fewer.
        fields: further fields of the requests.
        is_chat: whether to use chat completions instead of completions.
    """

    streams: tuple[int, ...] = (1, 4, 16)
    requests: int = 3
    prompt_words: tuple[int, int] = (32, 128)
    output_tokens: int = 64
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_chat: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The figures of one server.

    Attributes:
        errors: how many requests failed, by message.
    """

    url: str
    model: str
    options: BenchOptions
    loads: tuple[Figures, ...]
    errors: Mapping[str, int]


def measure(
    url: str,
    options: BenchOptions,
    *,
    model: str | None,
    api_key: str | None,
    progress: Callable[[Figures], None],
) -> Run:
    """Send every load to a server and return its figures.

    Args:
        url: with or without `/v1` at its end.
        model: None for the first that the server lists.
        progress: receives the figures of each load when it has ended.

    Raises:
        AnswerError: the server cannot be reached, or refuses every form of the request.
    """
    base = url.rstrip("/").removesuffix("/v1")
    endpoint = Endpoint(base, model or first_model(base, api_key=api_key), api_key, options.is_chat)
    loads = asyncio.run(_loads(endpoint, options, progress))
    return Run(
        url=base,
        model=endpoint.model,
        options=options,
        loads=tuple(map(Figures.of, loads)),
        errors=collections.Counter(message for load in loads for message in load.failures),
    )


async def _loads(
    endpoint: Endpoint, options: BenchOptions, progress: Callable[[Figures], None]
) -> list[Load]:
    prompts = Prompts(options.prompt_words, options.seed)
    shortest = Prompts((options.prompt_words[0],) * 2, options.seed)
    fields = {"temperature": 0, **options.fields, **await negotiate(endpoint, shortest)}
    loads = []
    for streams in options.streams:

        def body(max_tokens: int) -> dict[str, Any]:
            return endpoint.body(prompts.next(), **fields, max_tokens=max_tokens)

        # The first requests of a number of streams may be slower: code is read, caches are empty.
        await send_load(endpoint, lambda: body(_WARM_UP_TOKENS), streams=streams, rounds=1)
        load = await send_load(
            endpoint, lambda: body(options.output_tokens), streams=streams, rounds=options.requests
        )
        loads.append(load)
        progress(Figures.of(load))
    return loads


def as_json(run: Run) -> dict[str, Any]:
    """Return a run as plain data, which is also what is saved; times are seconds."""
    return {"vinfer_bench": FORMAT, **dataclasses.asdict(run), "errors": dict(run.errors)}


def save(run: Run, path: Path) -> None:
    """Write a run to a file.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(as_json(run), indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--save {path}: {error.strerror}: choose another file") from None


def read(path: Path) -> Run:
    """Read a run that `save` wrote.

    Raises:
        ConfigError: the file is missing, or is none.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: give a file that vinfer bench --save wrote") from None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.pop("vinfer_bench", None) != FORMAT:
        raise ConfigError(f"{path} is no run of this vinfer bench: write one with --save")
    try:
        return TypeAdapter(Run).validate_python(content)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise ConfigError(f"{path}: {place} is wrong: write the run again with --save") from None


def require_answers(run: Run) -> None:
    """Check that no request failed.

    Raises:
        AnswerError: some did; the message counts them.
    """
    if run.errors:
        message, count = max(run.errors.items(), key=lambda item: item[1])
        raise AnswerError(
            f"{sum(run.errors.values())} requests failed, {count} of them with: {message}: send fewer "
            "--streams, or see the server's log"
        )


def parse_streams(text: str) -> tuple[int, ...]:
    """Parse numbers of streams such as `1,4,16`.

    Raises:
        ConfigError.
    """
    numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in text.split(",")]
    if not all(1 <= number <= _MAX_STREAMS for number in numbers):
        raise ConfigError(f"--streams is {text}: write numbers from 1 to {_MAX_STREAMS}, such as 1,4,16")
    return tuple(numbers)


def parse_range(text: str) -> tuple[int, int]:
    """Parse a range of prompt lengths such as `32-128`, or one length.

    Raises:
        ConfigError.
    """
    low, _, high = text.partition("-")
    parts = (low, high or low)
    if not all(part.isascii() and part.isdigit() for part in parts) or not 1 <= int(parts[0]) <= int(
        parts[1]
    ):
        raise ConfigError(f"--prompt-tokens is {text}: write a range such as 32-128, or one number")
    return int(parts[0]), int(parts[1])


def parse_fields(texts: Sequence[str]) -> dict[str, Any]:
    """Parse `NAME=VALUE` for each further field of the requests.

    Raises:
        ConfigError: a field that the load decides, or no name.
    """
    fields = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name.isidentifier() or not value or name in _OURS:
            raise ConfigError(f"--field is {text}: write a field of the request such as temperature=0.7")
        fields[name] = parse_value(value)
    return fields
