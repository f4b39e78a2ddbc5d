"""`POST /v1/messages`: answers, events and stop reasons of Anthropic's form, over the prompts of chat."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import EOS, PROMPT_IDS, START, FakeEngine, ids_of, letters, served_model
from messages_requests import CALL, TOOL, answered, body, folded, named_events, post, say, streamed
from running_server import RunningServer, Start, run
from tool_requests import follows

from vinfer.config import ServerConfig
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer

# Keys of usage that only Anthropic's own server fills in.
OF_ANTHROPICS_SERVER: dict[str, Any] = {
    "cache_creation": None,
    "output_tokens_details": None,
    "server_tool_use": None,
    "inference_geo": None,
    "service_tier": "standard",
}


@pytest.fixture(scope="module")
def roomy_server(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    engine, models = FakeEngine(max_model_len=4096), ModelTable(["fake", "plain"])
    model = served_model(engine, tokenizer)
    form = dataclasses.replace(model.answer_form, has_reasoning=True)
    models.serve(dataclasses.replace(model, answer_form=form))
    models.serve(served_model(engine, tokenizer, "plain"))
    with run(ServerConfig(port=0), models, engine) as server:
        yield server


@pytest.fixture
def thinking(roomy_server: RunningServer) -> RunningServer:
    """A server with room and a model that may reason; its engine has been reset."""
    roomy_server.engine.reset()
    return roomy_server


def text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def test_a_whole_message(server: RunningServer) -> None:
    message = answered(server, max_tokens=4, metadata={"user_id": "me"})
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [text_block(letters(START, 4))],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {
            "input_tokens": len(PROMPT_IDS),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 4,
            **OF_ANTHROPICS_SERVER,
        },
    }


def test_the_prompt_is_that_of_chat(server: RunningServer) -> None:
    answered(server, max_tokens=4, system="be kind", temperature=0.5, top_p=0.5, top_k=3, seed=7)
    server.chat(
        messages=[{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        temperature=0.5,
        top_p=0.5,
        top_k=3,
        seed=7,
    )
    ours, chats = server.engine.requests
    assert (ours.prompt_ids, ours.params) == (chats.prompt_ids, chats.params)


def test_the_events_of_a_text(server: RunningServer) -> None:
    server.engine.script = [*ids_of("Hé"), EOS]
    usage = {"input_tokens": len(PROMPT_IDS), "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    usage |= OF_ANTHROPICS_SERVER
    first, *events = streamed(server, max_tokens=4)
    assert first["type"] == "message_start"
    assert first["message"]["content"] == []
    assert {key: first["message"]["usage"][key] for key in usage} == usage
    assert events == [
        {"type": "content_block_start", "index": 0, "content_block": text_block("")},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "H"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "é"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {**usage, "output_tokens": 4},
        },
        {"type": "message_stop"},
    ]


def test_an_answer_that_says_nothing_has_no_blocks(server: RunningServer) -> None:
    message = say(server, "", max_tokens=4)
    assert (message["content"], message["stop_reason"]) == ([], "end_turn")


def test_reused_tokens_are_counted_by_themselves(server: RunningServer) -> None:
    usages = [answered(server, max_tokens=4)["usage"] for _ in range(2)]
    # All but the last token of the prompt are found in the pages of the request before.
    assert [usage["cache_read_input_tokens"] for usage in usages] == [0, len(PROMPT_IDS) - 1]
    assert [usage["input_tokens"] for usage in usages] == [len(PROMPT_IDS), 1]
    (start, *_, end, _) = streamed(server, max_tokens=4)
    assert start["message"]["usage"]["cache_read_input_tokens"] == len(PROMPT_IDS) - 1
    assert end["usage"] == usages[1]


@pytest.mark.parametrize(
    ("stops", "reason", "sequence", "text"),
    [
        (["C", "B"], "stop_sequence", "B", "A"),
        (["x"], "end_turn", None, "ABCD"),
        ([], "end_turn", None, "ABCD"),
        (None, "end_turn", None, "ABCD"),
    ],
)
def test_stop_sequences(
    server: RunningServer, stops: list[str] | None, reason: str, sequence: str | None, text: str
) -> None:
    message = say(server, "ABCD", max_tokens=20, stop_sequences=stops)
    assert message["content"] == [text_block(text)]
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


def test_thoughts_text_and_calls_are_blocks(thinking: RunningServer) -> None:
    message = say(thinking, f"<think>\nHm.\n</think>\n\nSo: {CALL}{CALL}", tools=[TOOL])
    thought, text, call, other = message["content"]
    digest = hashlib.sha256(b"Hm.").hexdigest()
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": digest}
    assert text["type"] == "text"
    assert text["text"].strip() == "So:"
    assert call == {
        "type": "tool_use",
        "id": call["id"],
        "name": "get_weather",
        "input": {"city": "Oslo"},
        "caller": {"type": "direct"},
    }
    assert call["id"] != other["id"]
    assert message["stop_reason"] == "tool_use"


def test_the_events_of_thoughts_and_calls(thinking: RunningServer) -> None:
    thinking.engine.script = [*ids_of(f"<think>ab</think>{CALL}"), EOS]
    kinds = [
        (event["type"], event.get("index"), (event.get("delta") or {}).get("type"))
        for event in streamed(thinking, tools=[TOOL])
    ]
    num_deltas = len('{"city": "Oslo"}')
    assert kinds == [
        ("message_start", None, None),
        ("content_block_start", 0, None),
        *[("content_block_delta", 0, "thinking_delta")] * 2,
        ("content_block_delta", 0, "signature_delta"),
        ("content_block_stop", 0, None),
        ("content_block_start", 1, None),
        *[("content_block_delta", 1, "input_json_delta")] * num_deltas,
        ("content_block_stop", 1, None),
        ("message_delta", None, None),
        ("message_stop", None, None),
    ]


def test_omitted_thoughts(thinking: RunningServer) -> None:
    how = {"type": "adaptive", "display": "omitted"}
    message = say(thinking, "<think>secret</think>So.", thinking=how)
    thought, text = message["content"]
    assert (thought["thinking"], text["text"]) == ("", "So.")
    assert thought["signature"] == hashlib.sha256(b"secret").hexdigest()


@pytest.mark.parametrize(
    ("how", "switch"),
    [
        (None, ""),
        ({"type": "enabled", "budget_tokens": 1024}, "T"),
        ({"type": "adaptive"}, "T"),
        ({"type": "disabled"}, ""),
    ],
)
def test_thinking_sets_the_templates_switch(thinking: RunningServer, how: Any, switch: str) -> None:
    """The template writes T if `enable_thinking` is true."""
    answered(thinking, thinking=how, max_tokens=4)
    (request,) = thinking.engine.requests
    assert request.prompt_ids == (*PROMPT_IDS, *ids_of(switch))


def test_thinking_needs_a_model_that_reasons(thinking: RunningServer) -> None:
    refused = post(thinking, model="plain", thinking={"type": "enabled", "budget_tokens": 1024})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == (
        "thinking.type is enabled and model plain does not reason: leave thinking out"
    )
    for kind in ("disabled", "adaptive"):
        answered(thinking, model="plain", thinking={"type": kind}, max_tokens=4)
    one, two = thinking.engine.requests
    assert one.prompt_ids == two.prompt_ids == PROMPT_IDS


def test_one_call_where_they_may_not_be_parallel(thinking: RunningServer) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    message = say(thinking, CALL + CALL, tools=[TOOL], tool_choice=choice)
    assert [block["type"] for block in message["content"]] == ["tool_use"]


def test_a_call_that_is_cut_off(thinking: RunningServer) -> None:
    thinking.engine.script = [*ids_of(CALL), EOS]
    num = CALL.index("Oslo") + 2
    message = answered(thinking, tools=[TOOL], max_tokens=num)
    (call,) = message["content"]
    assert (call["name"], call["input"], message["stop_reason"]) == ("get_weather", {}, "max_tokens")
    events = streamed(thinking, tools=[TOOL], max_tokens=num)
    sent = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(sent) == '{"city": "Os'


def test_a_stop_sequence_in_a_call(thinking: RunningServer) -> None:
    """The call is not complete, so nobody may run it."""
    thinking.engine.script = [*ids_of(CALL), EOS]
    message = answered(thinking, tools=[TOOL], stop_sequences=["Oslo"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "Oslo")


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_required_calls(thinking: RunningServer, choice: dict[str, Any]) -> None:
    thinking.engine.script = [*ids_of(CALL), EOS]
    answered(thinking, tools=[TOOL], tool_choice=choice)
    (request,) = thinking.engine.requests
    assert follows(request, CALL)


def test_no_calls(thinking: RunningServer) -> None:
    message = say(thinking, CALL, tools=[TOOL], tool_choice={"type": "none"})
    assert [block["type"] for block in message["content"]] == ["text"]
    assert message["stop_reason"] == "end_turn"


def test_a_form(thinking: RunningServer) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    answered(thinking, output_config={"format": {"type": "json_schema", "schema": schema}}, max_tokens=4)
    (request,) = thinking.engine.requests
    assert follows(request, '{"a": 5}')
    refused = post(thinking, output_config={"format": {"type": "json_schema", "schema": {"type": "wrong"}}})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("output_config.format.schema")


def test_the_beginning_of_an_answer_is_continued(thinking: RunningServer) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The answer is ("}]
    message = say(thinking, "A)", messages=turns)
    assert message["content"] == [text_block("A)")]
    prompt_ids = thinking.engine.requests[-1].prompt_ids
    assert prompt_ids == (*PROMPT_IDS, *ids_of("The answer is ("))


def test_a_silence_is_a_ping_event(start: Start) -> None:
    with start(ping_seconds=0.05) as server:
        server.engine.seconds_per_event = 0.3
        server.engine.script = [*ids_of("A"), EOS]
        events = named_events(post(server, stream=True, max_tokens=4).text)
        assert {"type": "ping"} in events
        whole = folded([event for event in events if event["type"] != "ping"])
        assert whole["content"] == [text_block("A")]


def test_a_client_that_leaves_frees_its_slot(server: RunningServer) -> None:
    server.engine.seconds_per_event = 0.05
    with server.http.stream("POST", "/v1/messages", json=body(stream=True, max_tokens=100)) as response:
        next(response.iter_lines())
    server.engine.wait_until_cancelled(1)


def test_headers_of_anthropics_clients(server: RunningServer) -> None:
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a-2025-01-01,b-2025-01-01"}
    response = server.http.post("/v1/messages?beta=true", json=body(max_tokens=4), headers=headers)
    assert response.status_code == 200
    assert response.headers["request-id"] == response.headers["x-request-id"]


def test_more_tokens_than_there_is_room_for(server: RunningServer) -> None:
    room = 128 - len(PROMPT_IDS)
    response = post(server, max_tokens=32000)
    assert response.headers["x-vinfer-max-tokens"] == str(room)
    assert response.json()["usage"]["output_tokens"] == room
    assert response.json()["stop_reason"] == "max_tokens"


def test_a_foreign_name_gets_an_error_of_the_document(server: RunningServer) -> None:
    """The document did not know the type of this error."""
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    response = server.http.post("/v1/messages", json=body, headers={"Host": "a.example"})
    assert response.status_code == 403
    assert response.json()["error"]["type"] == "permission_error"
