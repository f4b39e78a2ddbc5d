"""Decoding needs more pages than there are: who gives its pages back, and how it goes on.

Pages have 4 positions, and a shard has 16 of them, as many as one request of full length needs.
"""

from __future__ import annotations

import pytest
from engine_requests import CountingMatcher, make_pages, make_programs, make_request
from schedule_contents import admitted, begun, decoded

from vinfer.engine.request import Request
from vinfer.engine.schedule import Schedule
from vinfer.engine.scheduler import Scheduler


def make_scheduler(num_slots: int = 3, *, dp: int = 1) -> Scheduler:
    return Scheduler(
        programs=make_programs(num_slots=num_slots),
        num_slots=num_slots,
        pages=make_pages(num_slots, 16, dp=dp),
    )


def start(scheduler: Scheduler, *requests: Request) -> None:
    """Prefill some prompts that fit together; what is decoded meanwhile is read."""
    for request in requests:
        scheduler.submit(request)
    unfinished = {request.id for request in requests}
    for _ in range(50):
        schedule = scheduler.schedule()
        read(scheduler, schedule)
        unfinished -= {c.request.id for work in schedule.prefills for c in work.chunks if c.is_final}
        if not unfinished:
            break
    assert not unfinished


def read(scheduler: Scheduler, schedule: Schedule) -> None:
    """Let the scheduler know the tokens of a step; all of them are 9."""
    for work in schedule.prefills:
        for chunk in work.chunks:
            if chunk.samples:
                scheduler.observe(chunk.request.id, [9])
    if schedule.decode is not None:
        for owner in schedule.decode.owners:
            scheduler.observe(owner.id, [9] * schedule.decode.step_limit)
    scheduler.check_integrity()


def run_until_preempted(scheduler: Scheduler) -> Schedule:
    """Return the step in which the first request gave its pages back; its own tokens are not read yet."""
    before = scheduler.num_preemptions
    for _ in range(100):
        schedule = scheduler.schedule()
        if scheduler.num_preemptions > before:
            return schedule
        read(scheduler, schedule)
    raise AssertionError("no request was preempted")


def test_the_youngest_gives_its_pages_back_and_the_others_go_on() -> None:
    scheduler = make_scheduler()
    start(scheduler, *(make_request(name, 8, max_tokens=50) for name in "abc"))
    schedule = run_until_preempted(scheduler)
    # a has taken the 16th page. b goes on with one that c had.
    assert decoded(schedule) == (["a", "b"], 4)
    assert [scheduler.is_running(name) for name in "abc"] == [True, True, False]
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.num_preemptions) == (2, 1, 1)
    scheduler.check_integrity()


def test_who_waits_again_goes_on_with_the_tokens_that_it_had() -> None:
    scheduler = make_scheduler(num_slots=2)
    start(scheduler, *(make_request(name, 8, max_tokens=50) for name in "ab"))
    read(scheduler, run_until_preempted(scheduler))
    scheduler.finish("a")
    schedule = scheduler.schedule()
    (admission,) = schedule.admissions
    num_outputs = len(admission.outputs)
    assert (admission.request.id, admission.outputs) == ("b", (9,) * num_outputs)
    # The tokens of its prompt and of its answer are prefilled. Then it samples the rest of its tokens.
    chunks, num_steps = [], 0
    while schedule:
        chunks += [chunk for work in schedule.prefills for chunk in work.chunks]
        num_steps += 0 if schedule.decode is None else schedule.decode.step_limit
        schedule = scheduler.schedule()
    assert [token for chunk in chunks for token in chunk.tokens] == [*range(8), *admission.outputs]
    assert [chunk.samples for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert num_steps == 50 - num_outputs - 1


def test_tokens_that_arrive_while_it_waits_are_kept() -> None:
    scheduler = make_scheduler(num_slots=2)
    start(scheduler, *(make_request(name, 8, max_tokens=50) for name in "ab"))
    before, num_steps = Schedule(), 0
    while not scheduler.num_preemptions:
        # As in the engine, a step is read when the next one has been scheduled.
        schedule = scheduler.schedule()
        read(scheduler, before)
        before, num_steps = schedule, num_steps + 4
    assert not scheduler.is_running("b")
    read(scheduler, schedule)
    scheduler.finish("a")
    (admission,) = scheduler.schedule().admissions
    # One token by prefill, and four in every step but the last; those of the step before were not read yet.
    num_first = 1 + 4
    assert len(admission.outputs) == num_first + num_steps - 4


def test_a_request_that_ends_while_it_waits_does_not_come_back() -> None:
    """Its last token was on the way when it gave its pages back."""
    scheduler = make_scheduler(num_slots=2)
    start(scheduler, *(make_request(name, 8, max_tokens=50) for name in "ab"))
    run_until_preempted(scheduler)
    scheduler.observe("b", [9, 3])
    scheduler.finish("b")
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 0)
    scheduler.finish("a")
    assert not scheduler.schedule()
    scheduler.check_integrity()


def test_it_waits_in_its_old_place() -> None:
    scheduler = make_scheduler(num_slots=2)
    start(scheduler, *(make_request(name, 8, max_tokens=50) for name in "ab"))
    for name in "cd":
        scheduler.submit(make_request(name, 4))
    run_until_preempted(scheduler)
    assert scheduler.num_waiting == 3
    scheduler.finish("a")
    assert admitted(scheduler.schedule())[0] == ("b", 0)


def test_it_finds_its_own_pages_again() -> None:
    scheduler = make_scheduler(num_slots=2)
    start(scheduler, *(make_request(name, 8, max_tokens=50, scope=name) for name in "ab"))
    read(scheduler, run_until_preempted(scheduler))
    scheduler.finish("a")
    (chunk, *_) = begun(scheduler.schedule())
    name, start_of_chunk, num_cached, _ = chunk
    assert name == "b"
    # Its answer lies in pages too. But these are no prompt tokens that a client has saved.
    assert start_of_chunk >= 28
    assert num_cached == 0
    assert scheduler.num_prefix_hits == 0


def test_the_tenant_that_holds_most_gives_pages_back_though_its_requests_are_older() -> None:
    scheduler = make_scheduler(num_slots=4)
    many = [make_request(f"many-{place}", 8, max_tokens=50, tenant="many") for place in range(2)]
    start(scheduler, *many, make_request("one", 8, max_tokens=50, tenant="one"))
    run_until_preempted(scheduler)
    assert [scheduler.is_running(name) for name in ("many-0", "many-1", "one")] == [True, False, True]


def test_among_a_tenant_s_requests_the_least_urgent_gives_its_pages_back() -> None:
    scheduler = make_scheduler()
    priorities = {"a": 0, "b": 2, "c": 1}
    start(scheduler, *(make_request(name, 8, 50, priority=priorities[name]) for name in "abc"))
    run_until_preempted(scheduler)
    assert [scheduler.is_running(name) for name in "abc"] == [True, False, True]


def test_a_request_that_was_just_prefilled_takes_no_pages_of_older_ones() -> None:
    """It cannot give its own back before its first token is read, so those of the older one went."""
    scheduler = make_scheduler(num_slots=2)
    start(scheduler, make_request("old", 37, max_tokens=27))
    # 12 pages are soon the old one's, and 4 are those of a prompt that ends with its page.
    scheduler.submit(make_request("young", 16, max_tokens=20))
    steps = [scheduler.schedule() for _ in range(2)]
    assert begun(steps[-1]) == [("young", 8, 0, False)]
    assert scheduler.is_running("old")
    assert [decoded(step) for step in steps] == [(["old"], 1), (["old"], 4)]
    for step in steps:
        read(scheduler, step)
    # Now its token is read.
    assert decoded(scheduler.schedule()) == (["old"], 4)
    assert [scheduler.is_running(name) for name in ("old", "young")] == [True, False]
    scheduler.check_integrity()


def test_a_request_alone_in_memory_that_just_fits_is_never_preempted() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request("a", 32, max_tokens=32))
    num_tokens = 0
    while schedule := scheduler.schedule():
        read(scheduler, schedule)
        num_tokens += sum(chunk.samples for work in schedule.prefills for chunk in work.chunks)
        num_tokens += 0 if schedule.decode is None else schedule.decode.step_limit
    assert (num_tokens, scheduler.num_preemptions) == (32, 0)
    assert scheduler.kv_usage_fraction == 1


@pytest.mark.parametrize("scope", [None, "s"])
def test_choices_that_each_need_all_memory_end_one_after_the_other(scope: str | None) -> None:
    scheduler = make_scheduler()
    left = dict.fromkeys("abc", 34)
    for name in left:
        scheduler.submit(make_request(name, 30, max_tokens=34, scope=scope))
    order = []
    for _ in range(400):
        schedule = scheduler.schedule()
        for work in schedule.prefills:
            for chunk in work.chunks:
                left[chunk.request.id] -= chunk.samples
        if schedule.decode is not None:
            for owner in schedule.decode.owners:
                left[owner.id] -= min(schedule.decode.step_limit, left[owner.id])
        read(scheduler, schedule)
        for name in [name for name in left if not left[name] and name not in order]:
            order.append(name)
            scheduler.finish(name)
    assert order == ["a", "b", "c"]
    assert scheduler.num_preemptions > 0
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.kv_usage_fraction) == (0, 0, 0)


def test_other_shards_keep_their_pages() -> None:
    """Requests take slots of the shard with most memory: a and c are in shard 0, b is in shard 1."""
    scheduler = make_scheduler(num_slots=4, dp=2)
    start(
        scheduler,
        make_request("a", 8, max_tokens=50),
        make_request("b", 30, max_tokens=30, tenant="much"),
        make_request("c", 8, max_tokens=50),
    )
    run_until_preempted(scheduler)
    assert [scheduler.is_running(name) for name in "abc"] == [True, True, False]


def test_a_prompt_waits_for_its_pages_and_younger_ones_wait_behind_it() -> None:
    scheduler = make_scheduler(num_slots=3)
    scheduler.submit(make_request("old", 40, max_tokens=5))
    scheduler.submit(make_request("long", 28))
    scheduler.submit(make_request("short", 4))
    assert admitted(scheduler.schedule()) == [("old", 0)]
    assert (scheduler.num_waiting, scheduler.num_preemptions) == (2, 0)
    scheduler.finish("old")
    assert admitted(scheduler.schedule()) == [("long", 0), ("short", 1)]


def test_memory_that_a_prompt_is_promised_is_not_decoded_into() -> None:
    """The first request waits while the second is prefilled in three steps, with the last 5 pages."""
    scheduler = make_scheduler(num_slots=2)
    start(scheduler, make_request("a", 40, max_tokens=24))
    scheduler.submit(make_request("b", 20, max_tokens=10))
    for chunk in (0, 8, 16):
        schedule = scheduler.schedule()
        assert begun(schedule) == [("b", chunk, 0, False)]
        assert decoded(schedule) is None
        read(scheduler, schedule)
    assert scheduler.num_preemptions == 0
    assert decoded(scheduler.schedule()) == (["a"], 4)
    assert [scheduler.is_running(name) for name in "ab"] == [True, False]


def test_a_constrained_request_can_be_preempted() -> None:
    scheduler = make_scheduler(num_slots=2)
    grammar = CountingMatcher()
    start(scheduler, make_request("a", 8, max_tokens=50), make_request("b", 8, 50, grammar=grammar))
    read(scheduler, run_until_preempted(scheduler))
    assert not scheduler.is_constrained
    scheduler.finish("a")
    scheduler.schedule()
    assert scheduler.is_constrained
