"""Decides which requests speculate, and learns from what became of their drafts.

Pure Python beside the scheduler, engine thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from vinfer.bundle.program_table import ProgramTable
from vinfer.engine.request import TokenMatcher
from vinfer.engine.running import Running
from vinfer.engine.speculation.drafts import PromptLookup


class Speculation:
    """The drafts of all requests of one model.

    Args:
        programs: the compiled programs; without verify programs nothing is drafted.
        ngram: see `PromptLookup`; None for no drafts.

    Attributes:
        num_drafts: drafts that were verified.
        num_draft_tokens: their tokens.
        num_accepted_tokens: how many of these were right.
    """

    def __init__(self, programs: ProgramTable, *, ngram: int | None) -> None:
        self._max_rows = programs.max_rows("verify")
        self._max_tokens = programs.max_draft_tokens
        self._ngram = ngram if self._max_tokens else None
        self._lookups: dict[str, PromptLookup] = {}
        self.num_drafts = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0

    def begin(self, running: Running) -> None:
        """Draft for a request that has got a slot."""
        if self._ngram is not None:
            self._lookups[running.request.id] = PromptLookup(running.tokens, ngram=self._ngram)

    def end(self, running: Running) -> None:
        """Forget a request that has left its slot."""
        self._lookups.pop(running.request.id, None)

    def needs_all_tokens(self, running: Collection[Running]) -> bool:
        """Whether all tokens should be read before the next dispatch: those of drafts, or because of one.

        The first token of an answer is not held back for this.
        """
        if self._ngram is None:
            return False
        if any(each.num_drafted for each in running):
            return True
        decoding = [each for each in running if each.is_prefilled and each.num_left > 0]
        begun = {each.request.id for each in decoding if len(each.tokens) > each.num_to_prefill}
        return bool(self._drafts(decoding, begun))

    def drafts(self, rows: Collection[Running]) -> dict[str, tuple[int, ...]]:
        """Return the drafts to verify, by request, if all rows are to be verified; none if they are decoded.

        A row without a draft, or with unread tokens, takes part with no token. One dispatch of verify costs
        more than one step, so at least half of the rows need a draft.
        """
        if self._ngram is None:
            return {}
        known = {
            each.request.id
            for each in rows
            if len(each.tokens) == len(each.request.prompt_ids) + each.num_dispatched
        }
        return self._drafts(rows, known)

    def _drafts(self, rows: Collection[Running], candidates: Collection[str]) -> dict[str, tuple[int, ...]]:
        if not 0 < len(rows) <= self._max_rows:
            return {}
        drafts: dict[str, tuple[int, ...]] = {}
        for each in rows:
            # A token is sampled after the draft too.
            max_tokens = min(self._max_tokens, each.num_left - 1)
            lookup = self._lookups.get(each.request.id)
            if lookup is not None and max_tokens > 0 and each.request.id in candidates:
                draft = _draft(lookup, each.request.grammar, max_tokens)
                if draft:
                    drafts[each.request.id] = draft
        return drafts if 2 * len(drafts) >= len(rows) else {}

    def learn(self, running: Running, num_accepted: int) -> None:
        """Count what became of a request's draft, whose sampled tokens have been appended to its own."""
        self.num_drafts += 1
        num_drafted = running.num_drafted
        self.num_draft_tokens += num_drafted
        self.num_accepted_tokens += num_accepted
        running.num_drafted = 0
        running.num_dispatched = len(running.tokens) - len(running.request.prompt_ids)
        self._lookups[running.request.id].learn(num_accepted, num_drafted)


def _draft(lookup: PromptLookup, grammar: TokenMatcher | None, max_tokens: int) -> tuple[int, ...]:
    """Return what may come next: first what a grammar forces, then what stood there before and is allowed."""
    if grammar is None:
        return lookup.draft(max_tokens)
    draft = lookup.draft(max_tokens, grammar.forced(max_tokens))
    return draft[: grammar.num_allowed(draft)]


def steps_of(rows: Iterable[Running], drafts: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the most tokens that each row gains when drafts are verified."""
    return {each.request.id: len(drafts.get(each.request.id, ())) + 1 for each in rows}
