"""Stop strings compared with str.find and a brute-force version of the rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinfer.text.stop_strings import StopStrings


def run(stop: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    stops = StopStrings(stop)
    shown = []
    for piece in pieces:
        result = stops.push(piece)
        shown.append(result.text)
        if result.matched is not None:
            return shown, result.matched
    return [*shown, stops.flush()], None


@pytest.mark.parametrize(
    ("stop", "pieces", "shown", "matched"),
    [
        ([], ["a", "b"], ["a", "b", ""], None),
        (["."], ["a.b"], ["a"], "."),
        (["END"], ["xE", "N", "D y"], ["x", "", ""], "END"),
        (["END"], ["xE", "N", "X"], ["x", "", "ENX", ""], None),
        (["END"], ["xEN"], ["x", "EN"], None),
        # Only the part that can still match is held: "aab" inside "aaaab".
        (["aab"], ["aaa", "ab"], ["a", "a"], "aab"),
        # The first complete match wins, though another one began earlier.
        (["abcd", "bc"], ["abcd"], ["a"], "bc"),
        # Of two that end together, the longer one wins, in either order.
        (["c", "abc"], ["xabc"], ["x"], "abc"),
        (["abc", "c"], ["xabc"], ["x"], "abc"),
        (["\n\n"], ["a\n", "b\n", "\n"], ["a", "\nb", ""], "\n\n"),
        (["日本"], ["日", "日本"], ["", "日"], "日本"),
    ],
)
def test_pieces(stop: list[str], pieces: list[str], shown: list[str], matched: str | None) -> None:
    assert run(stop, pieces) == (shown, matched)


def test_text_after_a_match_is_dropped() -> None:
    stops = StopStrings(["."])
    stops.push("a.")
    assert stops.push("b.c").text == ""
    assert stops.flush() == ""


pieces = st.lists(st.text("ab", max_size=6), max_size=8)


@given(stop=st.text("ab", min_size=1, max_size=4), pieces=pieces)
def test_one_stop_string_is_str_find(stop: str, pieces: list[str]) -> None:
    text = "".join(pieces)
    shown, matched = run([stop], pieces)
    found = text.find(stop)
    assert (matched is not None) == (found >= 0)
    assert "".join(shown) == (text if found < 0 else text[:found])


@given(stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), pieces=pieces)
def test_any_cut_gives_the_first_complete_and_longest_match(stop: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    expected: tuple[str, str | None] = (text, None)
    for end in range(1, len(text) + 1):
        ending = [string for string in stop if text[:end].endswith(string)]
        if ending:
            longest = max(ending, key=len)
            expected = (text[: end - len(longest)], longest)
            break
    shown, matched = run(stop, pieces)
    assert ("".join(shown), matched) == expected


@given(stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), pieces=pieces)
def test_holds_back_no_more_than_a_beginning_of_a_stop_string(stop: list[str], pieces: list[str]) -> None:
    stops = StopStrings(stop)
    seen = shown = ""
    for piece in pieces:
        result = stops.push(piece)
        if result.matched is not None:
            return
        seen += piece
        shown += result.text
        held = max((n for string in stop for n in range(len(string)) if seen.endswith(string[:n])), default=0)
        assert shown == seen[: len(seen) - held]
