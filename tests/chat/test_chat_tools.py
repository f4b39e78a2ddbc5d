"""Functions as tools: their schemas, their calls, and a conversation in which the model asks for them."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from vinfer.chat.answer import ToolCall
from vinfer.chat.client import Client
from vinfer.chat.conversation import Conversation
from vinfer.chat.session import Session
from vinfer.chat.tools import answer_of, read_tools
from vinfer.errors import ConfigError

FILE = '''
from __future__ import annotations
from json import dumps

LOG = []

def add(a: int, b: int = 2) -> int:
    """Return a + b."""
    LOG.append((a, b))
    return a + b

def fail(reason):
    raise ValueError(reason)

def _hidden() -> None: ...
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tools.py"
    path.write_text(FILE)
    return path


def test_a_function_is_described_by_its_signature(file: Path) -> None:
    tools = read_tools(file)
    assert sorted(tools) == ["add", "fail"]
    function = tools["add"].as_field()["function"]
    assert (function["name"], function["description"]) == ("add", "Return a + b.")
    properties = function["parameters"]["properties"]
    assert (properties["a"]["type"], properties["b"]["default"]) == ("integer", 2)
    assert function["parameters"]["required"] == ["a"]


@pytest.mark.parametrize(
    ("name", "arguments", "allows", "told"),
    [
        ("add", '{"a": 1}', True, "3"),
        ("add", '{"a": 1, "b": 9}', True, "10"),
        ("add", '{"a": 1}', False, "error: the user does not allow this call"),
        ("add", "{", True, "error: the arguments are wrong: "),
        ("add", '{"b": 1}', True, "error: the arguments are wrong: a: Field required"),
        ("fail", '{"reason": "no"}', True, "error: ValueError: no"),
        ("none", "{}", True, "error: there is no tool none; the tools are add, fail"),
    ],
)
def test_what_the_model_is_told(file: Path, name: str, arguments: str, allows: bool, told: str) -> None:
    asked: list[str] = []
    answer = answer_of(
        ToolCall("c", name, arguments), read_tools(file), lambda text: asked.append(text) or allows
    )
    assert answer.startswith(told)
    assert asked == ([] if name == "none" else [f"{name}({arguments})"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such Python file"),
        ("x = 1\n", "it has no function"),
        ("def f(:\n", "SyntaxError"),
        ("raise SystemError('no')\n", "SystemError: no: correct the file"),
        ("def f(x: Unknown): ...\n", "NameError"),
    ],
)
def test_files_without_tools_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "t.py").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_tools(tmp_path / "t.py")


@contextlib.contextmanager
def scripted(answers: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Answer each request with the next delta; yield the URL and the bodies that arrive."""
    bodies: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            event = {"choices": [{"delta": answers[len(bodies) - 1], "finish_reason": "stop"}]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()
            thread.join()


def calling(*arguments: str) -> dict[str, Any]:
    """Return a delta with one call of `add` for each of the arguments."""
    functions = [{"name": "add", "arguments": text} for text in arguments]
    return {"tool_calls": [{"index": i, "id": f"c{i}", "function": each} for i, each in enumerate(functions)]}


def talk(url: str, lines: Sequence[Any]) -> tuple[str, str, Conversation]:
    """Type lines, of which an exception is raised instead; return the answers, the notes and the rest."""
    out, notes, rest = io.StringIO(), io.StringIO(), iter(lines)

    def read_line(_: str) -> str:
        line = next(rest, EOFError())
        if isinstance(line, BaseException):
            raise line
        return str(line)

    conversation = Conversation("m")
    with contextlib.closing(Client(url)) as client:
        Session(client, conversation, out=out, notes=notes, read_line=read_line).run()
    assert next(rest, None) is None
    return out.getvalue(), notes.getvalue(), conversation


def test_calls_are_made_as_the_user_allows(file: Path) -> None:
    deltas = [calling('{"a": 1}', '{"a": 5}'), calling('{"a": 7}'), {"content": "Done."}]
    with scripted(deltas) as (url, bodies):
        out, notes, _ = talk(url, [f"/tools {file}", "Add.", "y", "no", "yes"])
    assert out == "Done.\n"
    assert "tools: add, fail" in notes
    assert notes.count("? [y/N]") == 3
    assert [tool["function"]["name"] for tool in bodies[0]["tools"]] == ["add", "fail"]
    added = bodies[2]["messages"][1:]
    assert [message["role"] for message in added] == ["assistant", "tool", "tool", "assistant", "tool"]
    assert [call["function"]["arguments"] for call in added[0]["tool_calls"]] == ['{"a": 1}', '{"a": 5}']
    assert [message.get("content") for message in added] == [
        *(None, "3", "error: the user does not allow this call", None, "9")
    ]
    assert [message["tool_call_id"] for message in added if message["role"] == "tool"] == ["c0", "c1", "c0"]


def test_ctrl_c_at_a_call_forgets_the_question(file: Path) -> None:
    with scripted([calling('{"a": 1}'), {"content": "Hi."}]) as (url, bodies):
        out, notes, _ = talk(url, [f"/tools {file}", "Add.", KeyboardInterrupt(), "/tools", "Hello."])
    assert out == "Hi.\n"
    assert "stopped" in notes
    assert bodies[1]["messages"] == [{"role": "user", "content": "Hello."}]
    assert "tools" not in bodies[1]
