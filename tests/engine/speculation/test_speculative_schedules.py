"""When drafts are verified instead of decoded, and what the scheduler counts meanwhile."""

from __future__ import annotations

import pytest
from engine_requests import DRAFT_TOKENS, STEPS, CountingMatcher, make_pages, make_programs, make_request

from vinfer.engine.request import Request
from vinfer.engine.schedule import Decode
from vinfer.engine.scheduler import Scheduler

PERIOD = tuple(range(1, 10))
REPEATING = (*PERIOD, *PERIOD[:2])
"""Its answer goes on with 3, 4, 5, ..."""
NEW = tuple(range(20, 31))
"""Its answer repeats nothing."""


def make_scheduler(num_slots: int = 4, *, ngram: int | None = 2) -> Scheduler:
    return Scheduler(
        programs=make_programs(num_slots=num_slots),
        num_slots=num_slots,
        pages=make_pages(num_slots),
        ngram=ngram,
    )


def begin(scheduler: Scheduler, *requests: Request) -> None:
    """Prefill requests, one by one, and read all tokens that anybody has gained meanwhile."""
    for request in requests:
        scheduler.submit(request)
        is_prefilled = False
        while not is_prefilled:
            schedule = scheduler.schedule()
            chunks = [chunk for prefill in schedule.prefills for chunk in prefill.chunks]
            is_prefilled = any(chunk.is_final for chunk in chunks)
            gained = {chunk.request.id: 1 for chunk in chunks if chunk.is_final}
            if schedule.decode is not None:
                assert schedule.decode.shape.kind == "decode"
                for owner in schedule.decode.owners:
                    left = owner.params.max_tokens - gained.get(owner.id, 0)
                    gained[owner.id] = gained.get(owner.id, 0) + min(schedule.decode.step_limit, left)
            for name, number in gained.items():
                scheduler.observe(name, answer_of(scheduler, name, number))


def answer_of(scheduler: Scheduler, name: str, number: int) -> list[int]:
    """Return the next tokens of a request."""
    tokens = scheduler._running[name].tokens
    if tokens[0] == NEW[0]:
        return [100 + len(tokens) + place for place in range(number)]
    return [PERIOD[(len(tokens) + place) % len(PERIOD)] for place in range(number)]


def next_decode(scheduler: Scheduler) -> Decode:
    decode = scheduler.schedule().decode
    assert decode is not None
    return decode


def test_a_draft_is_verified_and_counted_as_a_whole_until_it_is_read() -> None:
    scheduler = make_scheduler()
    begin(scheduler, make_request("a", REPEATING, max_tokens=20))
    assert scheduler.needs_all_tokens
    decode = next_decode(scheduler)
    # The prompt ends in 1, 2; the answer so far is 3 to 7.
    assert (decode.shape.name, decode.drafts) == (f"verify[1,{DRAFT_TOKENS + 1}]", ((8, 9, 1, 2, 3),))
    assert scheduler.needs_all_tokens
    scheduler.observe("a", [8, 9, 50], num_accepted=2)
    scheduler.check_integrity()
    counts = scheduler.speculation
    assert (counts.num_drafts, counts.num_draft_tokens, counts.num_accepted_tokens) == (1, 5, 2)
    # Nothing is known about 50, so the next dispatch decodes: 8 of 20 tokens are there.
    assert not scheduler.needs_all_tokens
    assert [next_decode(scheduler).shape.kind for _ in range(3)] == ["decode"] * 3
    assert scheduler.schedule().decode is None


@pytest.mark.parametrize(("max_tokens", "num_drafted"), [(11, 5), (10, 4), (7, 1)])
def test_a_draft_leaves_room_for_the_token_after_it(max_tokens: int, num_drafted: int) -> None:
    """Five tokens of the answer are there."""
    scheduler = make_scheduler()
    begin(scheduler, make_request("a", REPEATING, max_tokens=max_tokens))
    assert len(next_decode(scheduler).drafts[0]) == num_drafted
    assert scheduler.schedule().decode is None


@pytest.mark.parametrize(("num_new", "kind"), [(1, "verify"), (2, "decode")])
def test_at_least_half_of_the_rows_need_a_draft(num_new: int, kind: str) -> None:
    scheduler = make_scheduler()
    begin(scheduler, *(make_request(f"new {place}", NEW, max_tokens=40) for place in range(num_new)))
    begin(scheduler, make_request("a", REPEATING, max_tokens=40))
    assert scheduler.needs_all_tokens == (kind == "verify")
    decode = next_decode(scheduler)
    assert (decode.shape.kind, len(decode.owners)) == (kind, num_new + 1)


def test_more_rows_than_verify_takes_are_decoded() -> None:
    scheduler = make_scheduler()
    begin(scheduler, *(make_request(name, NEW, max_tokens=30) for name in "ab"))
    begin(scheduler, *(make_request(name, REPEATING, max_tokens=30) for name in "cd"))
    assert not scheduler.needs_all_tokens
    assert next_decode(scheduler).shape.kind == "decode"
    for name in "ab":
        scheduler.finish(name)
    assert scheduler.needs_all_tokens


@pytest.mark.parametrize(
    ("grammar", "prompt_ids", "draft"),
    [
        (CountingMatcher(), REPEATING, (4, 5, 6, 7, 8)),
        (CountingMatcher(), NEW, ()),
        (CountingMatcher(forces=(70, 71)), NEW, (70, 71)),
        (CountingMatcher(forces=range(70, 79)), NEW, (70, 71, 72, 73, 74)),
        # What follows the forced tokens stood there before.
        (CountingMatcher(forces=(4, 5)), REPEATING, (4, 5, 6, 7, 8)),
        (CountingMatcher(forces=(4, 5), forbids=7), REPEATING, (4, 5, 6)),
        (CountingMatcher(forbids=4), REPEATING, ()),
    ],
)
def test_a_grammar_drafts_what_it_forces_and_cuts_what_it_forbids(
    grammar: CountingMatcher, prompt_ids: tuple[int, ...], draft: tuple[int, ...]
) -> None:
    scheduler = make_scheduler()
    begin(scheduler, make_request("a", prompt_ids, max_tokens=30, grammar=grammar))
    decode = next_decode(scheduler)
    assert decode.drafts == ((draft,) if draft else ())
    assert decode.shape.kind == ("verify" if draft else "decode")


def test_the_first_token_is_not_held_back_for_a_draft() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request("a", (*REPEATING[:8], 1, 2), max_tokens=30))
    for _ in range(2):
        scheduler.schedule()
    # The prompt ends like its beginning, but its first token is on the way.
    assert not scheduler.needs_all_tokens
    scheduler.observe("a", [3])
    assert scheduler.needs_all_tokens


def test_nothing_is_drafted_without_ngram() -> None:
    scheduler = make_scheduler(ngram=None)
    begin(scheduler, make_request("a", REPEATING, max_tokens=30))
    assert not scheduler.needs_all_tokens
    decode = next_decode(scheduler)
    assert (decode.shape.kind, decode.step_limit, decode.drafts) == ("decode", STEPS, ())
