"""`POST /v1/responses`: items in, items out, whole and as events; every field applied or refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from contract import Contract
from fake_engine import EOS, START, TEMPLATE, FakeEngine, ids_of, letters, served_model
from openai.types.responses import ResponseCompletedEvent, ResponseStreamEvent
from refusals import assert_refused, of_treatment
from running_server import RunningServer, run
from tool_requests import follows

from vinfer.config import ServerConfig
from vinfer.server.fields.responses.body import RESPONSES
from vinfer.server.fields.treatment import Treatment
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer

TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "name": "form", "schema": SCHEMA, "strict": True}
# Shows everything that a message can contain.
FULL_TEMPLATE = (
    '{#- <tool_call> "name" #}{% for t in tools or [] %}{{ t.function.name }}{% endfor %}'
    "{% for m in messages %}[{{ m.role }}: {{ m.content }}"
    "{% if m.reasoning_content %} because {{ m.reasoning_content }}{% endif %}"
    "{% for c in m.tool_calls or [] %} {{ c.id }}={{ c.function.name }}{{ c.function.arguments }}{% endfor %}"
    "{% if m.tool_call_id %} of {{ m.tool_call_id }}{% endif %}]{% endfor %}"
    "{{ reasoning_effort }}"
)


@pytest.fixture(scope="module")
def roomy_server(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    engine, models = FakeEngine(max_model_len=4096), ModelTable(["fake", "full"])
    model = served_model(engine, tokenizer)
    form = dataclasses.replace(model.answer_form, has_reasoning=True)
    models.serve(dataclasses.replace(model, answer_form=form))
    models.serve(served_model(engine, tokenizer, "full", chat_template=FULL_TEMPLATE))
    with run(ServerConfig(port=0), models, engine) as server:
        yield server


@pytest.fixture
def thinking(roomy_server: RunningServer) -> RunningServer:
    """A server with room and a model that may reason; its engine has been reset."""
    roomy_server.engine.reset()
    return roomy_server


@pytest.fixture
def client(thinking: RunningServer) -> Iterator[openai.OpenAI]:
    url = f"{thinking.url}/v1"
    with openai.OpenAI(
        base_url=url, api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def post(server: RunningServer, **fields: Any) -> Any:
    return server.http.post("/v1/responses", json={"model": "fake", "input": "hi", **fields})


def answered(server: RunningServer, **fields: Any) -> dict[str, Any]:
    response = post(server, **fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def streamed(server: RunningServer, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a stream, which must be named after their types and numbered in order."""
    response = post(server, stream=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for event in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n", 1)
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    """Return a response without what is new each time."""
    items = [
        {key: value for key, value in item.items() if key not in ("id", "call_id")}
        for item in response["output"]
    ]
    times = ("id", "created_at", "completed_at")
    return {**{key: value for key, value in response.items() if key not in times}, "output": items}


def say(server: RunningServer, text: str, **fields: Any) -> dict[str, Any]:
    """Make the model say something, whole and streamed; both must be the same response."""
    server.engine.script = [*ids_of(text), EOS]
    whole = answered(server, **fields)
    server.engine.requests.clear()
    last = streamed(server, **fields)[-1]
    assert last["type"] == f"response.{whole['status']}"
    assert without_ids(last["response"]) == without_ids(whole)
    return whole


def test_a_whole_response(server: RunningServer) -> None:
    response = answered(server, instructions=None, max_output_tokens=4, user="me", store=True)
    (item,) = response.pop("output")
    assert response.pop("id").startswith("resp_")
    assert item.pop("id").startswith("msg_")
    assert isinstance(response.pop("created_at"), int)
    text = {"type": "output_text", "text": letters(START, 4), "annotations": [], "logprobs": []}
    assert item == {"type": "message", "role": "assistant", "status": "incomplete", "content": [text]}
    num_input = len(server.engine.requests[0].prompt_ids)
    assert response == {
        "object": "response",
        "completed_at": None,
        "status": "incomplete",
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"},
        "instructions": None,
        "max_output_tokens": 4,
        "metadata": {},
        "model": "fake",
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "service_tier": "default",
        "safety_identifier": None,
        "prompt_cache_key": None,
        "max_tool_calls": None,
        "temperature": 0.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": num_input,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 4,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_input + 4,
        },
    }


def test_the_events_of_a_message(server: RunningServer) -> None:
    server.engine.script = [*ids_of("Hé"), EOS]
    events = streamed(server)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["delta"] for event in events if "delta" in event] == ["H", "é"]
    assert [event["response"]["status"] for event in events[:2]] == ["in_progress"] * 2
    assert events[0]["response"]["output"] == []
    assert events[2]["item"]["content"] == []
    assert events[3]["part"]["text"] == ""
    assert events[6]["text"] == events[7]["part"]["text"] == "Hé"
    assert events[8]["item"] == events[9]["response"]["output"][0]
    assert {event["item_id"] for event in events if "item_id" in event} == {events[2]["item"]["id"]}
    assert events[9]["response"]["completed_at"] >= events[9]["response"]["created_at"]


def test_an_answer_that_says_nothing_is_an_empty_message(server: RunningServer) -> None:
    (item,) = say(server, "")["output"]
    assert (item["status"], item["content"][0]["text"]) == ("completed", "")


def test_thoughts_messages_and_calls_are_items(thinking: RunningServer) -> None:
    response = say(thinking, f"<think>\nHm.\n</think>\n\nSo: {CALL}{CALL}", tools=[TOOL])
    assert [item["type"] for item in response["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    thought, message, call, other = response["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert thought["summary"] == []
    assert message["content"][0]["text"].strip() == "So:"
    assert (call["name"], call["arguments"]) == ("get_weather", '{"city": "Oslo"}')
    assert call["call_id"] != other["call_id"]
    assert response["status"] == "completed"
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": len("Hm.")}
    assert response["tools"] == [{**TOOL, "strict": None}]


def test_the_events_of_thoughts_and_calls(thinking: RunningServer) -> None:
    thinking.engine.script = [*ids_of(f"<think>ab</think>{CALL}"), EOS]
    events = streamed(thinking, tools=[TOOL])
    num_deltas = len('{"city": "Oslo"}')
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.reasoning_text.delta"] * 2,
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        *["response.function_call_arguments.delta"] * num_deltas,
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert (
        "".join(event["delta"] for event in events if "arguments.delta" in event["type"])
        == (events[-3]["arguments"])
    )
    assert events[-3]["name"] == "get_weather"
    assert [event["output_index"] for event in events[2:-1]] == [0] * 7 + [1] * (num_deltas + 3)


def test_one_call_where_they_may_not_be_parallel(thinking: RunningServer) -> None:
    response = say(thinking, CALL + CALL, tools=[TOOL], parallel_tool_calls=False)
    assert [item["type"] for item in response["output"]] == ["function_call"]
    assert response["parallel_tool_calls"] is False


def test_a_call_that_is_cut_off(thinking: RunningServer) -> None:
    thinking.engine.script = [*ids_of(CALL), EOS]
    response = answered(thinking, tools=[TOOL], max_output_tokens=CALL.index("Oslo") + 2)
    (call,) = response["output"]
    assert (call["status"], call["arguments"]) == ("incomplete", '{"city": "Os')
    assert response["status"] == "incomplete"


def test_tool_choice(thinking: RunningServer) -> None:
    named = {"type": "function", "name": "get_weather"}
    for choice in ("required", named):
        thinking.engine.reset()
        assert answered(thinking, tools=[TOOL], tool_choice=choice)["tool_choice"] == choice
        assert follows(thinking.engine.requests[0], CALL)
        assert not follows(thinking.engine.requests[0], "Hi")
    assert say(thinking, CALL, tools=[TOOL], tool_choice="none")["output"][0]["type"] == "message"


def test_text_format(thinking: RunningServer) -> None:
    for form, good, bad in (
        (FORMAT, '{"a": 1}', '{"b": 1}'),
        ({"type": "json_object"}, '{"b": 1}', "[1]"),
    ):
        thinking.engine.reset()
        assert answered(thinking, text={"format": form})["text"] == {"format": form}
        assert follows(thinking.engine.requests[0], good)
        assert not follows(thinking.engine.requests[0], bad)
    thinking.engine.requests.clear()
    answered(thinking, text={"format": {"type": "text"}, "verbosity": "medium"})
    assert thinking.engine.requests[0].grammar is None


def test_sampling_reaches_the_engine(server: RunningServer) -> None:
    response = answered(server, temperature=0.5, top_p=0.25, seed=3, max_output_tokens=2)
    params = server.engine.requests[0].params
    assert (params.temperature, params.top_p, params.seed, params.max_tokens) == (0.5, 0.25, 3, 2)
    assert (response["temperature"], response["top_p"]) == (0.5, 0.25)
    assert response["output"][0]["content"][0]["text"] == letters(START + 3, 2)


def test_a_response_is_one_answer_whatever_the_config(thinking: RunningServer, tokenizer: Tokenizer) -> None:
    (model, _) = thinking.models.served_models
    several = dataclasses.replace(model, sampling=dataclasses.replace(model.sampling, n=2))
    models = ModelTable(["fake"])
    models.serve(several)
    with run(ServerConfig(port=0), models, thinking.engine) as server:
        assert len(answered(server)["output"]) == 1


TURNS = [
    {"role": "user", "content": "q"},
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "t"}],
        "status": "completed",
    },
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "m", "annotations": [], "logprobs": []}],
    },
    {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
    {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}", "status": "completed"},
    {"type": "function_call_output", "call_id": "c1", "output": "r1"},
    {
        "type": "function_call_output",
        "call_id": "c2",
        "output": [{"type": "input_text", "text": "r2"}],
        "id": None,
    },
]
THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]}
CALLED = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
CONVERSATIONS: list[tuple[dict[str, Any], str]] = [
    ({"input": "q"}, "[user: q]"),
    ({"input": "q", "instructions": "be kind"}, "[system: be kind][user: q]"),
    (
        {"input": [{"role": role, "content": role} for role in ("system", "developer", "user", "assistant")]},
        "[system: system][developer: developer][user: user][assistant: assistant]",
    ),
    ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "p"}]}]}, "[user: p]"),
    (
        {"input": TURNS},
        "[user: q][assistant: m because t c1=f{'a': 1} c2=g{}][tool: r1 of c1][tool: r2 of c2]",
    ),
    ({"input": [THOUGHT, CALLED]}, "[assistant: None because t c=f{}]"),
    (
        {"input": [{"role": "assistant", "content": "x"}, THOUGHT, CALLED]},
        "[assistant: x][assistant: None because t c=f{}]",
    ),
    ({"input": [THOUGHT, THOUGHT, TURNS[0]]}, "[assistant:  because tt][user: q]"),
    ({"input": [TURNS[0], THOUGHT]}, "[user: q][assistant:  because t]"),
    ({"input": "q", "reasoning": {"effort": "high"}}, "[user: q]high"),
]


@pytest.mark.parametrize(("fields", "text"), CONVERSATIONS)
def test_items_become_messages(
    thinking: RunningServer, tokenizer: Tokenizer, fields: dict[str, Any], text: str
) -> None:
    answered(thinking, model="full", max_output_tokens=1, **fields)
    (request,) = thinking.engine.requests
    assert tokenizer.decode(request.prompt_ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("field", sorted(of_treatment(RESPONSES.rules, Treatment.REFUSED)))
def test_refused_field(server: RunningServer, field: str) -> None:
    assert_refused(post(server, **{field: {"some": "thing"}}), field, RESPONSES.rules[field].reason)


@pytest.mark.parametrize("field", sorted(of_treatment(RESPONSES.rules, Treatment.ACCEPTED)))
def test_accepted_field_changes_nothing(server: RunningServer, field: str) -> None:
    plain = answered(server, max_output_tokens=4)
    server.engine.requests.clear()
    changed = answered(server, max_output_tokens=4, **{field: {"anything": 1}})
    assert without_ids(changed) == without_ids(plain)


HI = {"role": "user", "content": "hi"}
IMAGE = {"type": "input_image", "image_url": "data:,"}
BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"input": [{"role": "system", "content": [IMAGE]}]}, "input[0].content[0]"),
    ({"input": None}, "input"),
    ({"input": 3}, "input"),
    ({"input": []}, "input"),
    ({"input": ["hi"]}, "input[0]"),
    ({"input": [{"type": "reasoning", "content": [], "summary": []}]}, "input"),
    ({"input": [HI, {"type": "item_reference", "id": "msg_1"}]}, "input[1].type"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": 3}]}, "input[0].type"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
        "input[0].content[0].type",
    ),
    ({"input": [{**CALLED, "arguments": {}}]}, "input[0].arguments"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    ({"instructions": ["x"]}, "instructions"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": "x"}, "frequency_penalty"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"seed": 2**64}, "seed"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options.include_usage"),
    ({"text": "x"}, "text"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
    ({"tools": [{**TOOL, "name": "no name"}]}, "tools[0].name"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"include": ["message.output_text.logprobs"]}, "include[0]"),
    ({"truncation": "auto"}, "truncation"),
    ({"background": True}, "background"),
    ({"messages": [HI]}, "messages"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_object", "name": "x"}}}, "text.format.name"),
    ({"tools": [{**TOOL, "parameters": {"type": "array"}}]}, "tools[0].parameters"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": None}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "required", "text": {"format": FORMAT}}, "tool_choice"),
]
# Problems that depend on the model or on another field.
NO_MATTER_OF_SCHEMA: list[tuple[dict[str, Any], str]] = [
    ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0].image_url"),
    ({"input": [{**HI, "contnet": "good"}]}, "input[0].contnet"),
    ({"input": [{**THOUGHT, "encrypted_content": "x"}]}, "input[0].encrypted_content"),
    ({"input": [{**THOUGHT, "summary": [{"type": "summary_text", "text": "x"}]}]}, "input[0].summary"),
    ({"ignore_eos": True, "text": {"format": FORMAT}}, "ignore_eos"),
    ({"input": "x" * 1000}, "input"),
    (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "robot"}}}},
        "text.format.schema",
    ),
    ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
]


@pytest.mark.parametrize(("fields", "param"), [*BAD_FIELDS, *NO_MATTER_OF_SCHEMA])
def test_bad_field(server: RunningServer, fields: dict[str, Any], param: str) -> None:
    """Errors never name fields that only chat completions have."""
    response = post(server, **fields)
    assert_refused(response, param)
    message = response.json()["error"]["message"]
    for name in ("response_format", "function.", "max_tokens", "completion_tokens"):
        assert name not in message
    assert server.engine.requests == []


def test_the_schema_refuses_what_the_route_refuses() -> None:
    schema = Contract(ServerConfig(), ModelTable(["fake"])).request_validator("POST", "/v1/responses")
    body = {"model": "fake", "input": "hi"}
    assert [param for fields, param in BAD_FIELDS if schema.is_valid({**body, **fields})] == []
    assert all(schema.is_valid({**body, **fields}) for fields, _ in NO_MATTER_OF_SCHEMA)


def test_a_schema_of_a_tool_that_cannot_be_enforced(thinking: RunningServer) -> None:
    tool = {**TOOL, "parameters": {"type": "object", "properties": {"a": {"type": "robot"}}}}
    assert_refused(post(thinking, tools=[tool], tool_choice="required"), "tools[0].parameters")


def test_a_stream_that_fails_ends_with_the_failure(server: RunningServer) -> None:
    server.engine.fail_after_tokens = 2
    server.engine.failure = RuntimeError("secret")
    events = streamed(server, max_output_tokens=5)
    last = events[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert "request id" in last["response"]["error"]["message"]
    assert "secret" not in json.dumps(events)
    assert post(server, max_output_tokens=5).status_code == 500


def test_a_client_that_leaves_cancels_its_response(server: RunningServer) -> None:
    server.engine.seconds_per_event = 0.05
    body = {"model": "fake", "input": "hi", "stream": True}
    with server.http.stream("POST", "/v1/responses", json=body) as response:
        next(response.iter_lines())
    server.engine.wait_until_cancelled(1)


def test_openai_create(client: openai.OpenAI, thinking: RunningServer) -> None:
    thinking.engine.script = [*ids_of("<think>Hm</think>Hi"), EOS]
    response = client.responses.create(model="fake", input="hi", instructions="be kind")
    assert response.output_text == "Hi"
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    assert response.error is None


def test_openai_tool_round_trip(client: openai.OpenAI, thinking: RunningServer) -> None:
    """The client sends back its answer's items, as its README shows."""
    thinking.engine.script = [*ids_of(f"<think>Hm</think>Wait.{CALL}"), EOS]
    conversation: list[Any] = [{"role": "user", "content": "Weather in Oslo?"}]
    tools: Any = [{**TOOL, "strict": True}]
    first = client.responses.create(model="fake", input=conversation, tools=tools)
    conversation += first.output
    calls = [item for item in first.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == [{"city": "Oslo"}]
    conversation += [
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"} for call in calls
    ]
    thinking.engine.script = [*ids_of("Take a coat."), EOS]
    assert client.responses.create(model="fake", input=conversation, tools=tools).output_text == (
        "Take a coat."
    )


class Form(pydantic.BaseModel):
    a: int


def test_openai_parse(client: openai.OpenAI, thinking: RunningServer) -> None:
    thinking.engine.script = [*ids_of('{"a": 12}'), EOS]
    response = client.responses.parse(model="fake", input="hi", text_format=Form)
    assert response.output_parsed == Form(a=12)
    assert follows(thinking.engine.requests[0], '{"a": 12}')


def test_openai_stream(client: openai.OpenAI, thinking: RunningServer) -> None:
    thinking.engine.script = [*ids_of('{"a": 12}'), EOS]
    with client.responses.stream(model="fake", input="hi", text_format=Form) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(texts) == '{"a": 12}'
    assert final.output_parsed == Form(a=12)


def test_openai_validates_every_event(client: openai.OpenAI, thinking: RunningServer) -> None:
    thinking.engine.script = [*ids_of(f"<think>Hm</think>So: {CALL}"), EOS]
    tools: Any = [TOOL]
    with client.responses.create(model="fake", input="hi", tools=tools, stream=True) as stream:
        events = list(stream)
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
    for event in events:
        assert adapter.validate_python(event.to_dict()).type == event.type
    assert isinstance(events[-1], ResponseCompletedEvent)
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message", "function_call"]


def test_the_template_of_the_shared_server_is_the_chat_routes(server: RunningServer) -> None:
    """Both routes render the same prompt."""
    answered(server, max_output_tokens=1)
    server.chat(max_tokens=1)
    first, second = server.engine.requests
    assert first.prompt_ids == second.prompt_ids
    assert "<|im_start|>" in TEMPLATE
