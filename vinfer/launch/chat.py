"""`vinfer chat`: a conversation with the server at a URL, or with one that is started for it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from vinfer.chat.client import Client, Readiness
from vinfer.chat.conversation import Conversation
from vinfer.chat.session import Session
from vinfer.errors import ConfigError
from vinfer.launch.local_server import serving

API_KEY = "VINFER_API_KEY"
_MAX_HISTORY_LINES = 1000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Options of the command line.

    Attributes:
        question: asked instead of a conversation; None for a conversation.
        fields: `NAME=VALUE` for each field of the requests.
        tools: Python file whose functions the model may ask to call.
    """

    question: str | None = None
    model: str | None = None
    system: str | None = None
    images: tuple[Path, ...] = ()
    tools: Path | None = None
    fields: tuple[str, ...] = ()
    shows_stats: bool = False


def chat(target: str, options: ChatOptions, *, environ: Mapping[str, str]) -> None:
    """Hold a conversation on standard input and output, or ask one question.

    Args:
        target: URL of a server, a YAML file or a bundle directory.
        environ: `VINFER_API_KEY` is sent to a server at a URL.

    Raises:
        AnswerError: the server cannot be reached, or refuses the question.
        ConfigError: a target that is neither, a wrong field, or an image that cannot be sent.
    """
    # What can be wrong is found before a server starts.
    conversation = Conversation(system=options.system)
    for field in options.fields:
        name, _, value = field.partition("=")
        conversation.set_field(name, value)
    for image in options.images:
        conversation.attach(image)
    if options.tools is not None and not sys.stdin.isatty():
        raise ConfigError(
            "--tools asks before each call, so it needs a terminal: leave it out, or pipe nothing"
        )
    question = _question(options.question)
    with _client(target, environ) as client:
        conversation.model = _model(client, options.model)
        session = Session(
            client,
            conversation,
            out=sys.stdout,
            notes=sys.stderr,
            read_line=input,
            has_colors=sys.stderr.isatty() and not environ.get("NO_COLOR"),
        )
        if options.tools is not None:
            session.use_tools(options.tools)
        if question is None:
            _say(f"{conversation.model} at {client.url}; /help lists the commands, Ctrl-D leaves")
            with _history(environ):
                session.run()
            return
        session.ask(question)
        if options.shows_stats:
            session.show_stats()


@contextlib.contextmanager
def _client(target: str, environ: Mapping[str, str]) -> Iterator[Client]:
    with contextlib.ExitStack() as stack:
        if target.startswith(("http://", "https://")):
            client = Client(target, environ.get(API_KEY) or None)
        else:
            if not Path(target).exists():
                raise ConfigError(
                    f"{target} is neither a file nor a URL: give a YAML file, a bundle directory or a URL "
                    "such as http://127.0.0.1:8000"
                )
            url = stack.enter_context(serving(Path(target), readiness=readiness_of, progress=_say))
            client = Client(url)
        stack.callback(client.close)
        yield client


def readiness_of(url: str) -> Readiness | None:
    """Return what the server at a URL does; None while nothing answers."""
    with contextlib.closing(Client(url)) as client:
        return client.readiness()


def _model(client: Client, wanted: str | None) -> str:
    models = client.models()
    if wanted is None and models:
        return models[0]
    if wanted not in models:
        raise ConfigError(f"--model is {wanted}; the server has {', '.join(models) or 'no model yet'}")
    return wanted


def _question(given: str | None) -> str | None:
    """Return the question with what standard input holds below it; None to hold a conversation."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    parts = [part for part in (given, piped.strip()) if part]
    if not parts and not sys.stdin.isatty():
        raise ConfigError("standard input is empty: give a question")
    return "\n\n".join(parts) or None


@contextlib.contextmanager
def _history(environ: Mapping[str, str]) -> Iterator[None]:
    """Let the arrow keys find earlier lines, of earlier conversations too."""
    try:
        import readline
    except ImportError:
        # A Python without it reads lines without editing.
        yield
        return
    state = environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path("~/.local/state").expanduser()
    file = base / "vinfer" / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(_MAX_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # What was asked is nobody else's business.
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.write_history_file(file)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
