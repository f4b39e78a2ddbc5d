"""Plain completions and token counts: every form of prompt, batches, logprobs, streams."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from fake_engine import BOS, IM_END, IM_START, ids_of, letters
from running_server import RunningServer, events

AB = sum(ids_of("ab"))
ALPHABET = letters(0, 26)


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
    # A prompt in a batch gets the same seeds as alone.
    seeds = [request.params.seed for request in server.engine.requests]
    assert seeds[:2] == seeds[2:]
    assert seeds[0] == 0
    assert body["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize("sent", [{}, {"logprobs": 0}])
def test_best_of_keeps_the_highest_mean_logprobs(server: RunningServer, sent: dict[str, Any]) -> None:
    """The mean counts, not the sum: the stop string makes answers of different lengths."""
    server.engine.logprob_of = {ids_of(letter)[0]: -((7 * i) % 26) / 3 for i, letter in enumerate(ALPHABET)}
    asked: dict[str, Any] = {
        "prompt": [[4], [5]],
        "temperature": 1,
        "seed": 3,
        "max_tokens": 5,
        "stop": ["K"],
    }
    body = server.complete(**asked, n=2, best_of=8, **sent).json()
    requests = server.engine.requests
    assert [request.prompt_ids for request in requests] == [(4,)] * 8 + [(5,)] * 8
    expected = []
    for first in (0, 8):
        candidates = []
        for request in requests[first : first + 8]:
            said = letters(sum(request.prompt_ids) + request.params.seed, 5)
            counted = said[: said.find("K") + 1] if "K" in said else said
            logprobs = [server.engine.logprob_of[ids_of(letter)[0]] for letter in counted]
            candidates.append((sum(logprobs) / len(logprobs), sum(logprobs), said.partition("K")[0]))
        by_mean, by_sum = (
            [candidate[2] for candidate in sorted(candidates, key=operator.itemgetter(by), reverse=True)[:2]]
            for by in (0, 1)
        )
        assert by_mean != by_sum
        expected += by_mean
    assert [choice["text"] for choice in body["choices"]] == expected
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert all((choice["logprobs"] is None) == (not sent) for choice in body["choices"])
    # Usage counts what was generated, not what was returned.
    assert body["usage"]["completion_tokens"] > 4 * 5
    assert [request.params.top_logprobs for request in requests] == [0] * 16


def test_best_of_equal_answers_keeps_their_order_and_the_echo(server: RunningServer) -> None:
    body = server.complete(prompt=["a", "b"], n=1, best_of=3, echo=True, logprobs=0, max_tokens=1).json()
    assert [choice["text"][0] for choice in body["choices"]] == ["a", "b"]
    assert [choice["logprobs"]["text_offset"] for choice in body["choices"]] == [[0, 1]] * 2
    assert body["usage"]["completion_tokens"] == 6


def test_best_of_as_large_as_n_streams(server: RunningServer) -> None:
    response = server.complete(n=2, best_of=2, stream=True)
    assert response.status_code == 200
    assert [request.params.top_logprobs for request in server.engine.requests] == [None] * 2


@pytest.mark.parametrize("chat", [False, True])
def test_priority_and_cache_salt_reach_the_engine(server: RunningServer, chat: bool) -> None:
    send = server.chat if chat else server.complete
    for priority, salt in ((-3, "tenant a"), (None, None)):
        assert send(n=2, temperature=1, priority=priority, cache_salt=salt).status_code == 200
    requests = server.engine.requests
    assert [request.priority for request in requests] == [-3, -3, 0, 0]
    scopes = [request.cache_scope or "" for request in requests]
    # The salt isolates prompts from those with other salts, not choices from each other.
    assert scopes[0] == scopes[1]
    assert ["tenant a" in scope for scope in scopes] == [True, True, False, False]


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
    server.engine.reset()
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
