"""A seeded answer depends on its request alone. `test_serving_process` compares it across a restart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from server_process import ServerProcess, wait_until

NUM_OTHERS = 15
OTHERS_TOKENS = 96


def test_a_seeded_answer_is_the_same_alone_beside_one_and_among_fifteen(server: ServerProcess) -> None:
    """The others begin first, so that the answer is of another slot each time."""
    alone = server.draw(seed=11)
    assert server.draw(seed=11) == alone
    assert server.draw(seed=12) != alone
    for num_others in (1, NUM_OTHERS):
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
            wait_until(
                lambda wanted=num_others: server.metrics()["num_requests_running"] == wanted,  # type: ignore[misc]
                "the others",
            )
            assert server.draw(seed=11) == alone
            assert not any(other.done() for other in others)
        for other in others:
            assert other.result().json()["usage"]["completion_tokens"] == OTHERS_TOKENS
