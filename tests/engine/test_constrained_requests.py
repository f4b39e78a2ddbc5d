"""Constrained requests in the engine: each token is read before the next one is requested.

The runner's tokens can be computed by hand: the first is the prompt's sum plus one, each later one is one
more.
"""

from __future__ import annotations

import asyncio

import pytest
from engine_requests import STEPS, CountingMatcher, make_request
from fake_runner import GUARD_SECONDS, FakeRunner, LogEntry
from running_engine import running

from vinfer.engine.engine import Engine
from vinfer.engine.request import TokenEvent
from vinfer.engine.stream import TokenStream
from vinfer.errors import RequestError


async def events(stream: TokenStream) -> list[TokenEvent]:
    return [event async for event in stream]


def tokens(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def in_order(log: list[LogEntry]) -> list[str]:
    """Return the calls to a runner in order, without the numbers."""
    return [kind for kind, _ in log]


def test_every_token_is_read_before_the_next_is_enqueued() -> None:
    runner, matcher = FakeRunner(), CountingMatcher()

    async def main(engine: Engine) -> list[TokenEvent]:
        request = make_request("a", (10,), max_tokens=4, grammar=matcher)
        return await asyncio.wait_for(events(engine.submit(request)), GUARD_SECONDS)

    with running(runner) as engine:
        found = asyncio.run(main(engine))
        engine.stop()
    assert (tokens(found), found[-1].finish_reason) == ([11, 12, 13, 14], "length")
    assert in_order(runner.log) == ["set_slot", "prefill", "read", *["decode", "read"] * 3]
    # The last token ends the request, whatever the grammar says.
    assert matcher.taken == [11, 12, 13]


def test_a_stop_token_ends_the_request_and_is_none_of_the_grammar_s() -> None:
    matcher = CountingMatcher()

    async def main(engine: Engine) -> list[TokenEvent]:
        request = make_request("a", (10,), max_tokens=9, stop=(13,), grammar=matcher)
        return await asyncio.wait_for(events(engine.submit(request)), GUARD_SECONDS)

    with running(FakeRunner()) as engine:
        found = asyncio.run(main(engine))
    assert (tokens(found), found[-1].finish_reason) == ([11, 12, 13], "stop")
    assert matcher.taken == [11, 12]


def test_others_share_the_batch_and_go_back_to_many_steps_when_the_grammar_is_done() -> None:
    runner = FakeRunner()

    async def main(engine: Engine) -> tuple[list[TokenEvent], list[TokenEvent]]:
        plain = engine.submit(make_request("plain", (100,), max_tokens=30))
        constrained = engine.submit(make_request("bound", (10,), max_tokens=4, grammar=CountingMatcher()))
        both = asyncio.gather(events(plain), events(constrained))
        return await asyncio.wait_for(both, GUARD_SECONDS)

    with running(runner) as engine:
        plain, constrained = asyncio.run(main(engine))
        engine.stop()
    assert tokens(plain) == list(range(101, 131))
    assert tokens(constrained) == [11, 12, 13, 14]
    asked = in_order(runner.log)
    # Far fewer dispatches than tokens: they run one step only while the constrained request runs.
    assert asked.count("decode") <= 4 + -(-29 // STEPS) + 1
    # In the end they are enqueued ahead again.
    assert asked[-3:] == ["decode", "read", "read"]


def test_a_grammar_that_breaks_its_limits_ends_its_own_request_only() -> None:
    async def main(engine: Engine) -> tuple[list[TokenEvent], list[TokenEvent], list[TokenEvent]]:
        plain = engine.submit(make_request("plain", (100,), max_tokens=20))
        broken = engine.submit(make_request("b", (10,), max_tokens=20, grammar=CountingMatcher(breaks_at=3)))
        after = engine.submit(make_request("after", (50,), max_tokens=2))
        together = asyncio.gather(events(plain), events(broken), events(after))
        return await asyncio.wait_for(together, GUARD_SECONDS)

    with running(FakeRunner()) as engine:
        plain, broken, after = asyncio.run(main(engine))
        assert engine.is_alive
    assert tokens(plain) == list(range(101, 121))
    assert tokens(broken) == [11, 12]
    assert isinstance(broken[-1].error, RequestError)
    assert broken[-1].error.param == "the.field"
    # Its slot is free for the waiting request.
    assert tokens(after) == [51, 52]


def test_a_cancelled_request_is_advanced_no_more_and_frees_its_slot() -> None:
    runner, matcher = FakeRunner(num_readable=2), CountingMatcher()

    async def main(engine: Engine) -> list[TokenEvent]:
        constrained = engine.submit(make_request("bound", (10,), max_tokens=50, grammar=matcher))
        assert tokens([await anext(constrained)])[:1] == [11]
        runner.wait_until_blocked()
        engine.cancel("bound")
        runner.let_through()
        return await asyncio.wait_for(events(engine.submit(make_request("next", (20,)))), GUARD_SECONDS)

    with running(runner, num_slots=1) as engine:
        assert tokens(asyncio.run(main(engine))) == [21, 22, 23]
        # Two tokens had been read, one was being read, and one more was enqueued in the same step.
        assert matcher.taken == [11, 12, 13, 14]


@pytest.mark.parametrize("fails_at", [("set_slot", "late"), ("decode", 3)], ids=str)
def test_who_has_finished_gets_the_end_though_the_next_work_fails(
    fails_at: LogEntry, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokens of a constrained batch are delivered after the next work is enqueued, which may fail."""
    runner = FakeRunner(num_readable=0, fails_at=fails_at)

    async def main(engine: Engine) -> tuple[list[TokenEvent], list[TokenEvent]]:
        constrained = engine.submit(make_request("bound", (10,), max_tokens=50, grammar=CountingMatcher()))
        # It ends with the token of the dispatch before the one that fails.
        short = engine.submit(make_request("short", (20,), max_tokens=2))
        runner.wait_until_blocked()
        late = engine.submit(make_request("late", (30,)))
        runner.let_through()
        found = await asyncio.wait_for(asyncio.gather(events(constrained), events(short)), GUARD_SECONDS)
        await asyncio.wait_for(events(late), GUARD_SECONDS)
        return found

    with running(runner) as engine:
        constrained, short = asyncio.run(main(engine))
        assert not engine.is_alive
    assert constrained[-1].error is not None
    assert (tokens(short), short[-1].finish_reason) == ([21, 22], "length")
