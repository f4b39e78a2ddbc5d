"""Tools, requests with them, and their expected answers, for every test of tool calls."""

from __future__ import annotations

import dataclasses
from typing import Any

from fake_engine import EOS, FakeEngine, ids_of, served_model
from running_server import RunningServer, events, run

from vinfer.config import ServerConfig
from vinfer.engine.request import Request
from vinfer.server.model_table import ModelTable
from vinfer.text.answer_form import AnswerForm
from vinfer.text.tokenizer import Tokenizer
from vinfer.text.tool_calls.formats import MISTRAL


def follows(request: Request, text: str) -> bool:
    """Return whether the request's grammar accepts a text and may end there."""
    matcher = request.grammar
    assert matcher is not None
    for token in [*ids_of(text), EOS]:
        if not matcher.mask[token // 8] >> token % 8 & 1:
            return False
        if token != EOS:
            matcher.advance([token])
    return True


def function(name: str, parameters: Any = None, **fields: Any) -> dict[str, Any]:
    schema = {} if parameters is None else {"parameters": parameters}
    return {"type": "function", "function": {"name": name, **schema, **fields}}


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


WEATHER = function("get_weather", CITY, description="Weather of a city")


TIME = function("get_time")


TOOLS = [WEATHER, TIME]


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def prompt_text(server: RunningServer, tokenizer: Tokenizer) -> str:
    (request,) = server.engine.requests
    return tokenizer.decode(request.prompt_ids, skip_special_tokens=False)


def say(server: RunningServer, text: str, **fields: Any) -> dict[str, Any]:
    """Make the model say something, whole and streamed; both must be the same choice."""
    server.engine.script = [*ids_of(text), EOS]
    body = {"tools": TOOLS, "max_tokens": 500, **fields}
    response = server.chat(**body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    for tokens_per_event in (1, 7, 500):
        server.engine.tokens_per_event = tokens_per_event
        chunks = events(server.chat(**body, stream=True).text)
        assert without_ids(folded(chunks)) == without_ids(choice)
    return choice


def folded(chunks: list[Any]) -> dict[str, Any]:
    """Fold a stream as clients do."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: list[dict[str, Any]] = []
    finish_reason = None
    for chunk in chunks:
        (choice,) = chunk["choices"]
        finish_reason = choice["finish_reason"] or finish_reason
        message["content"] += choice["delta"].get("content") or ""
        for delta in choice["delta"].get("tool_calls", ()):
            if delta["index"] == len(calls):
                assert delta["function"]["arguments"] == ""
                calls.append({key: delta[key] for key in ("id", "type", "function")})
            else:
                assert set(delta) == {"index", "function"}
                calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    message |= {"refusal": None, "annotations": []}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}


def without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    message = dict(choice["message"])
    if "tool_calls" in message:
        ids = [call["id"] for call in message["tool_calls"]]
        assert len(set(ids)) == len(ids)
        assert all(call_id.startswith("call_") for call_id in ids)
        message["tool_calls"] = [call["function"] for call in message["tool_calls"]]
    return {**choice, "message": message}


# `[TOOL_CALLS]` is a control token of Mistral's vocabularies; this one stands for it.
WITH_CONTROL_TOKEN = dataclasses.replace(MISTRAL, opening="<|im_start|>")


def serving(tokenizer: Tokenizer, form: AnswerForm) -> Any:
    engine, models = FakeEngine(max_model_len=2048), ModelTable(["fake"])
    models.serve(dataclasses.replace(served_model(engine, tokenizer), answer_form=form))
    return run(ServerConfig(port=0), models, engine)
