"""`/v1/responses`: images that functions return reach the model, in a user's message after the results."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import FakeEngine, fake_images, served_model, with_manifest
from PIL import Image
from refusals import assert_refused
from running_server import RunningServer, run

from vinfer.config import ServerConfig
from vinfer.server.fields.responses.body import RESPONSES
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer

NUM_IMAGE_TOKENS = 3
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content or [] %}{% if part.type == 'image' %}<s>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% for c in m.tool_calls or [] %} {{ c.function.name }}{% endfor %}]{% endfor %}"
)
QUESTION = {"role": "user", "content": "look"}
TEXT = {"type": "input_text", "text": "seen"}


def png(color: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (9, 9), color).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "input_image", "image_url": f"data:image/png;base64,{data}"}


def call(name: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": name, "name": name, "arguments": "{}"}


def output(name: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": name, "output": list(parts)}


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    engine, models = FakeEngine(max_model_len=4096), ModelTable(["fake"])
    model = served_model(engine, tokenizer, chat_template=TEMPLATE)
    models.serve(with_manifest(model, images=fake_images(NUM_IMAGE_TOKENS)))
    with run(ServerConfig(port=0), models, engine) as running:
        yield running


A, B = png("red"), png("blue")
THOUGHT = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
SPOKEN = {"role": "assistant", "content": "yes"}
LATER = {"role": "user", "content": [{"type": "input_text", "text": "and this"}, B]}


@pytest.mark.parametrize(
    ("items", "roles"),
    [
        ([call("f"), output("f", A)], "assistant tool user"),
        ([call("f"), output("f", TEXT, A), LATER], "assistant tool user"),
        ([call("f"), call("g"), output("f", A), output("g", B)], "assistant tool tool user"),
        ([call("f"), output("f", A), call("g"), output("g", B)], "assistant tool user assistant tool user"),
        ([call("f"), output("f", A), THOUGHT, SPOKEN, QUESTION], "assistant tool user assistant user"),
        ([call("f"), output("f", A), THOUGHT], "assistant tool user assistant"),
        (
            [call("f"), output("f", A), {"role": "developer", "content": "d"}, LATER],
            "assistant tool user developer user",
        ),
    ],
)
def test_images_follow_the_results(server: RunningServer, items: list[Any], roles: str) -> None:
    server.engine.reset()
    body = {"model": "fake", "input": [QUESTION, *items], "max_output_tokens": 3}
    messages = RESPONSES.parse_as_chat(body, "refuse")[1].messages
    assert " ".join(message.role for message in messages) == f"user {roles}"
    response = server.http.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    sent = [part for item in items for part in item.get("output", item.get("content", [])) if part in (A, B)]
    (request,) = server.engine.requests
    assert len(request.images) == len(sent)


def test_errors_name_the_output(server: RunningServer) -> None:
    bad = {"type": "input_image", "image_url": "data:image/png;base64,aGk="}
    response = server.http.post(
        "/v1/responses", json={"model": "fake", "input": [QUESTION, call("f"), output("f", TEXT, bad)]}
    )
    assert_refused(response, "input[2].output[1].image_url")
