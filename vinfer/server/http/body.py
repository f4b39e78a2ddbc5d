"""Reads a request body as one JSON object, within limits, and refuses what JSON parsers disagree about.

The bytes are counted on the event loop while they stream in; large bodies are parsed and checked off the
loop. It does not know which fields a route has.
"""

from __future__ import annotations

import decimal
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from starlette.requests import Request as HttpRequest

from vinfer.errors import BodyTooLargeError, MediaTypeError, RequestError
from vinfer.server.http.context import RequestContext
from vinfer.server.services import Services

T = TypeVar("T")
Parse = Callable[[Mapping[str, Any], Literal["refuse", "ignore"], list[str]], T]
"""Checks a JSON object: (body, `server.unknown_fields`, list for keys without effect) -> typed fields."""

MAX_DEPTH = 64
MAX_CONTAINERS = 2**16
"""Arrays and objects of one body. They cost far more time and memory than their two bytes."""
MAX_VALUES = 2**20
"""Values of one body."""
MANY_VALUES = 2**14
"""A body with more has its integers made by Python code, which lets the event loop go on between any two.

JSON's C code would hold the interpreter for 40 ms per million.
"""
MAX_INTEGER = 2**64
"""Larger numbers with a point or an exponent stay doubles: no field takes such integers."""
# Parsing fewer bytes takes less time than a hop to a thread and back.
INLINE_PARSE_BYTES = 32 * 1024

# The closing quote is optional, so that an unterminated string is one match: no quadratic restarts. The rest
# comes in pieces: one search through megabytes of numbers would hold the interpreter.
STRINGS_AND_BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?:? ?|[\[\]{}]|[^"\[\]{}]{1,4096}+', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


async def read_fields(request: HttpRequest, services: Services, parse: Parse[T]) -> T:
    """Read the body, and return its fields; the event loop never waits for a large one.

    Args:
        parse: from `vinfer.server.fields`.

    Raises:
        MediaTypeError: the body is encoded or is not declared as JSON.
        BodyTooLargeError: it is longer than `server.max_body_bytes`; raised while it streams in.
        QueueFullError: too many bytes of other bodies are being read.
        RequestError: it is not one well-formed JSON object, or `parse` refuses it.
    """
    _check_headers(request)
    raw = await _read(request, services)
    unknown = services.config.unknown_fields
    ignored = RequestContext.of(request.scope).ignored
    if len(raw) <= INLINE_PARSE_BYTES:
        return parse(parse_json_object(raw), unknown, ignored)
    return await services.in_parser(lambda: parse(parse_json_object(raw), unknown, ignored))


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """Parse one JSON object strictly. JSON has one kind of number: 5.0 and 5e0 are the integer 5.

    Refuses some input that Python's parser accepts: NaN and infinities (also as 1e999), duplicate keys,
    nesting beyond MAX_DEPTH, more than MAX_CONTAINERS arrays and objects or MAX_VALUES values, and half of
    a surrogate pair.

    Raises:
        RequestError: what is wrong and where, without repeating the body.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"body is not UTF-8 at byte {error.start}: send JSON as UTF-8") from None
    if text.startswith("\ufeff"):
        raise RequestError("body begins with a byte order mark: send JSON without one")
    if not text.strip():
        raise RequestError("body is empty: send a JSON object")
    value = parse_strictly(text, parse_float=_number)
    if not isinstance(value, dict):
        raise RequestError(f"body is a JSON {_kind(value)}: send a JSON object")
    return value


def parse_strictly(text: str, *, parse_float: Callable[[str], float]) -> Any:
    """Parse JSON, and refuse what `parse_json_object` refuses.

    Args:
        parse_float: returns the value of a number that has a point or an exponent; see `finite`.

    Raises:
        RequestError: what is wrong and where; the message speaks of a body.
    """
    _check_containers(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_float=parse_float,
            parse_int=_integer if text.count(",") > MANY_VALUES else None,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise RequestError(f"body is not JSON: {error.msg} at {where}") from None
    except ValueError:
        raise RequestError("body contains a number with too many digits: send a shorter one") from None
    if "\\u" in text and _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value)
    return value


def finite(digits: str) -> float:
    """Return a number as a double.

    Raises:
        RequestError: it is too large for one.
    """
    value = float(digits)
    if not math.isfinite(value):
        raise RequestError("body contains a number too large for a double: send a smaller one")
    return value


def _check_headers(request: HttpRequest) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise MediaTypeError(f"Content-Encoding is {encoding[:40]!r}: send the body uncompressed")
    content_type = request.headers.get("content-type", "")
    media_type, _, parameters = content_type.partition(";")
    if media_type.strip().lower() != "application/json":
        raise MediaTypeError(f"Content-Type is {content_type[:80]!r}: send application/json")
    charset = parameters.partition("charset=")[2].strip(' "').lower()
    if charset not in ("", "utf-8", "utf8"):
        raise MediaTypeError(f"charset is {charset[:40]!r}: send UTF-8")


async def _read(request: HttpRequest, services: Services) -> bytes:
    max_body_bytes = services.config.max_body_bytes
    context = RequestContext.of(request.scope)
    too_large = BodyTooLargeError(
        f"body is longer than server.max_body_bytes, {max_body_bytes}: shorten it or raise the limit"
    )
    declared = request.headers.get("content-length", "")
    # The HTTP parser refuses a length that is not a number.
    if declared.isdecimal() and int(declared[:20]) > max_body_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_body_bytes:
            raise too_large
        services.intake.take(context, len(chunk))
    return bytes(body)


def _check_containers(text: str) -> None:
    depth = num_containers = num_commas = 0
    # Nearly always there are fewer, even with those in strings. Counting holds the interpreter far shorter.
    counts_values = text.count(",") >= MAX_VALUES
    if not counts_values and text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    for match in STRINGS_AND_BRACKETS.finditer(text):
        mark = match[0]
        if mark[0] == '"':
            continue
        if mark in "[{":
            depth += 1
            num_containers += 1
            if depth > MAX_DEPTH:
                raise RequestError(f"body is nested deeper than {MAX_DEPTH} levels: flatten it")
            if num_containers > MAX_CONTAINERS:
                raise RequestError(f"body has more than {MAX_CONTAINERS} arrays and objects: send fewer")
        elif mark in "]}":
            depth -= 1
        elif counts_values:
            num_commas += mark.count(",")
            if num_commas >= MAX_VALUES:
                raise RequestError(f"body has more than {MAX_VALUES} values: send fewer")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RequestError(f"body has the key {printable(twice)} twice in one object: send it once")
    return mapping


def _integer(digits: str) -> int:
    return int(digits)


def _number(digits: str) -> float | int:
    value = finite(digits)
    if not value.is_integer() or abs(value) > MAX_INTEGER:
        return value
    # Converted from the digits, because a double has 53 bits and a seed has 64.
    try:
        exact = decimal.Decimal(digits)
    except decimal.InvalidOperation:
        # The exponent itself has about twenty digits, so the value is zero or nearly zero.
        return value
    whole = int(exact)
    return whole if whole == exact else value


def _refuse_constant(name: str) -> float:
    raise RequestError(f"body contains {name}, which is not JSON: send a finite number")


def _check_surrogates(value: Any) -> None:
    """Refuse half of a surrogate pair: it is not a character and cannot be encoded."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise RequestError("body contains half of a surrogate pair: send whole characters") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_surrogates(key)
            _check_surrogates(item)
    elif isinstance(value, list):
        for item in value:
            _check_surrogates(item)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return {list: "array", str: "string", int: "number", float: "number"}[type(value)]


def printable(text: str) -> str:
    """Quote a client's text for a message: at most 60 characters, ASCII, no control characters."""
    return ascii(text if len(text) <= 60 else text[:60] + "...")
