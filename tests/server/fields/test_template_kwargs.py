"""`chat_template_kwargs` and `reasoning_effort`: what config and template allow, and no more."""

from __future__ import annotations

import dataclasses
from typing import Any

import httpx
import pytest
from fake_engine import BOS, FakeEngine, ids_of, served_model
from running_server import RunningServer, run

from vinfer.config import ServerConfig
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer

PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


def tail(server: RunningServer, path: str, fields: dict[str, Any]) -> list[int]:
    """Return what the fields of a request add to its prompt."""
    server.engine.reset()
    prompts = []
    for extra in ({}, fields):
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], **extra}
        response = server.http.post(path, json=body)
        assert response.status_code == 200, response.text
        if path == "/tokenize":
            prompts.append(response.json()["tokens"])
        else:
            prompts.append(list(server.engine.requests[-1].prompt_ids))
    plain, changed = prompts
    assert changed[: len(plain)] == plain
    added: list[int] = changed[len(plain) :]
    return added


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize(
    ("fields", "added"),
    [
        ({"chat_template_kwargs": {}}, ""),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "T"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, ""),
        ({"chat_template_kwargs": {"style": "terse", "depth": 3}}, "terse3"),
        ({"reasoning_effort": "high"}, "high"),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"style": "s"}}, "slow"),
        # Text that spells out a control token stays text here too.
        ({"chat_template_kwargs": {"style": "<s>"}}, "<s>"),
    ],
)
def test_effect(server: RunningServer, path: str, fields: dict[str, Any], added: str) -> None:
    found = tail(server, path, fields)
    assert found == ids_of(added)
    assert BOS not in found


def refusal(response: httpx.Response) -> tuple[str, str]:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["param"], error["message"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("tokenize", True, "requests may not set"),
        ("messages", "x", "requests may not set"),
        ("tools", "x", "requests may not set"),
        ("add_generation_prompt", False, "requests may not set"),
        ("bos_token", "x", "requests may not set"),
        ("reasoning_effort", "low", "requests may not set"),
        ("raise_exception", "x", "requests may not set"),
        ("Enable_Thinking", True, "requests may not set"),
        ("enable_thinking", 1, "is 1; must be of type boolean"),
        ("enable_thinking", "yes", "must be of type boolean"),
        ("style", True, "must be of type string"),
        ("style", 3, "must be of type string"),
        ("depth", True, "must be of type integer"),
        ("depth", 1.5, "must be of type integer"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_refused(server: RunningServer, path: str, name: str, value: Any, says: str) -> None:
    body = {
        "model": "fake",
        "messages": [{"role": "user", "content": "hi"}],
        "chat_template_kwargs": {name: value},
    }
    param, message = refusal(server.http.post(path, json=body))
    assert param == f"chat_template_kwargs.{name}"
    assert says in message
    assert server.engine.requests == []


def test_a_template_that_does_not_read_them(tokenizer: Tokenizer) -> None:
    """What would be ignored is refused, and the capabilities announce that."""
    engine, models = FakeEngine(), ModelTable(["fake"])
    models.serve(served_model(engine, tokenizer, chat_template=PLAIN + "{{ depth }}"))
    with run(ServerConfig(port=0), models, engine) as server:
        (model,) = server.http.get("/v1/capabilities").json()["models"]
        assert model["chat_template_kwargs"] == {"depth": "integer"}
        assert model["reasoning_effort"] is False
        param, message = refusal(server.chat(chat_template_kwargs={"enable_thinking": True}))
        assert param == "chat_template_kwargs.enable_thinking"
        assert "not read by the chat template of model fake" in message
        param, message = refusal(server.chat(reasoning_effort="low"))
        assert (param, "not read by the chat template" in message) == ("reasoning_effort", True)
        assert server.chat(chat_template_kwargs={"depth": 2}).status_code == 200


def test_capabilities_name_them(server: RunningServer) -> None:
    (model,) = server.http.get("/v1/capabilities").json()["models"]
    expected = {"enable_thinking": "boolean", "style": "string", "depth": "integer"}
    assert model["chat_template_kwargs"] == expected
    assert model["reasoning_effort"] is True


def test_the_config_decides(tokenizer: Tokenizer) -> None:
    engine, models = FakeEngine(), ModelTable(["fake"])
    models.serve(
        dataclasses.replace(served_model(engine, tokenizer), chat_template_kwargs={"depth": "number"})
    )
    with run(ServerConfig(port=0), models, engine) as server:
        assert server.chat(chat_template_kwargs={"depth": 1.5}).status_code == 200
        assert refusal(server.chat(chat_template_kwargs={"style": "s"}))[0] == "chat_template_kwargs.style"
