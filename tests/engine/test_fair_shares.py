"""Tenants take turns, each has a limit, and a refused one learns when there will be room."""

from __future__ import annotations

import pytest
from engine_requests import make_pages, make_programs, make_request
from fake_runner import FakeRunner
from running_engine import answer, run, running
from schedule_contents import admitted

from vinfer.config import ModelConfig
from vinfer.engine import waiting
from vinfer.engine.engine import Engine
from vinfer.engine.rates import MAX_SECONDS, FinishRate
from vinfer.engine.scheduler import Scheduler
from vinfer.engine.tenants import TenantLimits
from vinfer.engine.waiting import Waiting, WaitingQueue
from vinfer.errors import QueueFullError
from vinfer.server.tenant_limits import tenant_limits


def make_scheduler(num_slots: int = 2) -> Scheduler:
    return Scheduler(
        programs=make_programs(num_slots=num_slots),
        num_slots=num_slots,
        pages=make_pages(num_slots),
    )


def order_of(queue: WaitingQueue) -> list[str]:
    order = []
    while (waiting := queue.first()) is not None:
        queue.take(waiting)
        order.append(waiting.request.id)
    return order


def queue_of(*names: str, **priorities: int) -> WaitingQueue:
    """Fill a queue; the first letter of a name is its tenant."""
    queue = WaitingQueue()
    for arrival, name in enumerate(names):
        request = make_request(name, 1, tenant=name[0], priority=priorities.get(name, 0))
        queue.push(Waiting(request, arrival, [0], None))
    return queue


def test_tenants_take_turns() -> None:
    assert order_of(queue_of("a1", "a2", "a3", "a4", "b1", "c1", "b2")) == [
        *("a1", "b1", "c1"),
        *("a2", "b2", "a3", "a4"),
    ]


def test_priority_comes_before_turns_and_orders_a_tenant_s_own() -> None:
    queue = queue_of("a1", "a2", "a3", "b1", "b2", a3=-1, a2=-1, b2=1)
    assert order_of(queue) == ["a2", "a3", "b1", "a1", "b2"]


def test_a_tenant_keeps_its_turn_while_it_has_nothing_waiting() -> None:
    """Or one that sends its requests one by one would always go first."""
    queue = queue_of("a1", "a2", "a3", "b1")
    for expected in ("a1", "b1"):
        waiting = queue.first()
        assert waiting is not None
        assert waiting.request.id == expected
        queue.take(waiting)
    queue.push(Waiting(make_request("b2", 1, tenant="b"), 10, [0], None))
    assert order_of(queue) == ["a2", "b2", "a3"]


def test_turns_of_many_tenants_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MAX_REMEMBERED_TENANTS", 100)
    queue = WaitingQueue()
    for place in range(110):
        queue.push(Waiting(make_request(f"r{place}", 1, tenant=str(place)), place, [0], None))
    assert len(order_of(queue)) == 110
    assert len(queue._turns) == 100
    assert len(queue) == 0


def test_a_slot_is_left_for_other_tenants() -> None:
    scheduler = make_scheduler(num_slots=4)
    scheduler.max_running_per_tenant = 3
    for place in range(60):
        scheduler.submit(make_request(f"a{place}", 1, tenant="a"))
    assert [name for name, _ in admitted(scheduler.schedule())] == ["a0", "a1", "a2"]
    assert admitted(scheduler.schedule()) == []
    scheduler.submit(make_request("b0", 1, tenant="b"))
    scheduler.submit(make_request("b1", 1, tenant="b"))
    # The short request of another does not wait for any of the sixty.
    assert [name for name, _ in admitted(scheduler.schedule())] == ["b0"]
    scheduler.finish("a1")
    assert [name for name, _ in admitted(scheduler.schedule())] == ["a3"]
    scheduler.finish("a0")
    assert [name for name, _ in admitted(scheduler.schedule())] == ["b1"]
    scheduler.finish("b0")
    # Only two of the first tenant run now.
    assert [name for name, _ in admitted(scheduler.schedule())] == ["a4"]
    scheduler.finish("b1")
    assert admitted(scheduler.schedule()) == []
    scheduler.check_integrity()


def test_limits_may_change_between_steps() -> None:
    scheduler = make_scheduler(num_slots=4)
    scheduler.max_running_per_tenant = 1
    for place in range(4):
        scheduler.submit(make_request(f"a{place}", 1, tenant="a"))
    assert len(admitted(scheduler.schedule())) == 1
    scheduler.max_running_per_tenant = 4
    assert len(admitted(scheduler.schedule())) == 3


def test_prompts_of_tenants_take_turns() -> None:
    """A short prompt does not wait until all long prompts of another tenant are prefilled."""
    scheduler = make_scheduler(num_slots=4)
    for place in range(3):
        scheduler.submit(make_request(f"a{place}", 32, tenant="a"))
    scheduler.submit(make_request("b0", 2, tenant="b"))
    order = []
    for _ in range(14):
        order += [chunk.request.id for prefill in scheduler.schedule().prefills for chunk in prefill.chunks]
    # The first chunk of the oldest, then at once the short one, then the others in order of arrival.
    assert order == ["a0", "b0", *["a0"] * 3, *["a1"] * 4, *["a2"] * 4]


@pytest.mark.parametrize(("max_running", "num_dispatches"), [(4, 4), (3, 1)])
def test_steps_are_short_while_tenants_share(max_running: int, num_dispatches: int) -> None:
    """The first token of whoever comes next waits for two steps."""
    scheduler = Scheduler(
        programs=make_programs(num_slots=4),
        num_slots=4,
        pages=make_pages(4),
        min_prefill_tokens=32,
        shared_prefill_tokens=4,
    )
    scheduler.max_running_per_tenant = max_running
    scheduler.submit(make_request("a", 40, tenant="a"))
    assert len(scheduler.schedule().prefills) == num_dispatches
    scheduler.submit(make_request("b", 3, tenant="b"))
    # A short prompt and a long one do not fit into one step.
    first = scheduler.schedule().prefills
    if max_running == 3:
        assert [chunk.request.id for prefill in first for chunk in prefill.chunks] == ["b"]


def test_a_tenant_s_queue_has_a_limit_of_its_own() -> None:
    async def main(engine: Engine) -> None:
        streams = [engine.submit(make_request(f"a{i}", (1,), tenant="a")) for i in range(3)]
        with pytest.raises(QueueFullError, match="2 requests of this API key are already waiting"):
            engine.submit(make_request("a3", (1,), tenant="a"))
        with pytest.raises(QueueFullError, match="of this API key"):
            engine.check_room("a")
        engine.check_room("b")
        streams += [engine.submit(make_request(f"b{i}", (1,), tenant="b")) for i in range(3)]
        with pytest.raises(QueueFullError, match="4 requests are already waiting for model fake"):
            engine.check_room("c")
        engine.cancel("a2")
        engine.check_room("a")
        engine.start()
        for stream in (*streams[:2], *streams[3:]):
            assert await answer(stream) == ([2, 3, 4], "length")
        for tenant in "abc":
            engine.check_room(tenant)

    with running(
        FakeRunner(),
        num_slots=2,
        max_queue=4,
        max_queue_per_tenant=2,
        max_running_per_tenant=1,
        start=False,
    ) as engine:
        run(main(engine))


def test_when_there_will_be_room_by_hand() -> None:
    rate = FinishRate(num_slots=4)
    # Nothing has finished after 20 s: the four slots will take at least as long as that together.
    assert rate.seconds_for(8, 20.0) == 40.0
    for seconds in (10.0, 20.0, 30.0, 40.0):
        rate.note(seconds)
    # One every ten seconds.
    assert rate.seconds_for(12, 40.0) == 120.0
    # A stall counts.
    assert rate.seconds_for(12, 80.0) == 240.0
    assert rate.seconds_for(0, 40.0) == 1.0
    assert rate.seconds_for(10**9, 40.0) == MAX_SECONDS
    for place in range(1000):
        rate.note(100.0 + place)
    # Only the latest count: one every second.
    assert rate.seconds_for(60, 1099.0) == 60.0


def test_a_refused_request_learns_how_long_the_queue_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("vinfer.engine.engine.time.monotonic", lambda: now)

    async def main(engine: Engine) -> None:
        nonlocal now
        for place in range(3):
            engine.submit(make_request(f"a{place}", (1,)))
        now += 61.0
        with pytest.raises(QueueFullError) as caught:
            engine.submit(make_request("late", (1,)))
        # Two wait, and the one slot has taken 61 seconds so far.
        assert caught.value.retry_after_seconds == 122.0

    with running(FakeRunner(), num_slots=1, max_queue=2, start=False) as engine:
        run(main(engine))


@pytest.mark.parametrize(
    ("keys", "num_keys", "expected"),
    [
        ({}, 0, (64, 64, 16)),
        ({}, 1, (64, 64, 16)),
        ({}, 2, (64, 32, 12)),
        ({"max_queue": 1}, 2, (1, 1, 12)),
        ({"max_queue_per_key": 5, "max_running_per_key": 3}, 1, (64, 5, 3)),
        ({"max_queue_per_key": 500, "max_running_per_key": 300}, 9, (64, 64, 16)),
    ],
)
def test_limits_by_hand(keys: dict[str, int], num_keys: int, expected: tuple[int, int, int]) -> None:
    model = ModelConfig(name="m", source="org/m", **keys)  # type: ignore[arg-type]
    queue, queue_of_one, running_of_one = expected
    assert tenant_limits(model, num_slots=16, num_keys=num_keys) == TenantLimits(
        max_queue=queue, max_queue_per_tenant=queue_of_one, max_running_per_tenant=running_of_one
    )


def test_one_slot_cannot_be_left() -> None:
    model = ModelConfig(name="m", source="org/m")
    assert tenant_limits(model, num_slots=1, num_keys=2).max_running_per_tenant == 1
    assert tenant_limits(model, num_slots=2, num_keys=2).max_running_per_tenant == 1
