"""Reasoning is separated from the answer however the text is split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinfer.text.reasoning import ReasoningParser
from vinfer.text.tool_calls.events import Reasoning


def read(pieces: list[str], *, is_open: bool = False) -> tuple[str, str]:
    """Return the reasoning and the answer."""
    parser = ReasoningParser(is_open=is_open)
    events = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
    assert all(event.text for event in events)
    thoughts = [isinstance(event, Reasoning) for event in events]
    assert thoughts == sorted(thoughts, reverse=True)
    texts = [
        "".join(e.text for e in events if isinstance(e, Reasoning) is wanted) for wanted in (True, False)
    ]
    return texts[0], texts[1]


CASES: list[tuple[str, bool, str, str]] = [
    ("Hi", False, "", "Hi"),
    ("", False, "", ""),
    ("\n Hi <think>x</think>", False, "", "\n Hi <think>x</think>"),
    ("<think>\nI see.\n\nSo.\n</think>\n\nHi\n", False, "I see.\n\nSo.", "Hi\n"),
    (" <think></think>Hi", False, "", "Hi"),
    ("<think>a </thin b", False, "a </thin b", ""),
    ("<think>a </thin", False, "a </thin", ""),
    ("<thi", False, "", "<thi"),
    ("  ", False, "", "  "),
    ("a</think>b", True, "a", "b"),
    ("\na\n", True, "a", ""),
    ("a</think>b</think>", True, "a", "b</think>"),
    ("a</think>", False, "", "a</think>"),
]


@pytest.mark.parametrize(("answer", "is_open", "reasoning", "content"), CASES)
def test_every_cut_gives_the_same(answer: str, is_open: bool, reasoning: str, content: str) -> None:
    assert read([answer], is_open=is_open) == (reasoning, content)
    assert read(list(answer), is_open=is_open) == (reasoning, content)
    for cut in range(1, len(answer)):
        assert read([answer[:cut], answer[cut:]], is_open=is_open) == (reasoning, content)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "think", ">", " ", "\n", "a"])), st.booleans())
def test_any_text(pieces: list[str], is_open: bool) -> None:
    answer = "".join(pieces)
    assert (
        read(pieces, is_open=is_open)
        == read([answer], is_open=is_open)
        == read(list(answer), is_open=is_open)
    )
