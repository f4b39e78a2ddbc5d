"""Well-known fields of other servers: aliases are applied, neutral values pass, anything else is refused."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import EOS, IM_END, PROMPT_IDS, ids_of
from refusals import assert_refused, of_treatment
from running_server import RunningServer, events

from vinfer.server.fields import foreign
from vinfer.server.fields.chat import CHAT
from vinfer.server.fields.completions import COMPLETION
from vinfer.server.fields.embeddings import EMBEDDING
from vinfer.server.fields.responses.body import RESPONSES
from vinfer.server.fields.treatment import Treatment
from vinfer.server.route_table import ROUTES

CASES: dict[str, tuple[Any, dict[str, Any], list[dict[str, foreign.Entry]]]] = {
    "/v1/chat/completions": (
        CHAT,
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
        [dict(foreign.SAMPLING), dict(foreign.CHAT)],
    ),
    "/v1/completions": (
        COMPLETION,
        {"prompt": [4], "max_tokens": 2},
        [dict(foreign.SAMPLING), dict(foreign.COMPLETION)],
    ),
    "/v1/responses": (RESPONSES, {"input": "hi", "max_output_tokens": 2}, [dict(foreign.RESPONSES)]),
    "/v1/embeddings": (EMBEDDING, {"input": "a"}, [dict(foreign.EMBEDDING)]),
}


@pytest.mark.parametrize(
    ("path", "field"),
    [(path, field) for path, (_, _, tables) in CASES.items() for table in tables for field in table],
)
def test_neutral_values_pass_and_others_do_not(server: RunningServer, path: str, field: str) -> None:
    form, body, tables = CASES[path]
    reason, neutral = next(table[field] for table in tables if field in table)
    body = {"model": "fake", **body}
    plain = server.http.post(path, json=body).json()
    key = next(name for name in ("choices", "data", "status") if name in plain)
    for value in (None, *neutral):
        response = server.http.post(path, json={**body, field: value})
        assert response.status_code == 200, response.text
        assert response.json()[key] == plain[key]
    assert_refused(server.http.post(path, json={**body, field: {"other": 1}}), field, reason)
    assert form.rules[field].treatment is Treatment.REFUSED


def test_advice_names_fields_that_exist() -> None:
    """A reason that says "use X" must name a field that some route applies."""
    applied = {
        name
        for operation in ROUTES.values()
        for form in operation.forms
        for name in of_treatment(dict(form.rules), Treatment.APPLIED)
    }
    tables = (foreign.SAMPLING, foreign.CHAT, foreign.COMPLETION, foreign.RESPONSES, foreign.EMBEDDING)
    num_named = 0
    for table in tables:
        for reason, _ in table.values():
            if reason.startswith("use "):
                name = reason.removeprefix("use ").split(",")[0].split(" ")[0].split(".")[0]
                assert name in applied, reason
                num_named += 1
    assert num_named > 15
    assert set(foreign.ALIASES.values()) <= applied


@pytest.mark.parametrize(("alias", "field"), foreign.ALIASES.items())
def test_an_alias_is_applied(server: RunningServer, alias: str, field: str) -> None:
    value = 3
    for send in (server.chat, server.complete):
        server.engine.reset()
        for name in (field, alias):
            body = {"max_tokens": None, "temperature": 1.0, name: value}
            assert send(**body).status_code == 200
        ours, theirs = (request.params for request in server.engine.requests)
        name = {"max_tokens": "max_tokens", "seed": "seed"}.get(field, field)
        assert getattr(ours, name) == getattr(theirs, name) == value
        assert_refused(send(**{"max_tokens": None, alias: "x"}), alias)
        assert_refused(send(**{"max_tokens": None, field: 2, alias: 3}), alias, f"another name of {field}")
        assert send(**{"max_tokens": None, field: 3, alias: 3}).status_code == 200
        assert send(**{"max_tokens": None, field: None, alias: 3}).status_code == 200


# Fields of other servers that vinfer applies.


@pytest.mark.parametrize("tokens_per_event", [1, 3, 100])
@pytest.mark.parametrize("is_included", [True, False])
def test_include_stop_str_in_output(server: RunningServer, tokens_per_event: int, is_included: bool) -> None:
    server.engine.script = ids_of("one STOP two")
    server.engine.tokens_per_event = tokens_per_event
    fields: dict[str, Any] = {"stop": ["STOP"], "max_tokens": 12, "include_stop_str_in_output": is_included}
    expected = "one STOP" if is_included else "one "
    for send in (server.chat, server.complete):
        choice = send(**fields).json()["choices"][0]
        assert choice.get("text", choice.get("message", {}).get("content")) == expected
        assert choice["finish_reason"] == "stop"
        streamed = [chunk["choices"][0] for chunk in events(send(**fields, stream=True).text)]
        pieces = [piece.get("text") or piece.get("delta", {}).get("content") or "" for piece in streamed]
        assert "".join(pieces) == expected


def test_a_stop_token_is_included_too(server: RunningServer) -> None:
    (letter,) = ids_of("b")
    server.engine.script = ids_of("abc")
    fields = {"stop_token_ids": [letter], "include_stop_str_in_output": True}
    assert server.complete(**fields).json()["choices"][0]["text"] == "ab"
    assert server.complete(stop_token_ids=[letter]).json()["choices"][0]["text"] == "a"
    # A special token is shown only if special tokens are.
    server.engine.script = [*ids_of("a"), EOS]
    texts = [
        server.complete(include_stop_str_in_output=True, skip_special_tokens=skip).json()["choices"][0][
            "text"
        ]
        for skip in (True, False)
    ]
    assert texts == ["a", "a</s>"]


@pytest.mark.parametrize("tokens_per_event", [1, 2, 100])
def test_return_token_ids(server: RunningServer, tokens_per_event: int) -> None:
    """Every id once, with those whose text is held back or never shown."""
    ids = [*ids_of("é STO"), *ids_of("n"), EOS]
    server.engine.script = ids
    server.engine.tokens_per_event = tokens_per_event
    fields: dict[str, Any] = {"return_token_ids": True, "stop": "STOP", "max_tokens": 20, "n": 2}
    for send, prompt_ids in ((server.chat, list(PROMPT_IDS)), (server.complete, [4, 5])):
        body = send(**fields).json()
        assert [choice["token_ids"] for choice in body["choices"]] == [ids, ids]
        assert (body.get("prompt_token_ids") or body["choices"][0]["prompt_token_ids"]) == prompt_ids
        chunks = events(send(**fields, stream=True).text)
        for index in range(2):
            own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
            assert [each for choice in own for each in choice.get("token_ids", [])] == ids
            found = [choice["prompt_token_ids"] for choice in own if "prompt_token_ids" in choice]
            found += [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk]
            assert found[0] == prompt_ids
        assert "token_ids" not in str(send(**{**fields, "return_token_ids": False}).json())


def test_token_ids_of_several_prompts(server: RunningServer) -> None:
    choices = server.complete(prompt=[[4], [5, 6]], return_token_ids=True, n=2, best_of=3).json()["choices"]
    assert [choice["prompt_token_ids"] for choice in choices] == [[4], [4], [5, 6], [5, 6]]
    assert all(len(choice["token_ids"]) == 4 for choice in choices)


def test_top_p_0_and_many_stop_strings(server: RunningServer) -> None:
    server.engine.script = ids_of("abc!")
    body = server.chat(top_p=0, stop=[f"stop{i}" for i in range(63)] + ["!"]).json()
    assert body["choices"][0]["message"]["content"] == "abc"
    assert server.engine.requests[0].params.top_p == 0
    assert IM_END in server.engine.requests[0].params.stop_token_ids


@pytest.mark.parametrize(
    ("truncate", "expected"),
    [(None, [4, 5, 6, 7]), (2, [6, 7]), (4, [4, 5, 6, 7]), (9, [4, 5, 6, 7]), (-1, [4, 5, 6, 7])],
)
def test_truncate_prompt_tokens(server: RunningServer, truncate: int | None, expected: list[int]) -> None:
    body = {"model": "fake", "input": [4, 5, 6, 7], "truncate_prompt_tokens": truncate}
    response = server.http.post("/v1/embeddings", json=body)
    assert response.json()["usage"]["prompt_tokens"] == len(expected)
    assert list(server.engine.requests[0].prompt_ids) == expected


def test_truncate_to_what_fits(server: RunningServer) -> None:
    body = {"model": "fake", "input": [[4] * 500, "a" * 500, [5]], "truncate_prompt_tokens": -1}
    assert server.http.post("/v1/embeddings", json=body).json()["usage"]["prompt_tokens"] == 128 + 128 + 1
    for bad in (0, -2, 1.5, "1"):
        response = server.http.post("/v1/embeddings", json={**body, "truncate_prompt_tokens": bad})
        assert_refused(response, "truncate_prompt_tokens")
    too_long = server.http.post("/v1/embeddings", json={**body, "truncate_prompt_tokens": 200})
    assert_refused(too_long, "input[0]")


def test_responses_apply_penalties_and_ignore_eos(server: RunningServer) -> None:
    body = {"model": "fake", "input": "hi", "max_output_tokens": 2}
    fields = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "ignore_eos": True}
    answer = server.http.post("/v1/responses", json={**body, **fields}).json()
    params = server.engine.requests[0].params
    assert (params.presence_penalty, params.frequency_penalty) == (0.5, -0.5)
    assert params.stop_token_ids == ()
    assert (answer["presence_penalty"], answer["frequency_penalty"]) == (0.5, -0.5)
    for key in ("max_tool_calls", "safety_identifier", "prompt_cache_key"):
        assert answer[key] is None
    assert answer["service_tier"] == "default"


@pytest.mark.parametrize(
    "fields",
    [
        {"include": ["reasoning.encrypted_content"]},
        {"include": []},
        {"reasoning": {"summary": "auto"}},
        {"reasoning": {"effort": "none"}},
        {"stream_options": {"include_obfuscation": True}, "stream": True},
        {"text": {"verbosity": "medium"}},
        {"prompt_cache_retention": "24h"},
    ],
)
def test_responses_of_openai_clients(server: RunningServer, fields: dict[str, Any]) -> None:
    response = server.http.post("/v1/responses", json={"model": "fake", "input": "hi", **fields})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n_predict", "num_predict"])
def test_minus_one_is_all_the_room(server: RunningServer, field: str) -> None:
    """LM Studio, llama.cpp and Ollama know -1 as "no limit"; their clients send it."""
    room = server.engine.max_model_len
    sends = [server.chat] if field == "max_completion_tokens" else [server.chat, server.complete]
    for send in sends:
        server.engine.reset()
        server.engine.script = [*ids_of("a"), EOS]
        response = send(**{"max_tokens": None, field: -1})
        assert response.status_code == 200, response.text
        (request,) = server.engine.requests
        assert request.params.max_tokens == room - len(request.prompt_ids)
        assert response.headers["x-vinfer-max-tokens"] == str(request.params.max_tokens)
        assert_refused(send(**{"max_tokens": None, field: -2}), field, "must be at least")
