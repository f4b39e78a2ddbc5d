"""`/v1/capabilities` tells the truth: each field and limit that it names is tried on its route."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from contract import BODIES, HI
from fake_engine import FakeEngine, served_model
from running_server import RunningServer, Start, run

import vinfer
from vinfer.config import ServerConfig
from vinfer.server.fields import tokenization
from vinfer.server.model_table import ModelTable
from vinfer.server.route_table import ROUTES
from vinfer.text.tokenizer import Tokenizer

MAYBE_NEUTRAL = [
    *(None, False, True, 0, 1, -1, "", "none", "auto", "disabled", "medium", "deepseek", "assistant", [], {}),
    "standard",
    {"edits": []},
    {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
]


@pytest.fixture(scope="module")
def model(shared_server: RunningServer) -> dict[str, Any]:
    response = shared_server.http.get("/v1/capabilities")
    assert response.status_code == 200
    found: dict[str, Any] = response.json()["models"][0]
    return found


def post(server: RunningServer, form: dict[str, Any], **fields: Any) -> httpx.Response:
    smallest = next(body for body in BODIES[form["path"]] if set(form["required"]) <= set(body))
    return server.http.post(form["path"], json={**smallest, **fields})


def refusal(response: httpx.Response) -> str:
    """Return the field that a refusal names; in Anthropic's form, the message begins with it."""
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    param: str = error["param"] if "param" in error else error["message"].split()[0].strip(":'")
    return param


def test_what_is_served(server: RunningServer) -> None:
    body = server.http.get("/v1/capabilities").json()
    models = body.pop("models")
    assert body == {
        "version": vinfer.__version__,
        "unknown_fields": "refuse",
        "max_body_bytes": 65536,
        "request_timeout_seconds": 600.0,
    }
    assert [{key: model[key] for key in list(model)[:7]} for model in models] == [
        {
            "id": "fake",
            "task": "text",
            "architecture": "FakeForCausalLM",
            "max_model_len": 128,
            "num_slots": 4,
            "vocab_size": 260,
            "parity_verdict": "unverified",
        }
    ]
    assert len(models[0]["forms"]) == sum(len(operation.forms) for operation in ROUTES.values())


def test_each_form_does_what_it_says_with_each_field(server: RunningServer, model: dict[str, Any]) -> None:
    num_tried = 0
    for form in model["forms"]:
        assert post(server, form).status_code == 200
        for field in form["applied"]:
            # No field accepts this value, so a field that is read is refused.
            param = refusal(post(server, form, **{field: {"some": "thing"}}))
            assert param.split(".")[0] == field, (form["path"], field, param)
        for refused in form["refused"]:
            field = refused["field"]
            response = post(server, form, **{field: {"some": "thing"}})
            # This field decides which form a body has.
            if (form["path"], field) == ("/tokenize", "messages"):
                continue
            assert refusal(response) == field
            assert refused["reason"] in response.json()["error"]["message"]
            neutral = {json.dumps(value) for value in (None, *refused["neutral"])}
            for value in MAYBE_NEUTRAL:
                passes = post(server, form, **{field: value}).status_code == 200
                assert passes == (json.dumps(value) in neutral), (form["path"], field, value)
                neutral.discard(json.dumps(value))
            assert not neutral, "try these too"
        for alias, field in form["aliases"].items():
            assert field in form["applied"]
            assert refusal(post(server, form, **{alias: {"some": "thing"}})) == alias
        for field in form["accepted"]:
            assert post(server, form, **{field: {"some": "thing"}}).status_code == 200
        for field in form["required"]:
            assert refusal(post(server, form, **{field: None})) in (field, "prompt")
        assert refusal(post(server, form, mood="good")) == "mood"
        num_tried += len(form["applied"]) + len(form["refused"]) + len(form["accepted"])
    assert num_tried > 100


def test_a_body_with_both_forms_of_tokenize(server: RunningServer) -> None:
    response = server.http.post("/tokenize", json={"prompt": "a", "messages": HI})
    assert refusal(response) == "prompt"


CHAT_LIMITS: list[tuple[str, str, Any]] = [
    ("max_n", "n", lambda num: {"n": num}),
    ("max_top_logprobs", "top_logprobs", lambda num: {"logprobs": True, "top_logprobs": num}),
    ("max_stop", "stop", lambda num: {"stop": ["x"] * num}),
    ("max_stop_string_chars", "stop[0]", lambda num: {"stop": ["x" * num]}),
    ("max_stop_token_ids", "stop_token_ids", lambda num: {"stop_token_ids": list(range(4, 4 + num))}),
]
COMPLETION_LIMITS: list[tuple[str, str, Any]] = [
    ("max_n", "n", lambda num: {"n": num}),
    ("max_top_logprobs", "logprobs", lambda num: {"logprobs": num}),
    ("max_prompts", "prompt", lambda num: {"prompt": [[4]] * num}),
]


@pytest.mark.parametrize(("limit", "param", "fields"), CHAT_LIMITS, ids=[row[0] for row in CHAT_LIMITS])
def test_chat_limit(
    server: RunningServer, model: dict[str, Any], limit: str, param: str, fields: Any
) -> None:
    num = model["limits"][limit]
    assert server.chat(**fields(num)).status_code == 200
    assert refusal(server.chat(**fields(num + 1))) == param


@pytest.mark.parametrize(
    ("limit", "param", "fields"), COMPLETION_LIMITS, ids=[row[0] for row in COMPLETION_LIMITS]
)
def test_completion_limit(
    server: RunningServer, model: dict[str, Any], limit: str, param: str, fields: Any
) -> None:
    num = model["limits"][limit]
    assert server.complete(**fields(num)).status_code == 200
    assert refusal(server.complete(**fields(num + 1))) == param


def test_limits_tried_elsewhere(server: RunningServer, model: dict[str, Any]) -> None:
    limits = model["limits"]
    tried = {limit for limit, _, _ in (*CHAT_LIMITS, *COMPLETION_LIMITS)}
    # `test_limits` of the tokenization routes tries these two.
    assert limits["max_tokenize_chars"] == tokenization.MAX_PROMPT_CHARS
    assert limits["max_detokenize_tokens"] == tokenization.MAX_TOKENS
    # More entries than this vocabulary has tokens: the number of entries is checked first.
    num = limits["max_logit_bias"]
    assert refusal(server.chat(logit_bias={str(i): 1 for i in range(num)})) == "logit_bias.260"
    assert refusal(server.chat(logit_bias={str(i): 1 for i in range(num + 1)})) == "logit_bias"
    # This model takes no images; `test_images_over_http` has one that does.
    assert limits["max_images"] == 0
    elsewhere = {"max_tokenize_chars", "max_detokenize_tokens", "max_logit_bias", "max_images"}
    assert set(limits) == {*tried, *elsewhere}


def test_max_model_len(server: RunningServer, model: dict[str, Any]) -> None:
    longest = [4] * (model["max_model_len"] - 1)
    assert server.complete(prompt=longest, max_tokens=1).status_code == 200
    assert refusal(server.complete(prompt=[*longest, 4], max_tokens=1)) == "prompt"


def test_response_formats(server: RunningServer, model: dict[str, Any]) -> None:
    schema = {"name": "x", "schema": {"type": "object", "additionalProperties": False}}
    formats: dict[str, dict[str, Any]] = {
        "text": {"type": "text"},
        "json_object": {"type": "json_object"},
        "json_schema": {"type": "json_schema", "json_schema": schema},
    }
    served = [kind for kind in formats if server.chat(response_format=formats[kind]).status_code == 200]
    assert model["response_formats"] == served


def test_defaults(server: RunningServer, model: dict[str, Any]) -> None:
    defaults = model["sampling_defaults"]
    for path, send in (("/v1/chat/completions", server.chat), ("/v1/completions", server.complete)):
        server.engine.reset()
        assert send(max_tokens=None).status_code == 200
        assert len(server.engine.requests) == defaults["n"]
        request = server.engine.requests[0]
        assert {key: getattr(request.params, key) for key in defaults if key != "n"} == {
            key: value for key, value in defaults.items() if key != "n"
        }
        expected = model["default_max_tokens"][path]
        if expected is None:
            expected = model["max_model_len"] - len(request.prompt_ids)
        assert request.params.max_tokens == expected


def test_a_model_without_template_takes_no_conversations(tokenizer: Tokenizer) -> None:
    engine, models = FakeEngine(), ModelTable(["fake"])
    models.serve(served_model(engine, tokenizer, chat_template=None))
    with run(ServerConfig(port=0), models, engine) as server:
        (model,) = server.http.get("/v1/capabilities").json()["models"]
        for path, bodies in BODIES.items():
            answers = [server.http.post(path, json=body) for body in bodies]
            num_taken = sum(form["path"] == path for form in model["forms"])
            assert [answer.status_code for answer in answers].count(200) == num_taken
            assert all(
                answer.status_code == 200 or refusal(answer) in ("messages", "input", "model")
                for answer in answers
            )
        assert list(model["default_max_tokens"]) == ["/v1/completions"]


def test_config_decides(start: Start) -> None:
    with start(max_n=3, unknown_fields="ignore", request_timeout_seconds=5) as server:
        body = server.http.get("/v1/capabilities").json()
        assert (body["unknown_fields"], body["request_timeout_seconds"]) == ("ignore", 5.0)
        assert body["models"][0]["limits"]["max_n"] == 3
        assert server.chat(mood="good").status_code == 200


def test_models_that_load_are_not_there_yet(tokenizer: Tokenizer) -> None:
    engine, models = FakeEngine(), ModelTable(["one", "two"])
    models.serve(served_model(engine, tokenizer, name="two"))
    with run(ServerConfig(port=0), models, engine) as server:
        body = server.http.get("/v1/capabilities").json()
        assert [model["id"] for model in body["models"]] == ["two"]
