"""A running server as the reports use it: plain requests, and events of streams."""

from __future__ import annotations

import dataclasses
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx

MODEL = "smollm2"
TIMEOUT_SECONDS = 300
GREEDY: dict[str, Any] = {"temperature": 0}
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@dataclasses.dataclass(frozen=True)
class Server:
    """A server at `url`, which does not include `/v1`."""

    url: str

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Send a body as JSON, with the model."""
        return httpx.post(self.url + path, json={"model": MODEL, **body}, timeout=TIMEOUT_SECONDS)

    def chat(self, **body: Any) -> httpx.Response:
        """Send a greedy chat completion."""
        return self.post("/v1/chat/completions", **{**GREEDY, "messages": QUESTION, "max_tokens": 24, **body})

    def complete(self, **body: Any) -> httpx.Response:
        """Send a greedy completion."""
        return self.post("/v1/completions", **{**GREEDY, "prompt": "Hello", "max_tokens": 4, **body})

    def respond(self, **body: Any) -> httpx.Response:
        """Send a greedy request to the Responses API."""
        return self.post("/v1/responses", **{**GREEDY, "input": "hi", "max_output_tokens": 8, **body})

    def message(self, path: str = "/v1/messages", **body: Any) -> httpx.Response:
        """Send a greedy request to Anthropic's Messages API."""
        return self.post(path, **{**GREEDY, "messages": QUESTION, "max_tokens": 24, **body})

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=TIMEOUT_SECONDS, **options)

    def raw(self, head: str, body: bytes) -> bytes:
        """Send a request as it is written, and return what comes until the server closes the connection."""
        address = urlsplit(self.url)
        with socket.create_connection((address.hostname, address.port), TIMEOUT_SECONDS) as connection:
            length = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            connection.sendall((head + length).encode() + body)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        return answer


def events(response: httpx.Response) -> list[Any]:
    """Return the events of a stream, without its end."""
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def answered(response: httpx.Response) -> Any:
    """Return the body of a 200."""
    assert response.status_code == 200, response.text
    return response.json()


def choice(response: httpx.Response) -> Any:
    """Return the first choice of a 200."""
    return answered(response)["choices"][0]


def refused(response: httpx.Response, *words: str) -> str:
    """Return the message of a 400, which has the words."""
    assert response.status_code == 400, f"{response.status_code}: {response.text[:200]}"
    message = str(response.json()["error"]["message"])
    for word in words:
        assert word in message, f"no {word!r} in {message!r}"
    return f"400: {message}"
