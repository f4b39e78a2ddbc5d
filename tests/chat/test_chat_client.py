"""What a server may answer, and what is made of it: pieces, figures, errors. The server is a fake."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from vinfer.chat.answer import Piece, Stats, ToolCall
from vinfer.chat.client import Client, Readiness
from vinfer.errors import AnswerError


@contextlib.contextmanager
def answering(body: str, *, status: int = 200, keys: list[str | None] | None = None) -> Iterator[str]:
    """Answer every request alike; yield the URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if keys is not None:
                keys.append(self.headers.get("Authorization"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def streamed(body: str) -> tuple[list[Piece], Stats]:
    stats = Stats()
    with answering(body) as url, contextlib.closing(Client(url)) as client:
        return list(client.stream({}, stats)), stats


def test_pieces_usage_and_comments() -> None:
    pieces, stats = streamed(
        ": ping\n\n"
        'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
        'data: {"choices": [{"delta": {"reasoning_content": "Hm."}}]}\n\n\n'
        'data: {"choices": [{"delta": {"content": "a"}}], "usage": null}\n\n'
        'data:{"choices": [{"delta": {"content": "b"}, "finish_reason": "stop"}]}\n\n'
        'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, '
        '"prompt_tokens_details": {"cached_tokens": 8}}}\n\n'
        "data: [DONE]\n\n"
    )
    assert pieces == [Piece(reasoning="Hm."), Piece("a"), Piece("b")]
    assert (stats.prompt_tokens, stats.completion_tokens, stats.cached_tokens) == (9, 3, 8)
    assert stats.finish_reason == "stop"
    assert stats.first_seconds is not None
    assert stats.last_seconds >= stats.first_seconds


def test_calls_come_whole_with_the_end() -> None:
    parts: list[dict[str, Any]] = [
        {"index": 1, "id": "b", "function": {"name": "g"}},
        {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
    ]
    pieces, stats = streamed(
        "".join(
            f'data: {{"choices": [{{"delta": {{"tool_calls": [{json.dumps(part)}]}}}}]}}\n\n'
            for part in parts
        )
        + 'data: {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}\n\n'
        "data: [DONE]\n\n"
    )
    assert pieces == [Piece(calls=(ToolCall("a", "f", '{"x": 1}'), ToolCall("b", "g", "")))]
    assert stats.finish_reason == "tool_calls"


def test_tokens_per_second_are_those_after_the_first() -> None:
    stats = Stats(first_seconds=1.0, last_seconds=3.0, completion_tokens=21)
    assert stats.tokens_per_second == 10
    assert Stats(first_seconds=1.0, last_seconds=1.0, completion_tokens=21).tokens_per_second is None
    assert Stats(first_seconds=1.0, last_seconds=2.0).tokens_per_second is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('data: {"error": {"message": "the engine failed"}}\n\n', "ended the answer: the engine failed"),
        ('data: {"error": "no"}\n\n', "ended the answer: no"),
        ("data: {\n\n", "is no event of a chat completion"),
        ("data: 1\n\n", "is no event"),
        ('data: {"choices": [{"delta": {"content": "a"}}]}\n\n', "broke the answer off"),
        ("<html>", "broke the answer off"),
    ],
)
def test_streams_that_go_wrong(body: str, message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        streamed(body)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, '{"error": {"message": "max_n is 8"}}', "answers 400: max_n is 8$"),
        (401, '{"error": {"message": "no key"}}', "answers 401: no key: set VINFER_API_KEY"),
        (502, "<html>" + "x" * 9999, r"answers 502: <html>x{494}$"),
        (503, "", "answers 503: no reason"),
        (200, "[]", "has no list of models"),
        (200, "<html>", "has no list of models"),
    ],
)
def test_answers_that_refuse(status: int, body: str, message: str) -> None:
    with (
        answering(body, status=status) as url,
        contextlib.closing(Client(url)) as client,
        pytest.raises(AnswerError, match=message),
    ):
        client.models()


def test_the_key_and_a_url_with_a_version() -> None:
    keys: list[str | None] = []
    with answering('{"data": [{"id": "m"}]}', keys=keys) as url:
        for client in (Client(f"{url}/v1/", "secret"), Client(url)):
            with contextlib.closing(client):
                assert (client.url, client.models()) == (url, ["m"])
    assert keys == ["Bearer secret", None]


def test_a_server_that_is_not_there() -> None:
    with contextlib.closing(Client("http://127.0.0.1:1")) as client:
        with pytest.raises(AnswerError, match=r"127.0.0.1:1 cannot be reached \(.*refused\): check the URL"):
            client.models()
        assert client.readiness() is None


def test_readiness() -> None:
    for body, readiness, words in (
        (
            '{"phase": "loading", "models": [{"phase": "x"}, {"phase": "loading", "expected_seconds": 9.4}]}',
            Readiness("loading", 9.4),
            "loading, about 9 s",
        ),
        ('{"phase": "loading", "models": [{"phase": "loading"}]}', Readiness("loading"), "loading"),
        ('{"phase": "draining", "models": []}', Readiness("draining"), "draining"),
        ("<html>", None, "None"),
        ("[]", None, "None"),
    ):
        with answering(body) as url, contextlib.closing(Client(url)) as client:
            assert client.readiness() == readiness
            assert str(client.readiness()) == words
