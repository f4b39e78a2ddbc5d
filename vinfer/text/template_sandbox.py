"""The sandbox that chat templates run in: limits what they reach, how long they take, how much they build.

A thread cannot be killed, so a rendering has to end by itself, whatever the template does:

- immutable sandbox: no attribute that leads out of the data, no change to the caller's objects;
- a deadline, checked in every loop iteration, call, filter and arithmetic operation;
- a budget of characters for everything built on the way (results of `~`, `+`, `*`, `%`, filters and methods,
  output of blocks and macros). An operation that can turn little into much is charged beforehand.

The template is rewritten before it is compiled, because Jinja has no hooks for loops, `~`, comparisons and
literals. Within the limits, templates behave as in transformers' environment.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

MAX_MADE_CHARACTERS = 1 << 24
"""Characters that a rendering may build besides 64 times the input."""
_MAX_INT_BITS = 1 << 14
_MAX_WIDTH = 1 << 14
_SCALAR_SIZE = 16
# The size of the arguments does not limit what one call of these builds; no known template uses them.
_REMOVED_FILTERS = ("urlize", "wordwrap", "pprint", "xmlattr")
_TEXT_FILTERS = (
    *("string", "tojson", "join", "upper", "lower", "title", "capitalize", "trim", "safe", "escape", "e"),
    *(
        "forceescape",
        "urlencode",
        "replace",
        "indent",
        "center",
        "format",
        "truncate",
        "striptags",
        "wordcount",
    ),
)
_LIST_FILTERS = ("sort", "unique", "min", "max", "groupby", "dictsort", "sum", "batch", "slice", "list")
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*?(?:[0-9]{5,}|\*)")
_WIDE_BRACES = re.compile(r"\{[^{}]*(?:[0-9]{5,}|\{)")


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which marks the assistant's part for training; here it only renders its body.

    A call block, as in transformers: a variable set inside is not visible outside.
    """

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


class TemplateSandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Transformers' environment, with a deadline and a budget per thread."""

    intercepted_binops = frozenset({"+", "-", "*", "**", "/", "//", "%"})

    def __init__(self) -> None:
        # Not optimized, or constants would be computed without any limit when the template is compiled.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, jinja2.ext.loopcontrols],
            optimized=False,
            finalize=_charged,
        )
        self._running = threading.local()
        self.filters["tojson"] = _tojson
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        for name in (*_TEXT_FILTERS, *_LIST_FILTERS):
            self.filters[name] = self._limited(name, self.filters[name])
        self.filters["checked_iteration"] = _checked_iteration
        self.filters["charged"] = _charged
        self.filters["measured"] = _measured
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        del self.globals["lipsum"]  # filler text of any length, in one call

    def compile_checked(self, tree: jinja2.nodes.Template) -> jinja2.Template:
        """Compile a parsed template so that its loops, `~`, comparisons and literals obey the limits."""
        return self.from_string(_Limits(self).visit(tree))

    def start(self, max_seconds: float, given_len: int) -> None:
        """Begin a rendering in this thread, for variables with `given_len` characters."""
        self._running.max_seconds = max_seconds
        self._running.ends_at = time.monotonic() + max_seconds
        self._running.num_left = 64 * given_len + MAX_MADE_CHARACTERS

    def check_deadline(self) -> None:
        """Raise SecurityError if this thread's rendering has taken too long."""
        if time.monotonic() > self._running.ends_at:
            raise jinja2.exceptions.SecurityError(
                f"rendering takes longer than {self._running.max_seconds:g} seconds"
            )

    def charge(self, size: int) -> None:
        """Subtract `size` characters from the budget of this thread's rendering."""
        self._running.num_left -= size
        if self._running.num_left < 0:
            raise _too_large()

    def measure(self, value: Any) -> int:
        """Count the characters of a value as text; shared parts count each time.

        Raises:
            SecurityError: the count exceeds the remaining budget, which ends it early.
        """
        size = 0
        waiting = [value]
        while waiting:
            part = waiting.pop()
            size += len(part) if isinstance(part, (str, bytes)) else _SCALAR_SIZE
            if isinstance(part, (dict, list, tuple)):
                self.check_deadline()
            if isinstance(part, (dict, Mapping)):
                waiting += part.keys()
                waiting += part.values()
            elif isinstance(part, (list, tuple, type({}.items()), type({}.values()))):
                waiting += part
            elif isinstance(part, jinja2.utils.Namespace):
                raise jinja2.exceptions.SecurityError(
                    "a namespace is not a value: name one of its attributes"
                )
            if size + len(waiting) > self._running.num_left:
                raise _too_large()
        return size

    def call(self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.check_deadline()
        # `wrap_str_format` hides the method that it wraps.
        method = getattr(function, "__wrapped__", function)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, (str, bytes)):
            self._charge_method(owner, method.__name__, (*args, *kwargs.values()))
        elif isinstance(owner, (list, tuple, dict)) or function is dict:
            self.measure([owner, *args, *kwargs.values()])
        result = super().call(context, function, *args, **kwargs)
        if isinstance(result, str):
            self.charge(len(result))
        return result

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        self.check_deadline()
        self._charge_binop(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def _charge_binop(self, operator: str, left: Any, right: Any) -> None:
        numbers = [value for value in (left, right) if isinstance(value, int)]
        if len(numbers) == 2:
            bits = [number.bit_length() for number in numbers]
            if max(bits) > _MAX_INT_BITS or (operator == "**" and bits[0] * max(right, 0) > _MAX_INT_BITS):
                raise _too_large()
        elif operator == "*" and numbers:
            other = right if numbers[0] is left else left
            # Measure last: the value that the number multiplies may be anything.
            self.charge(max(numbers[0], 0) * self.measure(other) if not isinstance(other, float) else 0)
        elif operator == "%" and isinstance(left, (str, bytes)):
            self._charge_format(left, _WIDE_PERCENT, "%", right)
        elif operator == "+":
            self.charge(sum(_len_in_characters(part) for part in (left, right)))

    def _charge_method(self, owner: str | bytes, name: str, args: tuple[Any, ...]) -> None:
        if name in ("translate", "maketrans"):
            raise jinja2.exceptions.SecurityError(f"{name} is not available to templates")
        if name in ("format", "format_map"):
            self._charge_format(owner, _WIDE_BRACES, "{", args)
            return
        if any(isinstance(arg, int) and abs(arg) > _MAX_WIDTH for arg in args) and name in _PADDING:
            raise _too_large()
        self.charge(self._growth(name, owner, args))

    def _charge_format(self, text: str | bytes, too_wide: re.Pattern[str], sign: str, args: Any) -> None:
        if isinstance(text, bytes) or too_wide.search(text):
            raise jinja2.exceptions.SecurityError("a format is too large: it has a wide or a variable width")
        num_signs = text.count(sign)
        self.charge(len(text) + num_signs * (_MAX_WIDTH // 16 + self.measure(args)))

    def _growth(self, name: str, value: Any, args: tuple[Any, ...]) -> int:
        """Return an upper estimate of the size that a filter or method of this name returns."""
        size = self.measure(value) + self.measure(args)
        texts = [len(arg) for arg in args if isinstance(arg, str)]
        if name == "replace" and len(texts) == 2:
            return size + (size // max(texts[0], 1) + 1) * texts[1]
        if name == "join":
            separator = len(value) if isinstance(value, str) and args else sum(texts)
            items = args[0] if isinstance(value, str) and args else value
            return size + separator * (len(items) if hasattr(items, "__len__") else 0)
        width = max((abs(arg) for arg in args if isinstance(arg, int)), default=0)
        if name in ("indent", "expandtabs"):
            lines = str(value).count("\n" if name == "indent" else "\t") + 1
            return size + lines * (max(width, 8) + sum(texts))
        if name in ("escape", "e", "forceescape", "urlencode"):
            return 6 * size
        return size + (width if name in _PADDING else 0)

    def _limited(self, name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a filter so that the limits are checked first."""
        place = 0 if jinja2.utils._PassArg.from_obj(apply) is None else 1

        @functools.wraps(apply)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self.check_deadline()
            value = args[place] if len(args) > place else ""
            rest = (*args[place + 1 :], *kwargs.values())
            if isinstance(value, Iterator):
                value = list(self.checked(value))
                args = (*args[:place], value, *args[place + 1 :])
            if name in _PADDING and any(isinstance(arg, int) and abs(arg) > _MAX_WIDTH for arg in rest):
                raise _too_large()
            if name == "sum" and any(isinstance(arg, (list, tuple)) for arg in rest):
                raise jinja2.exceptions.SecurityError("sum is for numbers: use + for lists")
            if name == "format":
                self._charge_format(str(value), _WIDE_PERCENT, "%", rest)
            elif name in _LIST_FILTERS:
                self.measure(value)
                self.charge(_len_in_characters(value))
            else:
                self.charge(self._growth(name, value, rest))
            return apply(*args, **kwargs)

        return limited

    def checked(self, items: Any, size: int = 1) -> Iterator[Any]:
        """Yield the items, checking the deadline and charging `size` for each."""
        for item in items:
            self.check_deadline()
            self.charge(size)
            yield item


_PADDING = (
    "center",
    "ljust",
    "rjust",
    "zfill",
    "expandtabs",
    "indent",
    "batch",
    "slice",
    "tojson",
    "truncate",
)


class _Limits(jinja2.visitor.NodeTransformer):
    """Rewrites a template so that everything without a hook passes through one of our filters."""

    def __init__(self, environment: TemplateSandbox) -> None:
        self._environment = environment

    def visit(self, node: jinja2.nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """Rewrite the children of a node, then the node itself."""
        self.generic_visit(node)
        match node:
            case jinja2.nodes.For():
                # The plain text that an iteration writes; `finalize` charges the values.
                size = 1 + sum(len(text.data) for text in node.find_all(jinja2.nodes.TemplateData))
                node.iter = self._through("checked_iteration", node.iter, jinja2.nodes.Const(size))
            case jinja2.nodes.Concat():
                node.nodes = [self._through("charged", part) for part in node.nodes]
            case jinja2.nodes.Compare():
                node.expr = self._through("measured", node.expr)
                for operand in node.ops:
                    operand.expr = self._through("measured", operand.expr)
            case jinja2.nodes.List() | jinja2.nodes.Dict():
                return self._through("measured", node)
            case jinja2.nodes.Tuple() if node.ctx == "load":
                return self._through("measured", node)
        return node

    def _through(self, name: str, node: Any, *args: jinja2.nodes.Expr) -> jinja2.nodes.Filter:
        passed = jinja2.nodes.Filter(node, name, list(args), [], None, None)
        passed.set_lineno(node.lineno)
        passed.set_environment(self._environment)
        return passed


def _len_in_characters(value: Any) -> int:
    """Count a text's characters, or the memory of a list's slots without its items."""
    if isinstance(value, (list, tuple)):
        return 8 * len(value)
    return len(value) if isinstance(value, str) else 0


def _too_large() -> jinja2.exceptions.SecurityError:
    return jinja2.exceptions.SecurityError("what the template builds is too large")


def _sandbox(context: jinja2.runtime.Context) -> TemplateSandbox:
    assert isinstance(context.environment, TemplateSandbox)
    return context.environment


@jinja2.pass_context
def _checked_iteration(context: jinja2.runtime.Context, items: Any, size: int) -> Iterator[Any]:
    """Yield the items that a `for` loops over, within the limits."""
    return _sandbox(context).checked(items, size)


@jinja2.pass_context
def _charged(context: jinja2.runtime.Context, value: Any) -> Any:
    """Charge and return a value that becomes text."""
    sandbox = _sandbox(context)
    sandbox.charge(len(value) if isinstance(value, str) else sandbox.measure(value))
    return value


@jinja2.pass_context
def _measured(context: jinja2.runtime.Context, value: Any) -> Any:
    """Measure and return a value that is compared with, or put into, something else."""
    if not isinstance(value, (str, int, float)):
        _sandbox(context).measure(value)
    return value


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
