"""A conversation at a terminal: reads lines, carries out those that begin with a slash, writes answers.

Answers go to one stream and everything else to another, so that a pipe gets answers alone. Ctrl-C stops the
answer by closing its connection, and at the prompt it ends the session.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vinfer.chat.answer import Stats, ToolCall
from vinfer.chat.client import Client
from vinfer.chat.conversation import Conversation
from vinfer.errors import AnswerError, ConfigError

if TYPE_CHECKING:
    from vinfer.chat.tools import Tool

HELP = """\
/set NAME VALUE   set a field of the requests, such as /set temperature 0.2; without VALUE, remove it
/set              show the fields that are set
/system TEXT      set the system prompt; without TEXT, remove it
/tools FILE       offer the functions of a Python file; without FILE, none; asks before each call
/image PATH       send an image with the next question
/model NAME       talk to another model of the server; without NAME, list them
/stats            show the figures of the last answer
/clear            forget the conversation
/exit             leave, as Ctrl-D does
A line that ends with \\ goes on in the next one. Ctrl-C stops an answer.
"""
# What a terminal would carry out, and no text needs: controls but tab and line feed, and C1 controls.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Session:
    """One conversation with one server.

    Args:
        out: receives answers.
        notes: receives everything else: reasoning, figures, errors.
        read_line: shows a prompt and returns a line; raises EOFError at the end of the input.
        has_colors: whether `notes` may have colors.
    """

    def __init__(
        self,
        client: Client,
        conversation: Conversation,
        *,
        out: TextIO,
        notes: TextIO,
        read_line: Callable[[str], str],
        has_colors: bool = False,
    ) -> None:
        self._client = client
        self._conversation = conversation
        self._out = out
        self._notes = notes
        self._read_line = read_line
        self._tools: dict[str, Tool] = {}
        self._has_colors = has_colors
        self._stats: Stats | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "clear": self._clear,
            "help": lambda _: self._note(HELP.rstrip()),
            "image": self._image,
            "model": self._model,
            "set": self._set,
            "stats": lambda _: self.show_stats(),
            "system": self._system,
            "tools": self._set_tools,
        }

    def run(self) -> None:
        """Answer line after line until the input ends."""
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            while True:
                line = self._read_line("> ")
                while line.endswith("\\"):
                    line = f"{line[:-1]}\n{self._read_line('. ')}"
                if line.strip() in ("/exit", "/quit"):
                    return
                try:
                    self._take(line.strip())
                except (AnswerError, ConfigError) as error:
                    self._note(error.message)
                except KeyboardInterrupt:
                    self._note("stopped")

    def ask(self, question: str) -> None:
        """Write the answer to a question as it arrives; what has arrived of a stopped one is remembered.

        Calls of tools are carried out if the user allows them, and the model goes on with their results.

        Raises:
            AnswerError: see `Client.stream`.
            KeyboardInterrupt: Ctrl-C; the connection is closed by then.
        """
        body = self._conversation.ask(question)
        while True:
            text, calls = self._write_answer(body)
            if not calls:
                self._conversation.answer(text)
                break
            body = self._conversation.answer_calls(text, self._call(calls))
        if self._stats is not None and self._stats.finish_reason == "length":
            self._note("the answer was cut off: raise max_tokens with /set max_tokens NUMBER")

    def use_tools(self, path: Path) -> None:
        """Offer the functions of a Python file to the model from the next question on.

        Raises:
            ConfigError: see `read_tools`.
        """
        # Reading signatures takes pydantic, which takes longer to import than a chat without tools to begin.
        from vinfer.chat.tools import read_tools

        self._tools = read_tools(path)
        self._conversation.tools = [tool.as_field() for tool in self._tools.values()]
        self._note(f"tools: {', '.join(self._tools)}; each call is shown first")

    def _write_answer(self, body: Mapping[str, Any]) -> tuple[str, tuple[ToolCall, ...]]:
        """Write an answer, and return its text with the calls that it ends with."""
        self._stats = Stats()
        texts: list[str] = []
        calls: tuple[ToolCall, ...] = ()
        is_reasoning = False
        try:
            with contextlib.closing(self._client.stream(body, self._stats)) as pieces:
                for piece in pieces:
                    if piece.reasoning:
                        self._write_reasoning(piece.reasoning)
                        is_reasoning = True
                    if piece.text:
                        if is_reasoning:
                            self._note("")
                        is_reasoning = False
                        texts.append(piece.text)
                        self._out.write(self._shown(piece.text, self._out))
                        self._out.flush()
                    calls = piece.calls or calls
        except BaseException:
            self._conversation.answer("".join(texts))
            raise
        finally:
            if texts and not texts[-1].endswith("\n"):
                self._out.write("\n")
                self._out.flush()
        return "".join(texts), calls

    def _call(self, calls: Sequence[ToolCall]) -> list[tuple[ToolCall, str]]:
        """Return each call with what the model is told about it."""
        from vinfer.chat.tools import answer_of

        try:
            return [(call, answer_of(call, self._tools, self._is_allowed)) for call in calls]
        except BaseException:
            self._conversation.answer("")
            raise

    def _is_allowed(self, description: str) -> bool:
        self._note(f"call {description}? [y/N]")
        return self._read_line("").strip().lower() in ("y", "yes")

    def show_stats(self) -> None:
        """Write the figures of the last answer."""
        stats = self._stats
        if stats is None or stats.first_seconds is None:
            self._note("no answer yet")
            return
        figures = [f"first token after {stats.first_seconds:.2f} s"]
        if stats.tokens_per_second is not None:
            figures.append(f"{stats.tokens_per_second:.1f} tokens/s")
        if stats.completion_tokens is not None:
            figures.append(f"{stats.completion_tokens} tokens")
        if stats.prompt_tokens is not None:
            figures.append(
                f"prompt of {stats.prompt_tokens} tokens, {stats.cached_tokens or 0} of them cached"
            )
        self._note("; ".join(figures))

    def _take(self, line: str) -> None:
        name, _, rest = line.removeprefix("/").partition(" ")
        if not line:
            return
        if not line.startswith("/"):
            self.ask(line)
        elif name in self._commands:
            self._commands[name](rest.strip())
        else:
            self._note(f"/{name} is no command: see /help")

    def _set(self, rest: str) -> None:
        if rest:
            name, _, value = rest.partition(" ")
            self._conversation.set_field(name, value.strip())
        else:
            self._note(json.dumps(self._conversation.fields))

    def _system(self, rest: str) -> None:
        self._conversation.system = rest or None

    def _image(self, rest: str) -> None:
        self._conversation.attach(Path(rest))
        self._note("sent with the next question")

    def _set_tools(self, rest: str) -> None:
        if rest:
            self.use_tools(Path(rest))
        else:
            self._tools, self._conversation.tools = {}, ()

    def _model(self, rest: str) -> None:
        models = self._client.models()
        if rest in models:
            self._conversation.model = rest
        else:
            self._note(f"the models are {', '.join(models)}; this is {self._conversation.model}")

    def _clear(self, _: str) -> None:
        self._conversation.clear()

    def _write_reasoning(self, text: str) -> None:
        shown = self._shown(text, self._notes)
        self._notes.write(f"{_DIM}{shown}{_PLAIN}" if self._has_colors else shown)
        self._notes.flush()

    def _note(self, text: str) -> None:
        self._notes.write(f"{self._shown(text, self._notes)}\n")
        self._notes.flush()

    def _shown(self, text: str, stream: TextIO) -> str:
        """Return a model's text without what a terminal would carry out; a pipe gets it as it is."""
        return _CONTROLS.sub("", text) if stream.isatty() else text
