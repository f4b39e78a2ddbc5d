"""How far a request has come, by hand: prompt of 5 tokens, pages of 4 positions, at most 10 tokens."""

from __future__ import annotations

import pytest
from engine_requests import PAGE_SIZE, make_pages, make_request

from vinfer.engine.kv_cache.prefix_keys import PrefixKeys
from vinfer.engine.running import Running, prompt_kind

PROMPT = (0, 1, 2, 3, 4)


def make_running(outputs: tuple[int, ...] = (), **fields: object) -> Running:
    request = make_request("a", PROMPT, 10, scope="s", **fields)  # type: ignore[arg-type]
    (shard,) = make_pages(1)
    tokens = [*PROMPT, *outputs]
    return Running(
        request=request,
        arrival=0,
        slot=0,
        shard=shard,
        table=shard.open(len(tokens)),
        outputs=outputs,
        tokens=tokens,
        keys=PrefixKeys("s", tokens, (), PAGE_SIZE),
    )


@pytest.mark.parametrize(
    ("outputs", "num_prefilled", "num_dispatched", "expected"),
    [
        # Positions written, tokens still to sample, whether the prompt is done.
        ((), 0, 0, (0, 10, False)),
        ((), 3, 0, (3, 10, False)),
        ((), 5, 1, (5, 9, True)),
        ((), 5, 2, (6, 8, True)),
        ((), 5, 10, (14, 0, True)),
        # Three tokens that it had before are prefilled like the prompt.
        ((5, 6, 7), 0, 3, (0, 7, False)),
        ((5, 6, 7), 5, 3, (5, 7, False)),
        ((5, 6, 7), 8, 4, (8, 6, True)),
        ((5, 6, 7), 8, 10, (14, 0, True)),
    ],
)
def test_what_is_written_and_what_is_left(
    outputs: tuple[int, ...], num_prefilled: int, num_dispatched: int, expected: tuple[int, int, bool]
) -> None:
    running = make_running(outputs)
    assert running.num_dispatched == len(outputs)
    running.num_prefilled, running.num_dispatched = num_prefilled, num_dispatched
    assert (running.max_kv_len, running.num_left, running.is_prefilled) == expected


def test_pages_are_published_as_far_as_they_are_written_and_their_tokens_known() -> None:
    running = make_running()
    keys = PrefixKeys("s", range(64), (), PAGE_SIZE)

    def num_found() -> int:
        return running.shard.find(keys, first=0, last=4)

    assert running.shard.cover(running.table, start=0, end=14)
    running.num_prefilled = 3
    running.publish()
    assert num_found() == 0
    running.num_prefilled = 5
    running.publish()
    assert num_found() == 1
    # Seven tokens of the answer are on their way, so eleven positions are written. Three have been read, and
    # the last of them may be the newest.
    running.num_dispatched = 7
    running.tokens += [5, 6, 7]
    running.publish()
    assert num_found() == 1
    running.tokens += [8]
    running.publish()
    assert num_found() == 2
    # All seven are read, and two more are on their way: position 11 has been written, but with which token?
    running.num_dispatched = 9
    running.tokens += [9, 10, 11]
    running.publish()
    assert num_found() == 2
    running.tokens += [12]
    running.publish()
    assert num_found() == 3
    running.shard.check_integrity()


def test_a_scored_prompt_is_scored_once_and_finds_no_pages() -> None:
    assert make_running(scores_prompt=True).kind == "score"
    assert not make_running(scores_prompt=True).finds_pages
    assert make_running((5,), scores_prompt=True).kind == "prefill"
    assert make_running().finds_pages


def test_the_kind_of_a_prompt() -> None:
    assert prompt_kind(make_request("a", 1)) == "prefill"
    assert prompt_kind(make_request("a", 1, scores_prompt=True)) == "score"
    assert prompt_kind(make_request("a", 1, 0, pooling="mean")) == "embed"
