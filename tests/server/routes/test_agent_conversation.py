"""An agent's whole conversation over `/v1/messages`: ten turns in the shapes that Claude Code sends.

Long system blocks with cache marks that move, many tools, reasoning and calls sent back as they came, results
as text blocks, images and errors, and reminders between them. Each text that was ever sent must be in the
last prompt.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import EOS, FakeEngine, fake_images, ids_of, served_model, with_manifest
from messages_requests import folded, named_events
from PIL import Image
from running_server import RunningServer, run

from vinfer.config import ServerConfig
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer
from vinfer.text.tool_calls.formats import HERMES

NUM_IMAGE_TOKENS = 4
TEMPLATE = (
    '{#- <tool_call> "name" </think> #}{{ tools | tojson if tools }}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content or [] %}"
    "{% if part.type == 'image' %}<s>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking %}<think>{% endif %}"
)
EPHEMERAL = {"type": "ephemeral"}
REMINDER = "<system-reminder>\nThe to-do list has changed.\n</system-reminder>"
NAMES = ["Bash", "Read", "Edit", "Write", "Glob", "Grep", "Task", "TodoWrite", "NotebookEdit", "BashOutput"]
TOOLS: list[dict[str, Any]] = [
    {
        "name": name,
        "description": f"{name}: does what it says.\n\nUsage:\n- Give a path.",
        "input_schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "path": {"type": "string", "description": "The path"},
                "timeout": {"type": "number", "exclusiveMinimum": 0},
            },
            "required": ["path"],
            "additionalProperties": False,
        },
    }
    for name in [
        *NAMES,
        *(f"mcp__a_server_with_a_long_name__and_a_tool_of_some_length_{i:02}" for i in range(20)),
    ]
]
TOOLS[-1]["cache_control"] = EPHEMERAL
SYSTEM = [
    {"type": "text", "text": "x-billing-header: version=2.1.0;"},
    {"type": "text", "text": "You are an agent for the command line.", "cache_control": EPHEMERAL},
    {"type": "text", "text": "You help with software.\n" * 200, "cache_control": {**EPHEMERAL, "ttl": "1h"}},
]


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    """A model that reasons, calls tools and takes images."""
    engine, models = FakeEngine(max_model_len=65536), ModelTable(["fake"])
    model = served_model(engine, tokenizer, chat_template=TEMPLATE)
    models.serve(with_manifest(model, images=fake_images(NUM_IMAGE_TOKENS)))
    with run(ServerConfig(port=0), models, engine) as running:
        yield running


def png(color: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (9, 9), color).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def answer_of(turn: int) -> str:
    """Return what the model says in a turn: it thinks, speaks and calls tools, and only speaks at the end."""
    thought = f"thought-{turn}</think>\n\nsaid-{turn}"
    calls = [
        HERMES.written([(NAMES[(turn + i) % 3], f'{{"path": "path-{turn}-{i}"}}')])
        for i in range(0 if turn == 9 else 1 + turn % 2)
    ]
    return "\n".join([thought, *calls])


def result_of(call: dict[str, Any], turn: int, index: int) -> dict[str, Any]:
    """Return the result of a call: a text, text blocks, an image, an error or nothing."""
    said = f"result-{turn}-{index}"
    forms: list[dict[str, Any]] = [
        {"content": said},
        {"content": [{"type": "text", "text": said}, {"type": "text", "text": f"{said}-more"}]},
        {"content": [{"type": "text", "text": said}, png("red")]},
        {"content": f"<tool_use_error>{said}</tool_use_error>", "is_error": True},
        {},
    ]
    return {"type": "tool_result", "tool_use_id": call["id"], **forms[turn % len(forms)]}


def with_cache_mark(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose last block is marked; the mark moves with each turn."""
    *rest, last = messages
    *blocks, block = last["content"]
    return [*rest, {**last, "content": [*blocks, {**block, "cache_control": EPHEMERAL}]}]


def request(messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": "fake",
        "messages": with_cache_mark(messages),
        "system": SYSTEM,
        "tools": TOOLS,
        "metadata": {"user_id": "user_0_account__session_1"},
        "max_tokens": 32000,
        "thinking": {"type": "enabled", "budget_tokens": 31999},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "temperature": 1,
        "stream": True,
    }


def test_ten_turns(server: RunningServer, tokenizer: Tokenizer) -> None:
    headers = {
        "x-api-key": "unused",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
        "user-agent": "claude-cli/2.1.0 (external, cli)",
        "x-app": "cli",
    }
    asked = [{"type": "text", "text": REMINDER}, {"type": "text", "text": "asked"}, png("blue")]
    messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
    for turn in range(10):
        server.engine.requests.clear()
        server.engine.script = [*ids_of(answer_of(turn)), EOS]
        server.engine.tokens_per_event = 1 + turn
        response = server.http.post("/v1/messages?beta=true", json=request(messages), headers=headers)
        assert response.status_code == 200, response.text
        message = folded(named_events(response.text))
        assert message["stop_reason"] == ("end_turn" if turn == 9 else "tool_use")
        thought, text, *calls = message["content"]
        assert thought["thinking"] == f"thought-{turn}"
        assert text["text"].strip() == f"said-{turn}"
        assert [call["input"] for call in calls] == [{"path": f"path-{turn}-{i}"} for i in range(len(calls))]
        messages.append({"role": "assistant", "content": message["content"]})
        results = [result_of(call, turn, i) for i, call in enumerate(calls)]
        messages.append({"role": "user", "content": [*results, {"type": "text", "text": f"reminder-{turn}"}]})
    (last,) = server.engine.requests
    prompt = tokenizer.decode(last.prompt_ids, skip_special_tokens=False)
    for turn in range(9):
        num_calls = 1 + turn % 2
        wanted = [f"thought-{turn}", f"said-{turn}", f"reminder-{turn}"]
        wanted += [f"path-{turn}-{i}" for i in range(num_calls)]
        if turn % 5 != 4:
            wanted += [f"result-{turn}-{i}" for i in range(num_calls)]
        assert [text for text in wanted if text not in prompt] == []
    assert prompt.count("Error: <tool_use_error>result") == 3
    assert prompt.count("You help with software.") == 200
    # One image of the user's, and one per call of turns 2 and 7.
    assert len(last.images) == 1 + 1 + 2
    assert [image.num_tokens for image in last.images] == [NUM_IMAGE_TOKENS] * 4
    count = {key: request(messages[:-1])[key] for key in ("model", "system", "tools", "thinking")}
    counted = server.http.post(
        "/v1/messages/count_tokens", json={**count, "messages": messages[:-2]}, headers=headers
    )
    assert counted.json() == {"input_tokens": len(last.prompt_ids)}
