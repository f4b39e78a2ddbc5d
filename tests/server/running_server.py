"""A real uvicorn server in a thread, and what tests need to use it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from contract import CheckedClient, Contract
from fake_engine import FakeEngine
from starlette.applications import Starlette

from vinfer.config import ServerConfig
from vinfer.server.admin.app import AdminActions, admin_app
from vinfer.server.admin.listener import AdminListener, bind_admin
from vinfer.server.api_keys import read_api_keys
from vinfer.server.app import create_app
from vinfer.server.http.serve import bind, run_server
from vinfer.server.model_table import ModelTable


@dataclasses.dataclass
class RunningServer:
    """A running server; `http` checks every answer against the server's own /openapi.json."""

    url: str
    port: int
    engine: FakeEngine
    models: ModelTable
    http: httpx.Client
    exit_codes: list[int]
    app: Starlette

    def chat(self, **fields: Any) -> httpx.Response:
        """Send a chat completion of one short message."""
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def complete(self, **fields: Any) -> httpx.Response:
        """Send a completion of the prompt [4, 5], whose letters begin at J (4 + 5 = 9)."""
        body = {"model": "fake", "prompt": [4, 5], "max_tokens": 4, **fields}
        return self.http.post("/v1/completions", json=body)


@contextlib.contextmanager
def run(
    config: ServerConfig,
    models: ModelTable,
    engine: FakeEngine,
    *,
    recover: Callable[[str], bool] = lambda name: False,
    lost_group: Callable[[], str | None] = lambda: None,
    actions: AdminActions | None = None,
) -> Iterator[RunningServer]:
    """Serve in a thread; drain at the end, and fail the test if the server does not stop."""
    app = create_app(config, models, read_api_keys(config.api_keys_file), compile_count=lambda: 0)
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    exit_codes: list[int] = []

    admin = None
    if config.admin_socket is not None and actions is not None:
        routes = admin_app(app.state.services, actions)
        admin = AdminListener(routes, config.admin_socket, bind_admin(config.admin_socket))

    def serve() -> None:
        code = run_server(app, config, sock, recover=recover, lost_group=lost_group, admin=admin)
        exit_codes.append(code)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    with CheckedClient(Contract(config, models), base_url=url, timeout=30) as http:
        yield RunningServer(url, port, engine, models, http, exit_codes, app)
    models.drain()
    thread.join(20)
    assert not thread.is_alive()


Start = Callable[..., contextlib.AbstractContextManager[RunningServer]]


def events(text: str) -> list[Any]:
    """Parse the events of a stream; the last one must be [DONE]."""
    assert text.endswith("data: [DONE]\n\n")
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what the server does after its client gets the answer."""
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()
