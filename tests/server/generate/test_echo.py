"""`echo` of plain completions: the prompt comes first, with its logprobs, as evaluation harnesses expect."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import BOS, EOS, ids_of, letters, served_model, with_manifest
from running_server import RunningServer, Start, events, run

from vinfer.config import ServerConfig
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "ü"], ["ab", "ü"]),
        (ids_of("ab"), ["ab"]),
        ([ids_of("ab"), ids_of("ü")], ["ab", "ü"]),
        ([ids_of("a"), "b"], ["a", "b"]),
        ([ids_of("a")[0]], ["a"]),
        # Sent as text, it is returned as sent; sent as an id, it is a special token, which is not shown.
        ("<s>ab", ["<s>ab"]),
        ([BOS, *ids_of("ab")], ["ab"]),
        ("", [""]),
    ],
)
def test_the_prompt_comes_first(server: RunningServer, prompt: Any, texts: list[str]) -> None:
    choices = server.complete(prompt=prompt, echo=True, max_tokens=0).json()["choices"]
    assert [choice["text"] for choice in choices] == texts
    assert {choice["finish_reason"] for choice in choices} == {"length"}
    assert {choice["logprobs"] for choice in choices} == {None}
    plain = server.complete(prompt=prompt, max_tokens=3).json()["choices"]
    echoed = server.complete(prompt=prompt, max_tokens=3, echo=True).json()["choices"]
    assert [choice["text"] for choice in echoed] == [
        text + choice["text"] for text, choice in zip(texts, plain, strict=True)
    ]


def test_special_tokens_are_shown_where_asked_for(server: RunningServer) -> None:
    body = server.complete(prompt=[BOS, *ids_of("ab")], echo=True, max_tokens=0, skip_special_tokens=False)
    assert body.json()["choices"][0]["text"] == "<s>ab"


def test_every_choice_of_every_prompt_has_its_own(server: RunningServer) -> None:
    body = server.complete(prompt=["a", "b"], n=2, echo=True, max_tokens=1).json()
    assert [choice["text"][0] for choice in body["choices"]] == ["a", "a", "b", "b"]
    assert body["usage"]["prompt_tokens"] == 2
    assert body["usage"]["completion_tokens"] == 4


def test_nothing_generated_costs_nothing_generated(server: RunningServer) -> None:
    usage = server.complete(prompt="ab", echo=True, max_tokens=0, logprobs=1).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (2, 0, 2)


def test_logprobs_of_prompt_and_completion(server: RunningServer) -> None:
    server.engine.script = ids_of("yz")
    logprobs = server.complete(prompt="abc", echo=True, logprobs=2, max_tokens=2).json()["choices"][0][
        "logprobs"
    ]
    assert logprobs == {
        "tokens": ["a", "b", "c", "y", "z"],
        "token_logprobs": [None, -0.5, -0.5, -0.5, -0.5],
        "top_logprobs": [
            None,
            {"b": -0.5, "c": -1.5},
            {"c": -0.5, "d": -1.5},
            {"y": -0.5, "z": -1.5},
            {"z": -0.5, "{": -1.5},
        ],
        "text_offset": [0, 1, 2, 3, 4],
    }
    [request] = server.engine.requests
    assert request.scores_prompt


def test_a_prompt_is_scored_only_where_both_are_asked_for(server: RunningServer) -> None:
    server.complete(echo=True)
    server.complete(logprobs=1)
    assert [request.scores_prompt for request in server.engine.requests] == [False, False]


@pytest.mark.parametrize("prompt", ["a", [BOS]])
def test_one_token_has_nothing_before_it(server: RunningServer, prompt: Any) -> None:
    choice = server.complete(prompt=prompt, echo=True, logprobs=1, max_tokens=0).json()["choices"][0]
    assert choice["logprobs"]["token_logprobs"] == [None]
    assert choice["logprobs"]["top_logprobs"] == [None]


def test_offsets_count_characters_and_tokens_inside_one_begin_where_it_does(server: RunningServer) -> None:
    prompt = [BOS, *ids_of("aüb")]
    choice = server.complete(prompt=prompt, echo=True, logprobs=0, max_tokens=1).json()["choices"][0]
    assert choice["text"][:3] == "aüb"
    assert choice["logprobs"]["tokens"][:5] == ["<s>", "a", "bytes:\\xc3", "bytes:\\xbc", "b"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 1, 2, 3]


def test_a_character_begun_by_the_prompt_is_ended_by_the_completion(server: RunningServer) -> None:
    first, second = ids_of("ü")
    server.engine.script = [second]
    fields: dict[str, Any] = {"prompt": [[*ids_of("a"), first]], "echo": True}
    assert server.complete(**fields, max_tokens=1).json()["choices"][0]["text"] == "aü"
    assert server.complete(**fields, max_tokens=0).json()["choices"][0]["text"] == "a\ufffd"


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_stream_begins_with_the_whole_prompt(server: RunningServer, logprobs: int | None) -> None:
    fields = {"prompt": ["abcd", "e"], "echo": True, "logprobs": logprobs, "max_tokens": 3}
    whole = server.complete(**fields).json()["choices"]
    chunks = [chunk["choices"][0] for chunk in events(server.complete(**fields, stream=True).text)]
    for index, choice in enumerate(whole):
        mine = [chunk for chunk in chunks if chunk["index"] == index]
        assert mine[0]["text"].startswith(("abcd", "e")[index])
        assert "".join(chunk["text"] for chunk in mine) == choice["text"]
        if logprobs is not None:
            for key, values in choice["logprobs"].items():
                assert [value for chunk in mine for value in chunk["logprobs"][key]] == values


@pytest.mark.parametrize("ends", [False, True])
def test_evaluation_harnesses_cut_one_entry_off_the_end(server: RunningServer, ends: bool) -> None:
    """This also holds if the one token that they must ask for is the end of the text."""
    server.engine.script = [EOS] if ends else ids_of("z")
    body = server.complete(
        prompt=[ids_of("ab"), ids_of("abc")], echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    ).json()
    for choice, prompt_len in zip(body["choices"], (2, 3), strict=True):
        assert choice["finish_reason"] == ("stop" if ends else "length")
        kept = slice(1, -1)
        logprobs, tops = choice["logprobs"]["token_logprobs"][kept], choice["logprobs"]["top_logprobs"][kept]
        assert len(logprobs) == prompt_len - 1
        assert all(logprob == max(top.values()) for logprob, top in zip(logprobs, tops, strict=True))


def test_without_echo_a_stop_token_is_not_listed(server: RunningServer) -> None:
    server.engine.script = [*ids_of("z"), EOS]
    choice = server.complete(logprobs=1, max_tokens=2).json()["choices"][0]
    assert choice["logprobs"]["tokens"] == ["z"]


def test_a_prompt_may_fill_the_model_where_nothing_follows(server: RunningServer) -> None:
    full = [4] * server.engine.max_model_len
    assert server.complete(prompt=full, echo=True, max_tokens=0, logprobs=1).status_code == 200
    for fields in ({"max_tokens": 1}, {"max_tokens": None}):
        assert server.complete(prompt=full, echo=True, **fields).json()["error"]["param"] == "prompt"
    longer = server.complete(prompt=[*full, 4], echo=True, max_tokens=0)
    assert longer.json()["error"]["code"] == "context_length_exceeded"


def test_a_model_without_the_programs_says_which_key_to_set(start: Start, tokenizer: Tokenizer) -> None:
    with start() as other:
        models = ModelTable(["fake"])
        models.serve(with_manifest(served_model(other.engine, tokenizer), programs=()))
        with run(ServerConfig(port=0), models, other.engine) as server:
            refused = server.complete(echo=True, logprobs=1)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "echo"
            assert "set models[0].prompt_logprobs: true" in refused.json()["error"]["message"]
            assert server.complete(echo=True).json()["choices"][0]["text"].endswith(letters(9, 4))
            assert server.complete(logprobs=1).status_code == 200
