"""A seeded answer depends only on its request. `test_serving_process` compares it across a restart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from server_process import CONFIG, ServerProcess, started, wait_until

NUM_OTHERS = 15
# Many more than are drawn beside them: the others must not finish first.
OTHERS_TOKENS = 64


@contextlib.contextmanager
def crowd(server: ServerProcess, num_others: int) -> Iterator[None]:
    """Keep other requests running, which start first, so that the next request gets another slot."""
    with ThreadPoolExecutor(num_others) as pool:
        others = [
            pool.submit(
                server.complete,
                prompt=f"Story number {place} tells of",
                temperature=place % 3 / 2,
                seed=place,
                presence_penalty=place % 2,
                max_tokens=OTHERS_TOKENS,
                ignore_eos=True,
            )
            for place in range(num_others)
        ]
        wait_until(lambda: server.metrics()["num_requests_running"] == num_others, "the others")
        yield
        assert not any(other.done() for other in others)
    for other in others:
        assert other.result().json()["usage"]["completion_tokens"] == OTHERS_TOKENS


def test_a_seeded_answer_is_the_same_alone_beside_one_and_among_fifteen(server: ServerProcess) -> None:
    alone = server.draw(seed=11)
    assert server.draw(seed=11) == alone
    assert server.draw(seed=12) != alone
    for num_others in (1, NUM_OTHERS):
        with crowd(server, num_others):
            assert server.draw(seed=11) == alone


# The real weights with few slots and positions: each start compiles for these shapes.
SMALL = {"deterministic": "true", "num_slots": 4, "max_model_len": 256}


# It builds a bundle of its own. A tiny one is asked the same in each run:
# tests/compiler/answers/test_single_shape.py.
@pytest.mark.slow
def test_deterministic_makes_logprobs_the_same_too() -> None:
    """They are equal to the last digit, also after a restart."""
    settings = [part for key, value in SMALL.items() for part in ("--set", f"models[0].{key}={value}")]
    answers = []
    for _ in range(2):
        with started(CONFIG, *settings) as server:
            server.wait_until_ready()
            (model,) = server.http.get("/v1/capabilities").json()["models"]
            assert model["deterministic"] is True
            answers.append(server.draw_logprobs(seed=11))
            for num_others in (1, 3):
                with crowd(server, num_others):
                    answers.append(server.draw_logprobs(seed=11))
            assert server.metrics()["post_ready_compiles_total"] == 0
            assert server.terminate() == 0, server.log
    assert answers == [answers[0]] * 6
