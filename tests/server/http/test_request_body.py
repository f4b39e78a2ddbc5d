"""Bodies that are not one well-formed JSON object of limited size are refused, and the server continues."""

from __future__ import annotations

import gzip
import json

import pytest
from running_server import RunningServer

from vinfer.errors import RequestError
from vinfer.server.http.body import MAX_DEPTH, parse_json_object

BAD_JSON = {
    "empty": b"",
    "blank": b" \n",
    "not JSON": b"{model: fake}",
    "cut off": b'{"model": "fa',
    "trailing": b'{"a": 1} x',
    "array": b"[1]",
    "string": b'"x"',
    "number": b"3",
    "null": b"null",
    "true": b"true",
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": -Infinity}',
    "1e309": b'{"temperature": 1e309}',
    "long integer": b'{"seed": ' + b"9" * 5000 + b"}",
    "duplicate key": b'{"model": "a", "model": "b"}',
    "duplicate key inside": b'{"a": [{"b": 1, "b": 2}]}',
    "not UTF-8": b'{"model": "\xff"}',
    "UTF-16": '{"model": "x"}'.encode("utf-16"),
    "raw surrogate": b'{"model": "\xed\xa0\x80"}',
    "lone surrogate": b'{"model": "\\ud800"}',
    "lone surrogate as key": b'{"\\uDFFF": 1}',
    "raw control character": b'{"model": "\x00"}',
    "too deep": b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    "100000 deep": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("raw", BAD_JSON.values(), ids=BAD_JSON)
def test_bad_json_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError, match=r"^body "):
        parse_json_object(raw)


def test_a_byte_order_mark_is_named() -> None:
    with pytest.raises(RequestError, match=r"^body begins with a byte order mark"):
        parse_json_object(b'\xef\xbb\xbf{"model": "fake"}')


def test_good_json_is_what_it_says() -> None:
    value = {"a": ["[" * 100, '\\"{', {"b": "😀"}], "c": 1.5e300, "d": None, "e": "\u0000"}
    assert parse_json_object(json.dumps(value).encode()) == value
    deepest = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert parse_json_object(b'{"a":' + deepest + b"}") == {"a": json.loads(deepest)}


@pytest.mark.parametrize(
    ("digits", "value"),
    [
        ("5.0", 5),
        ("-5.00", -5),
        ("5e0", 5),
        ("1.5e1", 15),
        ("0e5", 0),
        ("-0.0", 0),
        ("18446744073709551615.0", 2**64 - 1),
        ("5.5", 5.5),
        ("1e-400", 0.0),
        ("1e-99999999999999999999", 0.0),
        ("9007199254740992.5", 9007199254740992.0),
        ("1e300", 1e300),
    ],
)
def test_a_number_without_a_fraction_is_an_integer(digits: str, value: float) -> None:
    """JSON Schema defines it so, and clients with only one kind of number write it so."""
    parsed = parse_json_object(f'{{"seed": {digits}}}'.encode())["seed"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_brackets_and_quotes_take_linear_time() -> None:
    # In quadratic time this would run for hours: a megabyte of quotes, each starting an unterminated string.
    for raw in (b'"' + b'\\"' * 500_000, b'{"a": "' + b"\\" * 1_000_001):
        with pytest.raises(RequestError):
            parse_json_object(raw)


def post(server: RunningServer, raw: bytes, **headers: str) -> tuple[int, str | None]:
    sent = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    response = server.http.post("/v1/chat/completions", content=raw, headers=sent)
    return response.status_code, response.json()["error"]["code"]


def test_bodies_over_http(server: RunningServer) -> None:
    for raw in BAD_JSON.values():
        expected = (413, "body_too_large") if len(raw) > 65536 else (400, None)
        assert post(server, raw) == expected
    assert server.chat().status_code == 200


def test_encodings_and_media_types(server: RunningServer) -> None:
    refused = (415, "unsupported_media_type")
    raw = b'{"model": "fake"}'
    assert post(server, gzip.compress(b" " * 10**6), content_encoding="gzip") == refused
    assert post(server, raw, content_type="text/plain") == refused
    assert post(server, raw, content_type="") == refused
    assert post(server, raw, content_type="application/json; charset=latin-1") == refused
    assert post(server, raw, content_type="Application/JSON; charset=UTF-8") == (400, None)


def test_large_body_is_refused_while_it_streams(server: RunningServer) -> None:
    sent = 0

    def endless() -> object:
        nonlocal sent
        while sent < 100 * 2**20:
            sent += 65536
            yield b" " * 65536

    response = server.http.post(
        "/v1/chat/completions", content=endless(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    assert sent < 50 * 2**20
    assert post(server, b" " * 70_000)[0] == 413
