"""A chat template that never ends gives its own requests a 400 and does not affect any others."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time

import pytest
from fake_engine import FakeEngine, served_model
from running_server import run

from vinfer.config import ServerConfig
from vinfer.server.model_table import ModelTable
from vinfer.text.chat_template import ChatTemplate
from vinfer.text.tokenizer import Tokenizer

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.alone
def test_workers_and_event_loop_come_back(tokenizer: Tokenizer) -> None:
    engine, models = FakeEngine(), ModelTable(["fake"])
    hostile = ChatTemplate(
        "{% if messages[0].content == 'bomb' %}" + LOOPS + "{% endif %}{{ messages[0].content }}",
        tokenizer.special_tokens,
        control_tokens=tokenizer.control_tokens,
        max_render_seconds=0.5,
    )
    models.serve(dataclasses.replace(served_model(engine, tokenizer), chat_template=hostile))
    bomb = [{"role": "user", "content": "bomb"}]
    with (
        run(ServerConfig(port=0, max_workers=2), models, engine) as server,
        concurrent.futures.ThreadPoolExecutor(4) as clients,
    ):
        answers = [clients.submit(server.chat, messages=bomb) for _ in range(4)]
        num_asked = 0
        while not all(answer.done() for answer in answers):
            started = time.monotonic()
            assert server.http.get("/liveness").status_code == 200
            assert time.monotonic() - started < 1
            num_asked += 1
            time.sleep(0.05)
        assert num_asked > 3
        for answer in answers:
            assert answer.result().status_code == 400
            error = answer.result().json()["error"]
            assert error["param"] == "messages"
            assert "takes longer than 0.5 seconds" in error["message"]
        # All workers are free again.
        assert all(server.chat().status_code == 200 for _ in range(3))
