"""Every field of the API contract is applied, refused or accepted; every limit holds; errors name fields."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from fake_engine import PROMPT_IDS, FakeEngine, served_model
from refusals import BAD_CHAT_FIELDS, BAD_COMPLETION_FIELDS, TOOL_CALL, USER, assert_refused, of_treatment
from running_server import RunningServer, Start, events, run

from vinfer.config import ServerConfig
from vinfer.errors import RequestError
from vinfer.server.fields.chat import CHAT
from vinfer.server.fields.completions import COMPLETION
from vinfer.server.fields.treatment import Treatment, applied_fields
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer

ACCEPTED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Hints of other servers' clients about what stays in memory, and settings of samplers that are off.
KEPT = {
    *("prompt_cache_retention", "num_ctx", "n_ctx", "keep_alive", "truncation_length"),
    *("mirostat_eta", "mirostat_tau", "xtc_threshold", "dynatemp_exponent", "smoothing_curve", "min_keep"),
    *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_range", "dry_sequence_breakers"),
}
# The contract's list of chat fields, however each is treated.
CONTRACT = {
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop"),
    *("stop_token_ids", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs"),
    *("top_logprobs", "stream", "stream_options", "response_format", "tools", "tool_choice"),
    *("parallel_tool_calls", "reasoning_effort", "top_k", "min_p", "repetition_penalty", "min_tokens"),
    *("ignore_eos", "structured_outputs", "skip_special_tokens", "chat_template_kwargs"),
    *("add_generation_prompt", "continue_final_message", "priority", "cache_salt", "audio", "modalities"),
    *("prediction", "web_search_options", "functions"),
}


def test_the_table_treats_every_field_of_the_contract() -> None:
    assert set(CHAT.rules) >= CONTRACT | ACCEPTED
    assert of_treatment(CHAT.rules, Treatment.ACCEPTED) == ACCEPTED | KEPT
    assert of_treatment(COMPLETION.rules, Treatment.ACCEPTED) == ACCEPTED | KEPT


@pytest.mark.parametrize("field", sorted(of_treatment(CHAT.rules, Treatment.REFUSED)))
def test_refused_chat_field(server: RunningServer, field: str) -> None:
    assert_refused(server.chat(**{field: {"some": "thing"}}), field, field)
    assert server.chat(**{field: None}).status_code == 200
    for neutral in CHAT.rules[field].neutral:
        assert server.chat(**{field: neutral}).status_code == 200


@pytest.mark.parametrize("field", sorted(of_treatment(COMPLETION.rules, Treatment.REFUSED)))
def test_refused_completion_field(server: RunningServer, field: str) -> None:
    assert_refused(server.complete(**{field: {"some": "thing"}}), field, field)


@pytest.mark.parametrize("field", sorted(ACCEPTED | KEPT))
def test_accepted_field_changes_nothing(server: RunningServer, field: str) -> None:
    plain = server.chat().json()["choices"]
    assert server.chat(**{field: {"anything": 1}}).json()["choices"] == plain


@pytest.mark.parametrize(("fields", "param"), BAD_CHAT_FIELDS)
def test_bad_chat_field(server: RunningServer, fields: dict[str, Any], param: str) -> None:
    assert_refused(server.chat(**fields), param)
    assert server.engine.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {
            "messages": [
                {"role": role, "content": "x"} for role in ("system", "developer", "user", "assistant")
            ]
        },
        {"messages": [USER, {"role": "assistant", "tool_calls": [TOOL_CALL]}]},
        {"messages": [USER, {"role": "tool", "content": "4", "tool_call_id": "c"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}]},
        {"messages": [{"role": "user", "content": "nul \u0000 and emoji \U0001f600"}]},
        {"temperature": 0, "top_p": 1, "top_k": -1, "n": 1, "seed": -1, "stop": "x"},
        {"max_tokens": 3, "max_completion_tokens": 3},
        {"modalities": ["text"], "response_format": {"type": "text"}},
        {"logprobs": True, "top_logprobs": 0},
        {"min_tokens": 4},
    ],
)
def test_good_chat_fields(server: RunningServer, fields: dict[str, Any]) -> None:
    response = server.chat(**fields)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(("fields", "param"), BAD_COMPLETION_FIELDS)
def test_bad_completion_field(server: RunningServer, fields: dict[str, Any], param: str) -> None:
    assert_refused(server.complete(**fields), param)
    assert server.engine.requests == []


def test_messages_say_value_limit_and_next_move(server: RunningServer) -> None:
    cases = {
        "temperature is 3; must be at most 2": {"temperature": 3},
        "seed is 18446744073709551616; must be at most 18446744073709551615": {"seed": 2**64},
        "n is 9; server.max_n is 8: ask for fewer choices": {"n": 9},
        "'temprature' is not a field of this route: did you mean temperature?": {"temprature": 1},
        "prediction: vinfer does not use predicted outputs: leave it out": {"prediction": {}},
        "messages is missing: send it": {"messages": None},
        "max_tokens is a boolean; must be an integer": {"max_tokens": True},
    }
    found = {server.chat(**fields).json()["error"]["message"]: fields for fields in cases.values()}
    assert found == cases


def test_prompt_that_does_not_fit(server: RunningServer) -> None:
    too_long = server.complete(prompt=[4] * 128)
    assert_refused(
        too_long,
        "prompt",
        "prompt has 128 tokens; max_model_len is 128: shorten it or raise models[0].max_model_len",
    )
    assert_refused(server.complete(prompt=[4] * 120, max_tokens=9, min_tokens=9), "min_tokens", "at most 8")


def test_max_tokens_is_lowered_to_what_fits(server: RunningServer) -> None:
    """A header says so, unless nobody asked for more."""
    for sent, header in ((8, None), (9, "8"), (1000, "8"), (None, None)):
        response = server.complete(prompt=[4] * 120, max_tokens=sent)
        body = response.json()
        assert body["usage"]["completion_tokens"] == 8
        assert body["choices"][0]["finish_reason"] == "length"
        assert response.headers.get("x-vinfer-max-tokens") == header
    for field in ("max_tokens", "max_completion_tokens"):
        response = server.chat(**{"max_tokens": None, field: 1000}, stream=True)
        room = 128 - len(PROMPT_IDS)
        assert response.headers["x-vinfer-max-tokens"] == str(room)
        assert len(events(response.text)) == 1 + room + 1
    responses = server.http.post(
        "/v1/responses", json={"model": "fake", "input": "hi", "max_output_tokens": 1000}
    )
    assert responses.headers["x-vinfer-max-tokens"] == str(room)
    # Of several prompts, the least.
    several = server.complete(prompt=[[4] * 100, [4] * 120, [4]], max_tokens=20)
    assert several.headers["x-vinfer-max-tokens"] == "8"


def test_a_length_that_memory_limits_names_kv_cache(tokenizer: Tokenizer) -> None:
    engine = FakeEngine()
    models = ModelTable(["fake"])
    models.serve(dataclasses.replace(served_model(engine, tokenizer), length_limit_key="kv_cache"))
    with run(ServerConfig(port=0), models, engine) as server:
        assert_refused(server.complete(prompt=[4] * 128), "prompt", "shorten it or raise models[0].kv_cache")


def test_unknown_fields_can_be_ignored(start: Start) -> None:
    with start(unknown_fields="ignore") as server:
        assert server.chat(mood="good", messages=[{**USER, "contnet": "good"}]).status_code == 200
        assert_refused(server.chat(prediction={"type": "content"}), "prediction")


@pytest.mark.parametrize("field", sorted(ACCEPTED))
@pytest.mark.parametrize(
    "value",
    [
        pytest.param([1] * 70_000, id="numbers"),
        pytest.param("x" * 70_000, id="text"),
        pytest.param({f"k{i}": i for i in range(40_000)}, id="keys"),
        pytest.param([["x" * 40_000]] * 2, id="texts"),
    ],
)
def test_a_field_without_effect_may_not_be_huge(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"^{field} has no effect, and has more than 65536") as caught:
        applied_fields({field: value}, CHAT.rules, "refuse")
    assert caught.value.param == field
    assert applied_fields({field: {"any": [1, "thing"]}}, CHAT.rules, "refuse") == {}
