"""How long the engine may wait with the next dispatch: computed by hand."""

from __future__ import annotations

import pytest

from vinfer.engine.rates import MAX_SPARE_SECONDS, DispatchTimes


def ran(times: DispatchTimes, kind: str, enqueued: float, read: float) -> None:
    times.enqueued(kind, enqueued)
    times.read(read)


def test_nothing_is_known_of_a_dispatch_that_never_ran() -> None:
    times = DispatchTimes()
    assert times.spare_seconds(1.0) == 0
    assert not times.last_is_long
    times.enqueued("decode", 1.0)
    assert times.spare_seconds(1.0) == 0
    assert not times.last_is_long


def test_a_quarter_of_the_work_in_flight_is_left() -> None:
    times = DispatchTimes()
    ran(times, "decode", 10.0, 10.4)
    times.enqueued("decode", 10.4)
    assert times.last_is_long
    assert times.spare_seconds(10.4) == pytest.approx(0.3)
    assert times.spare_seconds(10.6) == pytest.approx(0.1)
    assert times.spare_seconds(10.75) == 0


def test_dispatches_run_one_after_the_other() -> None:
    times = DispatchTimes()
    times.enqueued("prefill", 10.0)
    times.enqueued("decode", 10.0)
    times.read(10.2)
    times.read(10.6)
    times.enqueued("prefill", 10.6)
    times.enqueued("decode", 10.6)
    assert times.spare_seconds(10.6) == pytest.approx(0.75 * (0.2 + 0.4))
    times.read(10.8)
    # The decode dispatch began when the prefill ended.
    assert times.spare_seconds(10.9) == pytest.approx(0.3 - 0.1)


def test_the_shortest_time_is_believed_and_grows_slowly() -> None:
    times = DispatchTimes()
    for enqueued, seconds in ((0.0, 0.4), (1.0, 0.2), (2.0, 0.9)):
        ran(times, "decode", enqueued, enqueued + seconds)
    times.enqueued("decode", 3.0)
    assert times.spare_seconds(3.0) == pytest.approx(0.75 * 0.2 * 1.02)


def test_a_device_that_was_found_idle_has_worked_for_less() -> None:
    times = DispatchTimes()
    ran(times, "decode", 0.0, 0.4)
    times.enqueued("decode", 1.0)
    # All the spare time was waited for, and the device had ended before.
    times.found_idle(1.3)
    times.read(1.4)
    times.enqueued("decode", 2.0)
    assert times.spare_seconds(2.0) == pytest.approx(0.75 * 0.3 * 1.02)
    # Nobody knows which of two took how long.
    times.enqueued("decode", 2.0)
    times.found_idle(2.01)
    times.read(2.02)
    times.read(2.03)
    times.enqueued("decode", 3.0)
    assert times.spare_seconds(3.0) == pytest.approx(0.75 * 0.01)


def test_the_own_work_of_the_host_does_not_make_a_wait_grow() -> None:
    """Each dispatch takes 3 ms, and the host another 2 ms to read it and to enqueue the next one."""
    times = DispatchTimes()
    now, waits = 0.0, []
    ran(times, "decode", now, now + 0.02)
    for _ in range(200):
        times.enqueued("decode", now)
        ends = now + 0.003
        waits.append(times.spare_seconds(now))
        now += waits[-1]
        if now >= ends:
            times.found_idle(now)
        now = max(now, ends) + 0.002
        times.read(now)
    assert waits[0] > 0.01
    assert max(waits[-50:]) <= 0.003 * 1.02


def test_short_dispatches_leave_no_time_and_very_long_ones_a_limited_one() -> None:
    times = DispatchTimes()
    ran(times, "short", 0.0, 0.0015)
    ran(times, "long", 1.0, 60.0)
    times.enqueued("short", 61.0)
    assert not times.last_is_long
    assert times.spare_seconds(61.0) == 0
    times.read(61.0015)
    times.enqueued("long", 62.0)
    assert times.spare_seconds(62.0) == MAX_SPARE_SECONDS
