"""Engine, scheduler and streams together, with a runner whose tokens can be computed by hand.

Tests never sleep: they let dispatches through one by one if the order matters.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from engine_requests import STEPS, make_request
from fake_runner import GUARD_SECONDS, FakeRunner
from running_engine import Answer, answer, run, running

from vinfer.engine.engine import Engine
from vinfer.engine.rates import DispatchTimes
from vinfer.engine.request import TokenEvent
from vinfer.engine.stream import TokenStream
from vinfer.errors import EngineError, NotReadyError, QueueFullError


@pytest.mark.parametrize(
    ("prompt_ids", "max_tokens", "stop", "expected"),
    [
        ((1, 2, 3), 4, (), ([7, 8, 9, 10], "length")),
        ((499, 500), 3, (), ([0, 1, 2], "length")),
        ((5,), 1, (), ([6], "length")),
        ((10,), 10, (14,), ([11, 12, 13, 14], "stop")),
        ((10,), 10, (99, 11), ([11], "stop")),
        ((10,), 4, (14,), ([11, 12, 13, 14], "stop")),
        (20, 2, (), ([191, 192], "length")),
        ((100,), 40, (), (list(range(101, 141)), "length")),
    ],
    ids=str,
)
def test_tokens_by_hand(
    prompt_ids: tuple[int, ...] | int, max_tokens: int, stop: tuple[int, ...], expected: Answer
) -> None:
    async def main(engine: Engine) -> Answer:
        return await answer(engine.submit(make_request("a", prompt_ids, max_tokens, stop)))

    with running(FakeRunner()) as engine:
        assert run(main(engine)) == expected


def test_more_requests_than_slots_each_get_their_own_tokens() -> None:
    async def main(engine: Engine) -> list[Answer]:
        streams = [
            engine.submit(make_request(f"r{i}", (10 * i, 1), max_tokens=1 + i % 7, stop=(10 * i + 5,)))
            for i in range(30)
        ]
        return await asyncio.gather(*map(answer, streams))

    with running(FakeRunner(), num_slots=4) as engine:
        answers = run(main(engine))
    for i, (tokens, finish_reason) in enumerate(answers):
        # Prompt 10i + 1: the first token is 10i + 2; 10i + 5, the fourth, is a stop token.
        num_tokens = min(1 + i % 7, 4)
        assert tokens == [10 * i + 2 + n for n in range(num_tokens)]
        assert finish_reason == ("stop" if num_tokens == 4 else "length")


def test_a_request_for_no_tokens_ends_without_any() -> None:
    async def main(engine: Engine) -> list[Answer]:
        requests = [make_request("a", 20, 0), make_request("b", 1, 0), make_request("c", 20, 2)]
        return await asyncio.gather(*(answer(engine.submit(request)) for request in requests))

    with running(FakeRunner()) as engine:
        assert run(main(engine)) == [([], "length"), ([], "length"), ([191, 192], "length")]


def test_a_late_request_gets_its_first_token_before_the_running_ones_end() -> None:
    runner = FakeRunner(num_readable=2)

    async def main(engine: Engine) -> None:
        long_ones = [engine.submit(make_request(name, (1,), max_tokens=60)) for name in "ab"]
        for stream in long_ones:
            assert (await anext(stream)).token_ids[0] == 2
        runner.wait_until_blocked()
        late = engine.submit(make_request("late", (500,), max_tokens=60))
        # The unread dispatches and the step that admits it: at most 3 * 4 tokens of the long requests.
        runner.let_through(3)
        assert (await anext(late)).token_ids[0] == 501
        runner.wait_until_blocked()
        for stream in long_ones:
            assert not (await anext(stream)).is_last
        runner.let_through()
        for stream in (*long_ones, late):
            assert (await answer(stream))[1] == "length"

    with running(runner, num_slots=3) as engine:
        run(main(engine))


def test_the_next_dispatch_is_enqueued_before_the_last_one_is_read() -> None:
    runner = FakeRunner()

    async def main(engine: Engine) -> Answer:
        return await answer(engine.submit(make_request("a", (1,), max_tokens=1 + 3 * STEPS)))

    with running(runner) as engine:
        assert run(main(engine)) == (list(range(2, 15)), "length")
        engine.stop()
        assert runner.log == [
            ("set_slot", "a"),
            ("prefill", 0),
            ("decode", 1),
            ("decode", 2),
            ("read", 0),
            ("read", 1),
            ("decode", 3),
            ("read", 2),
            ("read", 3),
        ]
        assert engine.stats().num_overlapped_dispatches_total == 2


def test_a_request_that_arrives_while_the_device_is_busy_is_in_the_next_dispatch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = FakeRunner()
    waits = threading.Event()

    def spare_seconds(times: DispatchTimes, now: float) -> float:
        is_first = not waits.is_set()
        waits.set()
        return GUARD_SECONDS if is_first else 0.0

    async def main(engine: Engine) -> None:
        a = engine.submit(make_request("a", (1,), max_tokens=1 + 3 * STEPS))
        await asyncio.to_thread(waits.wait, GUARD_SECONDS)
        before = runner.log
        b = engine.submit(make_request("b", (5,), max_tokens=1 + 3 * STEPS))
        await asyncio.gather(answer(a), answer(b))
        assert before == [("set_slot", "a"), ("prefill", 0), ("decode", 1)]
        assert runner.log[3:6] == [("set_slot", "b"), ("prefill", 2), ("decode", 3)]

    monkeypatch.setattr(DispatchTimes, "spare_seconds", spare_seconds)
    with running(runner, num_slots=2) as engine:
        run(main(engine))


def test_a_first_token_is_delivered_before_the_engine_waits_for_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = FakeRunner()

    async def main(engine: Engine) -> None:
        stream = engine.submit(make_request("a", (1,), max_tokens=60))
        assert (await anext(stream)).token_ids == (2,)
        assert runner.log[3:] == [("read", 0)]
        engine.cancel("a")

    monkeypatch.setattr(DispatchTimes, "last_is_long", True)
    monkeypatch.setattr(DispatchTimes, "spare_seconds", lambda times, now: GUARD_SECONDS)
    with running(runner, num_slots=2) as engine:
        run(main(engine))


def test_late_tokens_of_a_stopped_request_never_reach_the_next_owner_of_its_slot() -> None:
    runner = FakeRunner()

    async def main(engine: Engine) -> list[Answer]:
        # The stop token ends a on the device while later dispatches are already enqueued.
        a = engine.submit(make_request("a", (100,), max_tokens=40, stop=(103,)))
        b = engine.submit(make_request("b", (200,), max_tokens=9, stop=(103, 205)))
        return [await answer(a), await answer(b)]

    with running(runner, num_slots=1) as engine:
        assert run(main(engine)) == [([101, 102, 103], "stop"), ([201, 202, 203, 204, 205], "stop")]
    number_of_b = runner.log.index(("set_slot", "b"))
    unread = [entry for entry in runner.log[:number_of_b] if entry[0] in ("prefill", "decode")]
    assert len(unread) > sum(entry[0] == "read" for entry in runner.log[:number_of_b])


def test_a_cancelled_request_leaves_its_slot_in_the_next_step_and_its_late_tokens_go_nowhere() -> None:
    runner = FakeRunner(num_readable=1)

    async def main(engine: Engine) -> None:
        a = engine.submit(make_request("a", (100,), max_tokens=60))
        b = engine.submit(make_request("b", (200,), max_tokens=60))
        assert (await anext(a)).token_ids[0] == 101
        before = runner.wait_until_blocked()
        engine.cancel("a")
        runner.let_through()
        assert await answer(b) == (list(range(201, 261)), "length")
        # The first work after the cancel is b's row, while a's last dispatch is still unread.
        after = [entry for entry in runner.log[len(before) :] if entry[0] != "read"]
        assert after[0] == ("set_slot", "b")
        engine.cancel("a")
        engine.cancel("never seen")
        assert await answer(engine.submit(make_request("c", (1,), max_tokens=2))) == ([2, 3], "length")

    with running(runner, num_slots=1) as engine:
        run(main(engine))
        engine.stop()
        assert engine.stats().num_requests_running == 0


def test_a_waiting_request_can_be_cancelled() -> None:
    runner = FakeRunner(num_readable=1)

    async def main(engine: Engine) -> None:
        a = engine.submit(make_request("a", (100,), max_tokens=20))
        engine.submit(make_request("b", (200,), max_tokens=20))
        await anext(a)
        assert engine.stats().num_requests_waiting == 1
        engine.cancel("b")
        assert engine.stats().num_requests_waiting == 0
        runner.let_through()
        await answer(a)

    with running(runner, num_slots=1) as engine:
        run(main(engine))
    assert ("set_slot", "b") not in runner.log


def test_a_full_queue_is_refused_and_has_room_again_later() -> None:
    async def main(engine: Engine) -> None:
        streams = [engine.submit(make_request(name, (1,))) for name in "abc"]
        with pytest.raises(
            QueueFullError, match="2 requests are already waiting for model fake: try again later"
        ):
            engine.submit(make_request("d", (1,)))
        engine.cancel("c")
        streams[2] = engine.submit(make_request("e", (1,)))
        with pytest.raises(QueueFullError):
            engine.submit(make_request("f", (1,)))
        engine.start()
        assert await asyncio.gather(*map(answer, streams)) == [([2, 3, 4], "length")] * 3
        assert await answer(engine.submit(make_request("g", (1,)))) == ([2, 3, 4], "length")

    with running(FakeRunner(), num_slots=1, max_queue=2, start=False) as engine:
        run(main(engine))


@pytest.mark.parametrize("fails_at", [("set_slot", "b"), ("prefill", 0), ("decode", 2), ("read", 1)], ids=str)
def test_a_failure_fails_every_stream_and_every_later_request(
    fails_at: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(engine: Engine) -> None:
        streams = [engine.submit(make_request(name, (1,), max_tokens=40)) for name in "abcd"]
        engine.start()
        for stream in streams:
            with pytest.raises(EngineError, match="engine of model fake failed while serving") as caught:
                await answer(stream)
            assert "0xdead" not in caught.value.message
        assert not engine.is_alive
        with pytest.raises(EngineError, match="model fake cannot answer: its engine failed"):
            engine.submit(make_request("e", (1,)))
        engine.cancel("a")
        engine.stop()
        assert (engine.stats().num_requests_running, engine.stats().num_requests_waiting) == (0, 0)

    with running(FakeRunner(fails_at=fails_at), start=False) as engine:
        assert engine.is_alive
        run(main(engine))
    assert "engine of model fake failed" in caplog.text
    assert "the device at 0xdead is gone" in caplog.text


def test_stop_fails_what_runs_and_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner(num_readable=1)

    async def main(engine: Engine) -> None:
        streams = [engine.submit(make_request(name, (1,), max_tokens=60)) for name in "abc"]
        await anext(streams[0])
        runner.wait_until_blocked()
        # When stop() waits for the thread, the engine is still waiting for the device.
        join = engine._thread.join

        def let_through_and_join() -> None:
            runner.let_through()
            join()

        monkeypatch.setattr(engine._thread, "join", let_through_and_join)
        engine.stop()
        for stream in streams:
            with pytest.raises(NotReadyError, match="model fake is shutting down"):
                await answer(stream)
        enqueued = [what for kind, what in runner.log if kind in ("prefill", "decode")]
        assert [what for kind, what in runner.log if kind == "read"] == enqueued

    with running(runner) as engine:
        run(main(engine))


def test_stop_ends_an_idle_engine_and_refuses_requests() -> None:
    async def main(engine: Engine) -> None:
        with pytest.raises(NotReadyError, match="model fake is shutting down"):
            engine.submit(make_request("a", (1,)))

    with running(FakeRunner()) as engine:
        engine.stop()
        run(main(engine))
        engine.stop()
        assert not any(thread.name == "engine-fake" for thread in threading.enumerate())


def test_requests_from_several_event_loops() -> None:
    answers: dict[int, list[Answer]] = {}

    async def main(engine: Engine, client: int) -> list[Answer]:
        streams = [engine.submit(make_request(f"{client}/{i}", (client, i), max_tokens=9)) for i in range(5)]
        return await asyncio.gather(*map(answer, streams))

    def serve(client: int) -> None:
        answers[client] = run(main(engine, client))

    with running(FakeRunner()) as engine:
        threads = [threading.Thread(target=serve, args=(client,)) for client in (100, 200, 300)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {
        client: [([client + i + n for n in range(1, 10)], "length") for i in range(5)]
        for client in (100, 200, 300)
    }


def test_a_closed_event_loop_does_not_take_the_engine_down() -> None:
    runner = FakeRunner(num_readable=0)

    async def leave(engine: Engine) -> None:
        engine.submit(make_request("gone", (1,), max_tokens=20))

    async def stay(engine: Engine) -> Answer:
        return await answer(engine.submit(make_request("a", (1,))))

    with running(runner) as engine:
        run(leave(engine))
        runner.let_through()
        assert run(stay(engine)) == ([2, 3, 4], "length")
        assert engine.is_alive


def test_statistics_by_hand() -> None:
    runner = FakeRunner(num_readable=0)

    async def main(engine: Engine) -> None:
        stream = engine.submit(make_request("a", 12, max_tokens=7))
        runner.wait_until_blocked()
        runner.let_through(2)
        await anext(stream)
        runner.wait_until_blocked()
        stats = engine.stats()
        assert (stats.num_slots, stats.num_requests_running, stats.num_requests_waiting) == (2, 1, 0)
        runner.let_through()
        await answer(stream)

    with running(runner) as engine:
        run(main(engine))
        engine.stop()
        stats = engine.stats()
        assert stats.prompt_tokens_total == 12
        assert stats.generation_tokens_total == 7
        assert stats.num_prefill_dispatches_total == 2  # 8 + 4 tokens
        assert stats.num_decode_dispatches_total == 2  # 4 + 2 steps after the first token
        assert stats.num_requests_running == 0
        assert stats.kv_cache_usage_fraction == 0.0


def test_a_slow_reader_sees_one_event_for_all_that_waited() -> None:
    async def main() -> list[TokenEvent]:
        stream = TokenStream("a")
        for token in (1, 2):
            stream.deliver(TokenEvent((token,)))
        events = [await anext(stream)]
        stream.deliver(TokenEvent((3,)))
        stream.deliver(TokenEvent((4, 5), None, "stop"))
        return events + [event async for event in stream]

    assert run(main()) == [TokenEvent((1, 2)), TokenEvent((3, 4, 5), None, "stop")]
