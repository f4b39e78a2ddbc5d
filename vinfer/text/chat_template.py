"""Messages to a prompt: a model's Jinja chat template, as transformers' `apply_chat_template` renders it.

Owns the sandbox. A `ChatTemplate` is immutable and used by all worker threads. Does not know token ids.

The template comes with the checkpoint and the messages from strangers, so neither is trusted:

- immutable sandbox: no attribute that leads out of the data, no change to the caller's objects;
- a deadline, looked at in every loop iteration, call and arithmetic operation, so no loop or recursion
  goes on for ever; `+`, `*` and `**` are refused before they make something huge; the output is capped.
- Not covered: memory within the deadline (doubling a string by `~` or a block, padding by a format width),
  and one long call inside a filter. A bundle whose template does that only harms its own server.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from vinfer.errors import BundleError, RequestError
from vinfer.text.control_tokens import ControlTokens, RenderedPrompt, text_len
from vinfer.text.message_content import ContentFormats
from vinfer.text.tokenizer import Tokenizer

CHAT_TEMPLATE_FILE = "chat_template.jinja"
MAX_OUTPUT_CHARACTERS = 1 << 20
"""A template may add this much of its own, besides four times the input: tool schemas are often written
twice and escaped, anything beyond is a loop gone wrong."""
_MAX_OPERAND = 1 << 24
_MAX_ERROR_LEN = 500


class ChatTemplate:
    """A compiled chat template.

    Attributes:
        source: the Jinja source.
        variables: what the template reads from outside, special tokens and messages included.
        takes_tools: it reads `tools`.
        shows_system: a system message at the beginning is shown; some templates refuse it.

    Args:
        source: as above.
        special_tokens: what the template knows as `bos_token`, `eos_token`, ...; None is left undefined.
        control_tokens: the tokenizer's special-token strings; in user text they stay plain text.
        max_render_seconds: a rendering that takes longer is refused.

    Raises:
        BundleError: the template does not compile.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str | None],
        *,
        control_tokens: ControlTokens,
        max_render_seconds: float = 5.0,
    ) -> None:
        self.source = source
        self._special_tokens = {name: token for name, token in special_tokens.items() if token is not None}
        self._control_tokens = control_tokens
        self._max_render_seconds = max_render_seconds
        self._characters = frozenset(source).union(*self._special_tokens.values())
        self._environment = _Environment()
        try:
            tree = self._environment.parse(source)
            self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
            self.takes_tools = "tools" in self.variables
            for loop in tree.find_all(jinja2.nodes.For):
                checked = jinja2.nodes.Filter(loop.iter, "checked_iteration", [], [], None, None)
                loop.iter = checked.set_lineno(loop.lineno).set_environment(self._environment)
            self._template = self._environment.from_string(tree)
        except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            raise BundleError(f"chat template{f' line {line}' if line else ''}: {error}") from None
        self._formats = ContentFormats.probe(self._render)
        self.shows_system = self._shows_system()

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> RenderedPrompt:
        """Render a conversation. Encode the result with `Tokenizer.encode_prompt`.

        Args:
            messages: as in the OpenAI API, already validated; `content` is a string, None or a list of parts.
            kwargs: more variables for the template (`enable_thinking`, ...).

        Raises:
            RequestError: the template refuses the messages, or needs too long or too much.
        """
        given = {
            "messages": self._formats.apply(messages),
            "tools": tools,
            "documents": documents,
            **kwargs,
        }
        mark = self._control_tokens.choose_mark(given, avoid=self._characters)
        if mark is not None:
            given = {name: self._control_tokens.mark(value, mark) for name, value in given.items()}
        rendered = self._render({**given, "add_generation_prompt": add_generation_prompt})
        return self._control_tokens.unmark(rendered, mark)

    def _shows_system(self) -> bool:
        messages = [{"role": "system", "content": "xprobex"}, {"role": "user", "content": "a"}]
        given = {"messages": self._formats.apply(messages), "tools": None, "documents": None}
        try:
            return "xprobex" in self._render({**given, "add_generation_prompt": True})
        except RequestError:
            return False

    def _render(self, given: Mapping[str, Any]) -> str:
        """Render with exactly these variables besides the special tokens."""
        max_characters = 4 * text_len(given) + MAX_OUTPUT_CHARACTERS
        pieces = []
        length = 0
        try:
            self._environment.start_clock(self._max_render_seconds)
            for piece in self._template.generate({**self._special_tokens, **given}):
                pieces.append(piece)
                length += len(piece)
                if length > max_characters:
                    raise jinja2.exceptions.SecurityError(
                        f"output is longer than {max_characters} characters"
                    )
        except jinja2.TemplateError as error:
            raise RequestError(f"chat template: {_one_line(error)}", param="messages") from None
        except Exception as error:  # noqa: BLE001 - a template raises anything: TypeError, RecursionError, ...
            raise RequestError(
                f"chat template cannot render these messages: {type(error).__name__}: {_one_line(error)}",
                param="messages",
            ) from None
        return "".join(pieces)


def load_chat_template(directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Load the chat template of a bundle's `tokenizer/` directory; None where the model has none.

    Raises:
        BundleError: the file is unreadable or does not compile.
    """
    path = directory / CHAT_TEMPLATE_FILE
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not readable: {error}; build the bundle again") from None
    try:
        return ChatTemplate(source, tokenizer.special_tokens, control_tokens=tokenizer.control_tokens)
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}") from None


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`: marks the assistant's part for training; for us its body is all it is.

    A call block, as in transformers: a variable set inside is not seen outside.
    """

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Transformers' environment, plus a deadline per thread."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
        )
        self._running = threading.local()
        self.filters["tojson"] = _tojson
        self.filters["checked_iteration"] = _checked_iteration
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        del self.globals["lipsum"]  # filler text of any length, in one call

    def start_clock(self, max_seconds: float) -> None:
        """Begin a rendering in this thread."""
        self._running.max_seconds = max_seconds
        self._running.ends_at = time.monotonic() + max_seconds

    def check_deadline(self) -> None:
        """Raise SecurityError where this thread's rendering has taken too long."""
        if time.monotonic() > self._running.ends_at:
            raise jinja2.exceptions.SecurityError(
                f"rendering takes longer than {self._running.max_seconds:g} seconds"
            )

    def call(self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.check_deadline()
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        self.check_deadline()
        if _result_size(operator, left, right) > _MAX_OPERAND:
            raise jinja2.exceptions.SecurityError(f"the result of {operator!r} is too large")
        return super().call_binop(context, operator, left, right)


@jinja2.pass_context
def _checked_iteration(context: jinja2.runtime.Context, items: Any) -> Iterator[Any]:
    """Put around what every `for` loops over."""
    environment = context.environment
    assert isinstance(environment, _Environment)
    for item in items:
        environment.check_deadline()
        yield item


def _result_size(operator: str, left: Any, right: Any) -> int:
    """Estimate the size of the result: characters, items, or bits of an integer."""
    sizes = [
        value.bit_length()
        if isinstance(value, int)
        else len(value)
        if isinstance(value, str | list | tuple)
        else 0
        for value in (left, right)
    ]
    numbers = [value for value in (left, right) if isinstance(value, int)]
    if operator == "+" or (operator == "*" and len(numbers) != 1):
        return sum(sizes)
    if operator == "*":
        return max(0, numbers[0]) * sizes[0 if numbers[0] is right else 1]
    return sizes[0] * max(0, right) if len(numbers) == 2 else 0


def _one_line(error: Exception) -> str:
    """Return the error's message for a client: one line, bounded, no address."""
    message = " ".join(str(error).split())
    return re.sub(r"0x[0-9a-fA-F]{6,}", "0x...", message)[:_MAX_ERROR_LEN]


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - templates may name it
    return datetime.now().strftime(format)  # noqa: DTZ005 - the server's local time, as transformers
