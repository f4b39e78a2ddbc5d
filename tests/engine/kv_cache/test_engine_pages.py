"""Shared pages and preemption with the engine's thread, and a runner whose tokens can be computed by hand."""

from __future__ import annotations

import asyncio

from engine_requests import make_request
from fake_runner import VOCABULARY, FakeRunner
from running_engine import Answer, answer, run, running

from vinfer.engine.engine import Engine
from vinfer.engine.request import TokenEvent


def test_choices_share_one_prefill_and_each_says_what_it_would_alone() -> None:
    runner = FakeRunner()
    seen: list[TokenEvent] = []

    async def main(engine: Engine) -> list[Answer]:
        async def choice(name: str, max_tokens: int) -> Answer:
            stream = engine.submit(make_request(name, 20, max_tokens, scope="p"))
            seen.append(await anext(stream))
            if seen[-1].is_last:
                return list(seen[-1].token_ids), seen[-1].finish_reason
            first, (rest, finish_reason) = seen[-1].token_ids, await answer(stream)
            return [*first, *rest], finish_reason

        return await asyncio.gather(*(choice(name, 1 + place) for place, name in enumerate("abcd")))

    with running(runner, num_slots=2) as engine:
        answers = run(main(engine))
        engine.stop()
        assert engine.stats().prompt_tokens_total == 20 + 3
    assert answers == [(list(range(191, 192 + place)), "length") for place in range(4)]
    assert sorted(event.num_cached_tokens for event in seen) == [0, 19, 19, 19]


def test_a_cancelled_sibling_leaves_the_others_their_answers() -> None:
    runner = FakeRunner(num_readable=0)

    async def main(engine: Engine) -> list[Answer]:
        streams = [engine.submit(make_request(name, 40, 5, scope="p")) for name in "abc"]
        # The first of five chunks is enqueued, and reading it is not let through.
        runner.wait_until_blocked()
        engine.cancel("a")
        runner.let_through()
        return [await answer(stream) for stream in streams[1:]]

    with running(runner, num_slots=3) as engine:
        first = (sum(range(40)) + 1) % VOCABULARY
        assert run(main(engine)) == [(list(range(first, first + 5)), "length")] * 2


def test_a_preempted_request_goes_on_where_it_was() -> None:
    """Each needs 11 of 16 pages in the end, so they take turns."""

    async def main(engine: Engine) -> list[Answer]:
        streams = [
            engine.submit(make_request(name, (10 * place, 1), 40)) for place, name in enumerate("abcd")
        ]
        return await asyncio.gather(*map(answer, streams))

    with running(FakeRunner(), num_slots=3, num_pages=16) as engine:
        answers = run(main(engine))
        engine.stop()
        assert engine.stats().num_preemptions_total > 0
        assert engine.stats().generation_tokens_total == 4 * 40
        assert engine.stats().kv_cache_usage_fraction == 0
    assert answers == [([10 * place + 2 + n for n in range(40)], "length") for place in range(4)]


def test_the_next_turn_of_a_conversation_finds_the_answer_in_pages() -> None:
    """Prompt 1, 2, 3 and answer 7, 8, 9, 10, 11: seven of these are written, which is one page of four."""

    async def main(engine: Engine) -> list[TokenEvent]:
        tokens, _ = await answer(engine.submit(make_request("a", (1, 2, 3), 5, scope="s")))
        assert tokens == [7, 8, 9, 10, 11]
        following = engine.submit(make_request("b", (1, 2, 3, *tokens, 4), 1, scope="s"))
        return [event async for event in following]

    with running(FakeRunner()) as engine:
        (event,) = run(main(engine))
        engine.stop()
        assert event.token_ids == (1 + 2 + 3 + 45 + 4 + 1,)
        assert event.num_cached_tokens == 4
        assert engine.stats().prefix_cache_queries_total == 3 + 9
        assert engine.stats().prefix_cache_hits_total == 4
