"""An engine that died gives its memory back, so that another one fits onto the same devices."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from engine_requests import make_request
from fake_runner import FakeRunner
from running_engine import answer, run, running

from vinfer.bundle.manifest import ProgramSpec
from vinfer.bundle.programs import ProgramShape
from vinfer.engine.engine import Engine
from vinfer.engine.loading.loaded_model import LoadedModel
from vinfer.engine.program import Program
from vinfer.engine.runner import Runner
from vinfer.errors import EngineError


class Code:
    """Stands for machine code, which takes memory too."""

    def __call__(self, *_: Any) -> Any:
        raise AssertionError("nothing is enqueued here")

    def memory_analysis(self) -> None:
        return None


def test_arrays_and_programs_are_gone_at_once() -> None:
    arrays = [jnp.full((4,), value) for value in range(6)]
    weights, image_weights, features, kv, state, donated = arrays
    # As after a step that failed: the cache had been donated, and nothing came back.
    donated.delete()
    code = Code()
    seen = weakref.ref(code)
    spec = ProgramSpec(shape=ProgramShape(kind="set_slot"), file="x", inputs=(), outputs=())
    model = LoadedModel(
        weights=(weights,),
        image_weights=(image_weights,),
        image_features=(features,),
        kv=(kv, donated),
        state=(state,),
        programs=[Program(spec, code)],
        open_masks={},
        dispatch_lock=threading.Lock(),
    )
    runner = Runner(model, num_slots=1, rows_are_slots=True)
    del code
    before = len(jax.live_arrays())
    runner.release()
    assert all(array.is_deleted() for array in arrays)
    assert len(jax.live_arrays()) == before - 5
    gc.collect()
    assert seen() is None
    # A restart that failed is followed by another one.
    runner.release()


class DyingRunner(FakeRunner):
    def __init__(self) -> None:
        super().__init__()
        self.num_releases = 0

    def decode(self, work: Any) -> Any:
        raise RuntimeError("boom")

    def release(self) -> None:
        assert "engine-fake" not in {thread.name for thread in threading.enumerate()}
        self.num_releases += 1


def test_an_engine_gives_it_back_once_its_thread_has_ended() -> None:
    runner = DyingRunner()

    async def main(engine: Engine) -> None:
        with pytest.raises(EngineError):
            await answer(engine.submit(make_request("a", (1,), max_tokens=40)))
        await asyncio.to_thread(engine.release)

    with running(runner) as engine:
        run(main(engine))
        assert runner.num_releases == 1
        assert not engine.is_alive
