"""The command line. Builds objects and holds no logic; imports nothing heavy until a command runs.

Exit codes are those of `vinfer.errors`; after a second signal, 130 or 143.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from vinfer.cli.bench import bench
from vinfer.cli.bundles import CacheDir, bundle_app, bundles_dir
from vinfer.cli.configs import config_app
from vinfer.cli.models import models_app
from vinfer.cli.options import HELP_STYLE, OUTPUT, AsJson, ConfigPath, Devices, Overrides, Source, show
from vinfer.errors import VinferError
from vinfer.version import __version__

app = typer.Typer(
    name="vinfer",
    help=(
        "Example: vinfer serve configs/smollm2.yaml\n\n"
        "Serve EasyDeL models behind the OpenAI API from one YAML file."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=HELP_STYLE,
)
_SERVER, _REQUESTS = "Server", "Requests"
_RUN, _LOOK, _TALK = "Build and serve", "Look and configure", "Talk and measure"


def main() -> None:
    """Run the command line; an expected error prints one line on standard error and sets the exit code."""
    # Before anything is imported: as process 1 of a container, a process without a handler is never sent it.
    signal.signal(signal.SIGTERM, _end)
    try:
        app(standalone_mode=True)
    except VinferError as error:
        sys.stderr.write(f"vinfer: error: {error.message}\n")
        sys.exit(error.exit_code)


def _end(sig: int, frame: FrameType | None) -> None:
    """End at once, as without a handler; the server replaces this one."""
    os._exit(128 + sig)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vinfer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(short_help="Build any missing bundle, then serve.", rich_help_panel=_RUN)
def serve(
    source: Source,
    host: Annotated[
        str | None, typer.Option(help="Address to bind; overrides server.host.", rich_help_panel=_SERVER)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port; overrides server.port. 0 picks a free one.", rich_help_panel=_SERVER),
    ] = None,
    overrides: Overrides = None,
    devices: Devices = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Allow binding beyond loopback without API keys.", rich_help_panel=_SERVER
        ),
    ] = False,
) -> None:
    """Example: vinfer serve configs/smollm2.yaml --port 8080

    Build any missing bundle, then serve.
    """
    # Until the server replaces it: SIGHUP would end the process.
    signal.signal(signal.SIGHUP, lambda *_: None)
    from vinfer.launch.collection import collection_paused

    starting = contextlib.ExitStack()
    starting.enter_context(collection_paused())
    from vinfer.launch.admin import admin_listener
    from vinfer.launch.banner import greet
    from vinfer.launch.bundles import code_cache_dir
    from vinfer.launch.devices import target_devices
    from vinfer.launch.group.leader import group_membership, load_to_serve, start_leader
    from vinfer.launch.loader import Loader, model_table
    from vinfer.launch.progress.display import progress_display
    from vinfer.launch.reload import Reloader
    from vinfer.launch.restarts import Restarts
    from vinfer.launch.terminal import configure_logging
    from vinfer.server.api_keys import read_api_keys
    from vinfer.server.app import create_app
    from vinfer.server.http.serve import bind, check_exposure, run_server

    named = {"server.host": host, "server.port": port}
    settings = [*(overrides or ()), *(f"{k}={json.dumps(v)}" for k, v in named.items() if v is not None)]
    read_config = functools.partial(load_to_serve, source, overrides=settings, environ=os.environ)
    config = read_config()
    configure_logging(config.log_level, config.log_format)
    wanted = target_devices(devices)
    membership = group_membership(config, os.environ)
    if membership is not None and not membership.is_leader:
        from vinfer.launch.group.follower import follow

        follow(config, membership, wanted=wanted, code_cache=code_cache_dir(config, os.environ))
    check_exposure(config.server, insecure=insecure)
    table = model_table(config)
    keys = read_api_keys(config.server.api_keys_file)
    leader = start_leader(config, membership)
    display = progress_display(config.log_format)
    loader = Loader(
        config,
        table,
        wanted=wanted,
        code_cache=code_cache_dir(config, os.environ),
        show=display,
        num_keys=len(keys),
        group=leader,
    )
    application = create_app(config.server, table, keys, compile_count=loader.num_post_ready_compiles)
    sock = bind(config.server.host, config.server.port)
    admin = admin_listener(application.state.services)

    def load_all() -> None:
        loader.run()
        display.close()
        if table.ready:
            greet(config, table.served_models, sock.getsockname(), num_keys=len(keys))

    threading.Thread(target=load_all, name="loader", daemon=True).start()
    # The loader pauses it now.
    starting.close()
    reload = Reloader(
        config,
        application.state.services,
        load=read_config,
        check=lambda changed: check_exposure(changed.server, insecure=insecure),
    )
    recover = Restarts(table, loader.restart, {model.name: model.max_restarts for model in config.models})
    code = run_server(
        application,
        config.server,
        sock,
        reload=reload,
        # A group is restarted as a whole, by whoever has started it.
        recover=recover if leader is None else lambda name: False,
        lost_group=lambda: None if leader is None else leader.failure,
        admin=admin,
    )
    if leader is not None:
        leader.stop() if code == 0 else leader.fail()
    display.close()
    if table.ready:
        loader.stop()
    logging.shutdown()
    sys.stdout.flush()
    # A compile in progress cannot be interrupted, and the interpreter would wait for it.
    os._exit(code)


@app.command(short_help="Write each model's bundle ahead of deploy.", rich_help_panel=_RUN)
def precompile(
    config_path: ConfigPath,
    output: Annotated[Path | None, typer.Option(help="Write the bundle here, not to the cache.")] = None,
    overrides: Overrides = None,
    devices: Devices = None,
) -> None:
    """Example: vinfer precompile configs/llama.yaml --output bundles/llama

    Build each model's bundle ahead of deployment and print its path.
    """
    from vinfer.config import load_config
    from vinfer.launch.devices import target_devices
    from vinfer.launch.precompile import precompile as write_bundles
    from vinfer.launch.progress.clock import PhaseClock
    from vinfer.launch.progress.display import progress_display
    from vinfer.launch.progress.times import PhaseTimes
    from vinfer.launch.terminal import configure_logging

    config = load_config(config_path, overrides=overrides or (), environ=os.environ)
    configure_logging(config.log_level)
    with contextlib.closing(progress_display()) as display:
        clock = PhaseClock(PhaseTimes(config.cache_dir), display)
        directories = write_bundles(config, wanted=target_devices(devices), output=output, clock=clock)
    for directory in directories:
        typer.echo(directory)


@app.command(short_help="Show what fits before anything is built.", rich_help_panel=_LOOK)
def plan(
    source: Source, overrides: Overrides = None, devices: Devices = None, as_json: AsJson = False
) -> None:
    """Example: vinfer plan configs/llama.yaml --devices tpu-v5e:4

    Show what each model takes of a device and how many requests run together; build nothing.
    """
    from vinfer.config import load_source
    from vinfer.launch import plan as command
    from vinfer.launch.bundles import code_cache_dir
    from vinfer.launch.devices import target_devices
    from vinfer.launch.plan_table import print_plan
    from vinfer.launch.terminal import configure_logging

    config = load_source(source, overrides=overrides or (), environ=os.environ)
    configure_logging(config.log_level)
    planned = command.plan_models(
        config, wanted=target_devices(devices), code_cache=code_cache_dir(config, os.environ)
    )
    show(command.as_json(planned), lambda: print_plan(planned), as_json=as_json)
    command.require_fit(planned)


@app.command(short_help="Talk to a model in the terminal.", rich_help_panel=_TALK)
def chat(
    target: Annotated[
        str, typer.Argument(metavar="URL|CONFIG|DIR", help="A server, or what to serve for this chat.")
    ],
    question: Annotated[
        str | None, typer.Argument(help="Ask this and end; piped input is added to it.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model; the first one if omitted.", rich_help_panel=_REQUESTS),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System prompt.", rich_help_panel=_REQUESTS)
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--image", help="Image file for the first question; repeatable.", rich_help_panel=_REQUESTS
        ),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="NAME=VALUE",
            help="Field of the requests, such as temperature=0.2.",
            rich_help_panel=_REQUESTS,
        ),
    ] = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Python file whose functions are tools; asks before each call.",
            rich_help_panel=_REQUESTS,
        ),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="End with the figures of the answer.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Example: vinfer chat http://127.0.0.1:8000 "Summarize this." < report.txt

    Talk to the model of a server, or of a config that is served meanwhile. VINFER_API_KEY is the API key.
    """
    from vinfer.launch.chat import ChatOptions
    from vinfer.launch.chat import chat as talk

    options = ChatOptions(
        question=question,
        model=model,
        system=system,
        images=tuple(images or ()),
        fields=tuple(fields or ()),
        tools=tools,
        shows_stats=stats,
    )
    talk(target, options, environ=os.environ)


@app.command(short_help="Compare each model's tokens with transformers.", rich_help_panel=_RUN)
def verify(
    source: Source,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Check only this model.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File with one JSON string or list of token ids per line.")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(min=0, help="Largest allowed logprob error, as a fraction of the logit scale."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--source", metavar="SOURCE", help="The checkpoint of the bundle, if it has moved."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of --source.")] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
    devices: Devices = None,
) -> None:
    """Example: vinfer verify configs/smollm2.yaml

    Compare each model's output with transformers and write the figures into its bundle.
    """
    from vinfer.config import load_source
    from vinfer.launch.bundles import code_cache_dir
    from vinfer.launch.devices import target_devices
    from vinfer.launch.progress.clock import PhaseClock
    from vinfer.launch.progress.display import progress_display
    from vinfer.launch.progress.times import PhaseTimes
    from vinfer.launch.terminal import configure_logging
    from vinfer.launch.verification import verify as command
    from vinfer.launch.verification.table import print_tables

    config = load_source(source, overrides=overrides or (), environ=os.environ)
    configure_logging(config.log_level)
    with contextlib.closing(progress_display()) as display:
        found = command.verify(
            config,
            command.VerifyOptions(
                only=model, prompts_file=prompts, max_error=max_error, source=checkpoint, revision=revision
            ),
            wanted=target_devices(devices),
            code_cache=code_cache_dir(config, os.environ),
            progress=PhaseClock(PhaseTimes(config.cache_dir), display),
        )
    show(command.as_json(found), lambda: print_tables(found), as_json=as_json)
    command.require_passed(found)


@app.command(short_help="Show what this machine has, and what is missing.", rich_help_panel=_LOOK)
def doctor(cache_dir: CacheDir = None, as_json: AsJson = False) -> None:
    """Example: vinfer doctor

    Show versions, devices, memory, caches, compilers and hub access; fail if there is no device.
    """
    from vinfer.launch.inspection import doctor as command
    from vinfer.launch.inspection.bundle_tables import print_facts
    from vinfer.launch.terminal import configure_logging

    configure_logging("warning")
    found = command.examine(bundles_dir(cache_dir).parent, environ=os.environ)
    show(found, lambda: print_facts(found), as_json=as_json)
    command.require_device(found)


# After the others, so that panels come in the order in which they are needed.
app.command(short_help="Measure a server under load.", rich_help_panel=_TALK)(bench)
for _group, _name, _summary in (
    (config_app, "config", "Write and check configuration files."),
    (bundle_app, "bundle", "Look at bundles, check and remove them."),
    (models_app, "models", "Look at checkpoints."),
):
    app.add_typer(_group, name=_name, short_help=_summary, rich_help_panel=_LOOK)
