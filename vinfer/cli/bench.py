"""`vinfer bench`: load on a running server; imports nothing of the serving half."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vinfer.cli.options import OUTPUT, AsJson

_LOAD = "Load"


def bench(
    target: Annotated[str, typer.Argument(metavar="URL|RUN", help="A server, or a run that --save wrote.")],
    streams: Annotated[
        str,
        typer.Option(
            metavar="N,N", help="Concurrent requests; each number is one load.", rich_help_panel=_LOAD
        ),
    ] = "1,4,16",
    requests: Annotated[
        int, typer.Option(min=1, max=100_000, help="Requests per stream.", rich_help_panel=_LOAD)
    ] = 3,
    prompt_tokens: Annotated[
        str,
        typer.Option(
            metavar="LOW-HIGH",
            help="About how many tokens a prompt has; each length is as likely.",
            rich_help_panel=_LOAD,
        ),
    ] = "32-128",
    output_tokens: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Tokens of every answer.", rich_help_panel=_LOAD)
    ] = 64,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="NAME=VALUE",
            help="Field of the requests, such as temperature=0.7.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send chat completions.", rich_help_panel=_LOAD)
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model; the first one if omitted.", rich_help_panel=_LOAD),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the run to a file.", rich_help_panel=OUTPUT)
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Compare with a run that --save wrote.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Example: vinfer bench http://127.0.0.1:8000 --streams 1,8 --save before.json

    Measure a server with OpenAI's API: tokens per second, and percentiles of the time to the first token,
    between tokens and of whole answers. VINFER_API_KEY is the API key.
    """
    from vinfer.bench import run as command
    from vinfer.bench.tables import print_comparison, print_run

    old = None if against is None else command.read(against)
    if target.startswith(("http://", "https://")):
        options = command.BenchOptions(
            streams=command.parse_streams(streams),
            requests=requests,
            prompt_words=command.parse_range(prompt_tokens),
            output_tokens=output_tokens,
            fields=command.parse_fields(fields or ()),
            is_chat=chat,
        )
        new = command.measure(
            target,
            options,
            model=model,
            api_key=os.environ.get("VINFER_API_KEY") or None,
            progress=lambda load: _say(f"{load.streams} streams: {load.tokens_per_second:.1f} tokens/s"),
        )
    else:
        new = command.read(Path(target))
    if save is not None:
        command.save(new, save)
    if as_json:
        typer.echo(
            json.dumps(
                {"run": command.as_json(new), "against": None if old is None else command.as_json(old)}
            )
        )
    else:
        print_run(new)
        if old is not None:
            print_comparison(new, old)
    command.require_answers(new)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
