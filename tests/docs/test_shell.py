"""The reader of shell blocks."""

from __future__ import annotations

import pytest
from docs.shell import commands, http_call


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vinfer serve x.yaml\n", [["vinfer", "serve", "x.yaml"]]),
        ("A=1 B='2 3' vinfer serve  # why\nls", [["vinfer", "serve"], ["ls"]]),
        ("curl x \\\n  -d '{\"a\":\n1}'\n", [["curl", "x", "-d", '{"a":\n1}']]),
        ("a --set 'models[0].x=1' | b && c\n\n\nd", [["a", "--set", "models[0].x=1"], ["b"], ["c"], ["d"]]),
    ],
)
def test_commands(text: str, words: list[list[str]]) -> None:
    assert commands(text) == words


def test_a_quote_without_an_end() -> None:
    with pytest.raises(ValueError, match="quotation"):
        commands("echo 'x\n")


def test_http_call() -> None:
    [words] = commands("curl -N http://h:1/v1/x?y -H 'A: b' -d '{}'")
    call = http_call(words)
    assert (call.method, call.path, call.headers, call.body) == ("POST", "/v1/x", {"A": "b"}, "{}")
    assert http_call(["curl", "http://h/"]).method == "GET"


@pytest.mark.parametrize("text", ["curl -o x http://h", "curl", "curl a b"])
def test_what_is_not_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"curl -o|not exactly one URL"):
        http_call(text.split())
