"""Plain completions and token counts: every form of prompt, batches, logprobs, streams."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import BOS, IM_END, IM_START, ids_of, letters
from running_server import RunningServer, events

AB = sum(ids_of("ab"))


@pytest.mark.parametrize(
    ("prompt", "sums"),
    [
        ("ab", [AB]),
        (["ab"], [AB]),
        (["ab", "a"], [AB, sum(ids_of("a"))]),
        ([4, 5], [9]),
        ([[4, 5], [6]], [9, 6]),
        ("", [BOS]),
        ("<s>ab", [BOS + AB]),
    ],
)
def test_forms_of_prompt(server: RunningServer, prompt: Any, sums: list[int]) -> None:
    body = server.complete(prompt=prompt).json()
    assert body["object"] == "text_completion"
    assert [choice["text"] for choice in body["choices"]] == [letters(start, 4) for start in sums]
    assert [choice["index"] for choice in body["choices"]] == list(range(len(sums)))
    assert body["usage"]["completion_tokens"] == 4 * len(sums)


def test_choices_of_a_batch_are_ordered_by_prompt(server: RunningServer) -> None:
    body = server.complete(prompt=[[4], [5]], n=2, best_of=2, temperature=1, seed=0, max_tokens=1).json()
    assert [request.prompt_ids for request in server.engine.requests] == [(4,), (4,), (5,), (5,)]
    # A prompt of a batch gets the seeds it would get alone.
    seeds = [request.params.seed for request in server.engine.requests]
    assert seeds[:2] == seeds[2:]
    assert seeds[0] == 0
    assert body["usage"]["prompt_tokens"] == 2


def test_choices_and_equal_prompts_share_one_prefill(server: RunningServer) -> None:
    """Within one HTTP request only: what others have sent must not be felt."""
    for _ in range(2):
        server.complete(prompt=[[4, 5], [6], [4, 5]], n=2, max_tokens=1)
    keys = [request.prompt_key for request in server.engine.requests]
    first, second = keys[:6], keys[6:]
    for four, six in ((first[:2] + first[4:], first[2:4]), (second[:2] + second[4:], second[2:4])):
        assert len(set(four)) == len(set(six)) == 1
        assert four[0] != six[0]
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    ("prompt", "n", "cached"),
    [
        ([4, 5, 6], 1, 0),
        # A prompt counts once, however many choices it has.
        ([4, 5, 6], 3, 2),
        ([[4, 5, 6], [4, 5, 6]], 1, 2),
        ([[4, 5, 6], [4, 5]], 1, 0),
        ([[4, 5, 6], [4, 5], [4, 5, 6]], 2, 5),
    ],
)
def test_cached_tokens_are_those_of_another_request(
    server: RunningServer, prompt: Any, n: int, cached: int
) -> None:
    usage = server.complete(prompt=prompt, n=n, max_tokens=2).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": cached}
    chunks = events(
        server.complete(
            prompt=prompt, n=n, max_tokens=2, stream=True, stream_options={"include_usage": True}
        ).text
    )
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": cached}


def test_default_max_tokens_is_openais(server: RunningServer) -> None:
    assert server.complete(max_tokens=None).json()["choices"][0]["text"] == letters(9, 16)


def test_text_that_continues_the_prompt_keeps_its_space(server: RunningServer) -> None:
    server.engine.script = ids_of(" b")
    assert server.complete(prompt="a", max_tokens=2).json()["choices"][0]["text"] == " b"


def test_logprobs(server: RunningServer) -> None:
    server.engine.script = ids_of("ab")
    logprobs = server.complete(logprobs=2, max_tokens=2).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.5, "b": -1.5}, {"b": -0.5, "c": -1.5}],
        "text_offset": [0, 1],
    }


def test_streamed_logprobs_continue_their_offsets(server: RunningServer) -> None:
    server.engine.script = ids_of("abc")
    chunks = events(server.complete(logprobs=0, max_tokens=3, stream=True).text)
    written = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [offset for logprobs in written for offset in logprobs["text_offset"]] == [0, 1, 2]
    assert [top for logprobs in written for top in logprobs["top_logprobs"]] == [None] * 3


def test_stream(server: RunningServer) -> None:
    chunks = events(server.complete(stream=True, stream_options={"include_usage": True}).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == letters(9, 4)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 6


def test_count_tokens(server: RunningServer) -> None:
    def count(conversation: Any) -> Any:
        body = {"model": "fake", "conversation": conversation}
        return server.http.post("/v1/count_tokens", json=body).json()

    assert count("Grüße") == {"model": "fake", "count": 7}
    assert count("") == {"model": "fake", "count": 0}
    prompt = [IM_START, *ids_of("user\nhi"), IM_END, IM_START, *ids_of("assistant\n")]
    assert count([{"role": "user", "content": "hi"}])["count"] == len(prompt)
    assert count([{"role": "user"}])["error"]["param"] == "conversation[0].content"
    assert count(3)["error"]["param"] == "conversation"
    assert count([])["error"]["param"] == "conversation"
    assert server.engine.requests == []
