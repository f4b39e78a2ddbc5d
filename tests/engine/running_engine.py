"""An engine over the fake runner, and answers read to their end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar, cast

from engine_requests import MAX_MODEL_LEN, make_pages, make_programs
from fake_runner import GUARD_SECONDS, FakeRunner

from vinfer.engine.engine import Engine
from vinfer.engine.request import FinishReason
from vinfer.engine.runner import Runner
from vinfer.engine.scheduler import Scheduler
from vinfer.engine.stream import TokenStream
from vinfer.engine.tenants import TenantLimits

T = TypeVar("T")
Answer = tuple[list[int], FinishReason | None]


@contextlib.contextmanager
def running(
    runner: FakeRunner,
    *,
    num_slots: int = 2,
    num_pages: int | None = None,
    max_queue: int = 100,
    max_queue_per_tenant: int | None = None,
    max_running_per_tenant: int | None = None,
    start: bool = True,
) -> Iterator[Engine]:
    engine = Engine(
        name="fake",
        runner=cast(Runner, runner),
        scheduler=Scheduler(
            programs=make_programs(num_slots=num_slots),
            num_slots=num_slots,
            pages=make_pages(num_slots, num_pages),
        ),
        num_slots=num_slots,
        max_model_len=MAX_MODEL_LEN,
        limits=TenantLimits(
            max_queue=max_queue,
            max_queue_per_tenant=max_queue_per_tenant or max_queue,
            max_running_per_tenant=max_running_per_tenant or num_slots,
        ),
    )
    if start:
        engine.start()
    try:
        yield engine
    finally:
        runner.let_through()
        engine.stop()


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, GUARD_SECONDS))


async def answer(stream: TokenStream) -> Answer:
    """Read a stream to its end; raise its error, if any."""
    tokens: list[int] = []
    finish_reason = None
    async for event in stream:
        if event.error is not None:
            raise event.error
        tokens += event.token_ids
        finish_reason = event.finish_reason
    return tokens, finish_reason
