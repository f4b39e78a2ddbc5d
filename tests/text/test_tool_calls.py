"""Tool calls in text: what is a call, what is text, and that splitting the text changes nothing."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinfer.text.tool_calls.events import CallArguments, CallStart, Text
from vinfer.text.tool_calls.formats import FORMATS
from vinfer.text.tool_calls.parser import ToolCallParser

NAMES = ("add", "get_weather", "f-1")


def read(pieces: list[str], form: str = "hermes") -> tuple[str, list[tuple[str, str]]]:
    """Return the text and the calls (name, arguments) of an answer that arrives in pieces."""
    parser = ToolCallParser(FORMATS[form], NAMES)
    events = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
    text, calls = "", []
    for event in events:
        if isinstance(event, Text):
            assert event.text
            text += event.text
        elif isinstance(event, CallStart):
            calls.append((event.name, ""))
        else:
            assert isinstance(event, CallArguments)
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return text, calls


def hermes(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


ADD = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}\\"{</tool_call>"}]}}'
ADDED = ("add", '{"a": 1, "b": [2, {"c": "}\\"{</tool_call>"}]}')
ALL = "the whole answer is text"
Case = tuple[str, str, list[tuple[str, str]]]
HERMES: dict[str, Case] = {
    "text": ("Hi <there> you", "Hi <there> you", []),
    "nothing": ("", "", []),
    "white space": (" \n", " \n", []),
    "one call": (hermes(ADD), "", [ADDED]),
    "text before": (f"I'll add.\n\n{hermes(ADD)}", "I'll add.", [ADDED]),
    "two calls": (f"{hermes(ADD)}\n{hermes(ADD)}\n", "", [ADDED, ADDED]),
    "text after": (f"{hermes(ADD)}\n\nDone. ", "Done.", [ADDED]),
    "no end tag": (f"<tool_call>{ADD}", "", [ADDED]),
    "end tag forgotten": (f"<tool_call>{ADD}<tool_call>{ADD}", "", [ADDED, ADDED]),
    "one tag within another": (f"<tool_call> {hermes(ADD)}", "<tool_call>", [ADDED]),
    "tight": ('<tool_call>{"name":"add","arguments":{}}</tool_call>', "", [("add", "{}")]),
    "parameters": (hermes('{"name": "add", "parameters": {"a": 1}}'), "", [("add", '{"a": 1}')]),
    "arguments first": (hermes('{"arguments": {"a": 1}, "name": "add"}'), "", [("add", '{"a": 1}')]),
    "arguments as text": (hermes('{"name": "add", "arguments": "{\\"a\\":1}"}'), "", [("add", '{"a": 1}')]),
    "no arguments": (hermes('{"name": "add"}'), "", [("add", "{}")]),
    "null arguments": (hermes('{"name": "add", "arguments": null}'), "", [("add", "{}")]),
    "more members": (hermes('{"id": 1, "name": "add", "arguments": {}, "x": {"a": 1}}'), "", [("add", "{}")]),
    "a name inside": (
        hermes('{"x": {"name": "add"}, "name": "f-1", "arguments": {}}'),
        "",
        [("f-1", "{}")],
    ),
    "unknown tool": ("a " + hermes('{"name": "rm", "arguments": {}}'), ALL, []),
    "no object": (hermes("[1]"), ALL, []),
    "list as arguments": (hermes('{"name": "add", "arguments": [1]}'), ALL, []),
    "no JSON": (hermes("{add: 1}"), ALL, []),
    "cut in the tag": ("a <tool_ca", ALL, []),
    "cut in the name": ('a <tool_call>\n{"name": "ad', ALL, []),
    "cut in the arguments": ('<tool_call>{"name": "add", "arguments": {"a', "", [("add", '{"a')]),
    "a brace too many": (hermes("{"), ALL, []),
    "unknown, then known": (
        hermes('{"name": "rm"}') + "\n" + hermes(ADD),
        hermes('{"name": "rm"}'),
        [ADDED],
    ),
}
LLAMA_ADD = '{"name": "add", "parameters": {"a": 1}}'
LLAMA: dict[str, Case] = {
    "text": ("Hi", "Hi", []),
    "one call": (LLAMA_ADD, "", [("add", '{"a": 1}')]),
    "two calls": (f"{LLAMA_ADD}; {LLAMA_ADD}", "", [("add", '{"a": 1}')] * 2),
    "tag": (f"<|python_tag|>{LLAMA_ADD}", "", [("add", '{"a": 1}')]),
    "text, tag": (f"Hm. <|python_tag|> {LLAMA_ADD}", "Hm.", [("add", '{"a": 1}')]),
    "list": (f"\n[{LLAMA_ADD}]", "", [("add", '{"a": 1}')]),
    "JSON of another kind": ('{"a": [1, 2]}', ALL, []),
    "list of another kind": ("[1, 2]", ALL, []),
    "in the middle of text": (f"So: {LLAMA_ADD}", ALL, []),
    "code": ("<|python_tag|>print(1)", ALL, []),
}
MISTRAL: dict[str, Case] = {
    "text": ("[1] Hi", "[1] Hi", []),
    "one call": (f"[TOOL_CALLS][{ADD}]", "", [ADDED]),
    "space": (f"[TOOL_CALLS] [{ADD}]", "", [ADDED]),
    "two calls": (f"[TOOL_CALLS][{ADD}, {ADD}]", "", [ADDED, ADDED]),
    "text before": (f"Well. [TOOL_CALLS][{ADD}]", "Well.", [ADDED]),
    "no list": (f"[TOOL_CALLS]{ADD}", "", [ADDED]),
    "unknown tool": ('[TOOL_CALLS][{"name": "rm", "arguments": {}}]', ALL, []),
    "no call": ("[TOOL_CALLS]", ALL, []),
    "known, then unknown": (f"[TOOL_CALLS][{ADD}, {{}}]", "{}]", [ADDED]),
}
PYTHONIC: dict[str, Case] = {
    "text": ("Hi (there) [you]", ALL, []),
    "one call": ("[add(a=1, b='x')]", "", [("add", '{"a": 1, "b": "x"}')]),
    "two calls": (
        "[add(), f-1(x=[1, {'y': None}])]",
        "",
        [("add", "{}"), ("f-1", '{"x": [1, {"y": null}]}')],
    ),
    "words of JSON": ("[add(a=true, b=null, c=-1.5)]", "", [("add", '{"a": true, "b": null, "c": -1.5}')]),
    "quotes": ("""[add(a="(')]", b='\\'é')]""", "", [("add", """{"a": "(')]", "b": "'é"}""")]),
    "half a character": (r"[add(a='\ud800')]", "", [("add", r'{"a": "\ud800"}')]),
    "text around": ("So: [add(a=1)] it is", "So:it is", [("add", '{"a": 1}')]),
    "objects": (f"[{ADD}]", "", [ADDED]),
    "unknown tool": ("[rm(a=1)]", ALL, []),
    "a link": ("see [add](http://x) and [1](add)", ALL, []),
    "positional": ("[add(1)]", ALL, []),
    "not literal": ("[add(a=f(1))]", ALL, []),
    "code": ("[add(a=__import__('os').system('true'))]", ALL, []),
    "stars": ("[add(**{'a': 1})]", ALL, []),
    "bytes": ("[add(a=b'x')]", ALL, []),
    "not a number": ("[add(a=1e999)]", ALL, []),
    "broken": ("[add(a=]x)]", ALL, []),
    "cut off": ("[add(a=1", ALL, []),
    "too deep": ("[add(a=" + "[" * 40 + "]" * 40 + ")]", ALL, []),
    "very many signs": ("[add(a=" + "-" * 5_000 + "1)]", ALL, []),
}
CASES = [
    (form, name, case)
    for form, cases in (
        ("hermes", HERMES),
        ("llama3_json", LLAMA),
        ("mistral", MISTRAL),
        ("pythonic", PYTHONIC),
    )
    for name, case in cases.items()
]


@pytest.mark.parametrize(
    ("form", "case"), [(f, c) for f, _, c in CASES], ids=[f"{f}: {n}" for f, n, _ in CASES]
)
def test_every_cut_gives_the_same(form: str, case: Case) -> None:
    answer, text, calls = case
    expected = (answer if text == ALL else text, calls)
    assert read([answer], form) == expected
    assert read(list(answer), form) == expected
    for cut in range(1, len(answer), 1 + len(answer) // 100):
        assert read([answer[:cut], answer[cut:]], form) == expected, cut


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_format_reads_what_it_writes(form: str) -> None:
    calls = [("add", '{"a": "é"}'), ("f-1", "{}")]
    assert read([FORMATS[form].written(calls)], form) == ("", calls)
    ids = {FORMATS[form].new_id() for _ in range(100)}
    assert len(ids) == 100
    # Mistral's chat templates refuse any other length.
    assert form != "mistral" or all(len(call_id) == 9 and call_id.isalnum() for call_id in ids)


FRAGMENTS = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "\n",
            " ",
            '{"name": "add", "arguments": ',
            "{",
            "}",
            '"',
            "\\",
            "a",
        ),
        *(ADD, "[TOOL_CALLS]", "[", "]", ",", ";", '"parameters": ', "<|python_tag|>", "add(", "a=1", ")"),
        *("add", "[ARGS]"),
    ]
)


@given(pieces=st.lists(FRAGMENTS, max_size=12), form=st.sampled_from(sorted(FORMATS)))
def test_any_text_cut_anyhow_gives_the_same(pieces: list[str], form: str) -> None:
    answer = "".join(pieces)
    assert read(pieces, form) == read([answer], form) == read(list(answer), form)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(), child, max_size=3),
    max_leaves=8,
)


@given(arguments=st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=1, max_size=3))
def test_any_arguments_come_out_as_they_went_in(arguments: list[dict[str, Any]]) -> None:
    for ensure_ascii in (False, True):
        written = [json.dumps(item, ensure_ascii=ensure_ascii) for item in arguments]
        answer = "\n".join(hermes(f'{{"name": "add", "arguments": {text}}}') for text in written)
        assert read([answer]) == ("", [("add", text) for text in written])


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_time_grows_with_the_answer_only(form: str) -> None:
    """A quadratic parser would need minutes for this."""
    units = ["\n", "<tool_call>\n", "{", '<tool_call>{"name": "', "[TOOL_CALLS][", "[add(", "["]
    started = time.process_time()
    for unit in units:
        answer = unit * (100_000 // len(unit))
        read([answer], form)
        read([answer[i : i + 4] for i in range(0, len(answer), 4)], form)
    assert time.process_time() - started < 10
