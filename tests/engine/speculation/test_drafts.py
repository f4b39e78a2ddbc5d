"""Prompt lookup against a naive search, and its pauses."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from vinfer.engine.speculation.drafts import FIRST_PAUSE, LONGEST_PAUSE, PromptLookup

TOKENS = st.lists(st.sampled_from((0, 1, 2, 0xD800, 70_000)), min_size=1, max_size=40)


def naive_draft(tokens: Sequence[int], ngram: int, max_tokens: int, smallest: int = 1) -> tuple[int, ...]:
    for size in range(ngram, min(ngram, smallest) - 1, -1):
        newest = list(tokens[-size:])
        for end in range(len(tokens) - 1, size - 1, -1):
            if list(tokens[end - size : end]) == newest:
                following = list(tokens)
                while len(following) < end + max_tokens:
                    following.append(following[len(following) - (len(tokens) - end)])
                return tuple(following[end : end + max_tokens])
    return ()


@given(tokens=TOKENS, more=TOKENS, ngram=st.integers(1, 5), max_tokens=st.integers(1, 8))
def test_a_draft_is_that_of_a_naive_search(
    tokens: list[int], more: list[int], ngram: int, max_tokens: int
) -> None:
    lookup = PromptLookup(tokens, ngram=ngram)
    assert lookup.draft(max_tokens) == naive_draft(tokens, ngram, max_tokens)
    # After what is certain, it goes on as if that were in the answer already.
    following = naive_draft([*tokens, *more], ngram, max_tokens)
    assert lookup.draft(len(more) + max_tokens, more) == (*more, *following)
    assert lookup.draft(len(more), more) == tuple(more)
    # What has been appended is found too.
    for token in more:
        tokens.append(token)
        assert lookup.draft(max_tokens) == naive_draft(tokens, ngram, max_tokens)
    lookup.learn(0, 2)
    tokens += [3] * FIRST_PAUSE
    assert lookup.draft(max_tokens) == naive_draft(tokens, ngram, max_tokens, smallest=2)


def test_the_longest_and_then_the_most_recent_place_counts() -> None:
    assert PromptLookup([7, 8, 9, 1, 8, 9, 2, 8, 9, 3, 7, 8, 9], ngram=3).draft(2) == (1, 8)
    assert PromptLookup([8, 9, 1, 8, 9, 2, 8, 9, 3, 7, 8, 9], ngram=3).draft(2) == (3, 7)


def test_after_a_wrong_draft_no_single_token_is_looked_up_until_one_is_right() -> None:
    tokens = [9, 1, 7, 9]
    lookup = PromptLookup(tokens, ngram=3)
    assert lookup.draft(2) == (1, 7)
    lookup.learn(0, 2)
    tokens += [4, 5, 9]
    assert lookup.draft(2) == ()
    lookup.learn(1, 2)
    assert lookup.draft(2) == (4, 5)
    lookup = PromptLookup(tokens, ngram=1)
    lookup.learn(0, 2)
    tokens += [6, 6, 9]
    assert lookup.draft(2) == (6, 6)


def test_a_short_period_goes_on() -> None:
    assert PromptLookup([5, 6, 7, 6, 7, 6, 7], ngram=3).draft(5) == (6, 7, 6, 7, 6)


def test_tokens_beyond_unicode_are_drafted_as_they_are() -> None:
    large = sys.maxunicode + 8
    assert PromptLookup([large, large + 1, large + 2, large, large + 1], ngram=2).draft(1) == (large + 2,)


def test_wrong_drafts_are_followed_by_longer_and_longer_pauses_until_one_is_right() -> None:
    tokens = [1] * 8
    lookup = PromptLookup(tokens, ngram=2)

    def pause(num_accepted: int) -> int:
        lookup.learn(num_accepted, 4)
        start = len(tokens)
        while not lookup.draft(4):
            tokens.append(1)
        return len(tokens) - start

    pauses = [pause(0) for _ in range(6)]
    assert pauses == [min(FIRST_PAUSE * 2**place, LONGEST_PAUSE) for place in range(6)]
    assert pauses[-1] == LONGEST_PAUSE
    assert (pause(1), pause(0)) == (0, FIRST_PAUSE)


def test_what_is_certain_teaches_nothing_about_the_rest() -> None:
    tokens = [1, 2, 3, 1]
    lookup = PromptLookup(tokens, ngram=2)
    assert lookup.draft(3, (2,)) == (2, 3, 1)
    # The certain token was right, the next one was not: a pause, but not for what is certain.
    lookup.learn(1, 3)
    assert lookup.draft(3) == ()
    assert lookup.draft(3, (2,)) == (2,)
    # Nothing was guessed, so the pause neither ends nor grows.
    lookup.learn(1, 1)
    tokens += [2, 3]
    assert lookup.draft(1) == (1,)
