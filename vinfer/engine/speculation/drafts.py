"""Drafts by prompt lookup: what followed the newest tokens of a request where they stood before.

Pure Python, engine thread. A wrong draft costs time and changes no token.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

FIRST_PAUSE = 2
LONGEST_PAUSE = 64
"""New tokens of a request after a draft that was wrong from its first token, until the next draft."""


class PromptLookup:
    """The drafts of one request.

    A draft that is wrong from its first token is followed by a pause, and each further one by a pause twice
    as long, until a draft is right. Until then, no single token is looked up.

    Args:
        tokens: the prompt and, as they become known, the tokens of the answer; the caller appends to it.
        ngram: how many of the newest tokens are looked up; then fewer.
    """

    def __init__(self, tokens: Sequence[int], *, ngram: int) -> None:
        self._tokens = tokens
        self._ngram = ngram
        # A character per token, because nothing else in Python is searched backwards as fast.
        self._text = ""
        self._num_certain = 0
        self._was_wrong = False
        self._pause = 0
        self._resumes_at = 0

    def draft(self, max_tokens: int, certain: Sequence[int] = ()) -> tuple[int, ...]:
        """Return `max_tokens` tokens that may come next; none if nothing is found, or in a pause.

        The most recent place counts. If it is nearer than `max_tokens`, what followed it comes again.

        Args:
            certain: tokens that come first; the draft begins with them, and may have no others.
        """
        self._num_certain = len(certain)
        tokens = [*self._tokens, *certain] if certain else self._tokens
        return (*certain[:max_tokens], *self._following(tokens, max_tokens - len(certain)))

    def _following(self, tokens: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        if max_tokens <= 0 or len(self._tokens) < self._resumes_at:
            return ()
        self._text += "".join(map(_character, self._tokens[len(self._text) :]))
        text = self._text + "".join(map(_character, tokens[len(self._text) :]))
        smallest = min(self._ngram, 2) if self._was_wrong else 1
        for size in range(self._ngram, smallest - 1, -1):
            # It ends before the newest token.
            place = text.rfind(text[-size:], 0, len(text) - 1) if size < len(text) else -1
            if place >= 0:
                following = tokens[place + size : place + size + max_tokens]
                return tuple(itertools.islice(itertools.cycle(following), max_tokens))
        return ()

    def learn(self, num_accepted: int, num_drafted: int) -> None:
        """Note how many tokens of the newest draft were right; the caller has appended them.

        Args:
            num_drafted: how many of its tokens were verified.
        """
        if num_drafted <= self._num_certain:
            return
        self._was_wrong = num_accepted <= self._num_certain
        if not self._was_wrong:
            self._pause = 0
        else:
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
            self._resumes_at = len(self._tokens) + self._pause


def _character(token: int) -> str:
    # Two tokens of a vocabulary larger than Unicode may be taken for one: a wrong draft.
    return chr(token % (sys.maxunicode + 1))
