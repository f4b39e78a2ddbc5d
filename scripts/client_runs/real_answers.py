"""Real answers of every route, by the name of their schema in /openapi.json."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from client_runs.questions import MESSAGES, WEATHER_MESSAGES, WEATHER_TOOL
from client_runs.raw import MODEL, TIMEOUT_SECONDS, RawServer

_CHAT = "/v1/chat/completions"
_FEW: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
_GETS = {
    "TokenizerInfo": "/tokenizer_info",
    "ModelList": "/v1/models",
    "ModelInfo": f"/v1/models/{MODEL}",
    "Capabilities": "/v1/capabilities",
    "Liveness": "/liveness",
    "Readiness": "/readiness",
    "Health": "/health",
    "Version": "/version",
    "Welcome": "/",
}


def real_answers(raw: RawServer) -> dict[str, list[Any]]:
    """Ask every route, with the fields that add something to an answer."""
    tools: dict[str, Any] = {"messages": WEATHER_MESSAGES, "tools": [WEATHER_TOOL], "max_tokens": 64}
    flat_tool = {"type": "function", **WEATHER_TOOL["function"]}
    scored = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True, "n": 2}
    streamed: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    return {
        "ChatCompletion": [
            raw.post(_CHAT, messages=MESSAGES, **_FEW),
            raw.post(_CHAT, messages=MESSAGES, **scored, **_FEW),
            raw.post(_CHAT, **tools, tool_choice="required"),
        ],
        "ChatChunk": [
            *_events(raw, _CHAT, messages=MESSAGES, **scored, **streamed, **_FEW),
            *_events(raw, _CHAT, **tools, **streamed, tool_choice="required"),
        ],
        "Completion": [
            raw.post("/v1/completions", prompt="a", **_FEW),
            raw.post("/v1/completions", prompt="a b", echo=True, logprobs=1, return_token_ids=True, **_FEW),
        ],
        "CompletionChunk": _events(raw, "/v1/completions", prompt="a", logprobs=1, **streamed, **_FEW),
        "Response": [
            raw.post("/v1/responses", input="hi", max_output_tokens=4),
            raw.post("/v1/responses", input="hi", tools=[flat_tool], tool_choice="required"),
        ],
        "EmbeddingList": [
            raw.post("/v1/embeddings", input="a", encoding_format=form) for form in ("float", "base64")
        ],
        "TokenCount": [raw.post("/v1/count_tokens", conversation="a")],
        "Tokenized": [
            raw.post("/tokenize", prompt="a"),
            raw.post("/tokenize", messages=MESSAGES, return_token_strs=True),
        ],
        "Detokenized": [raw.post("/detokenize", tokens=[4])],
        "ErrorBody": [_error(raw)],
        **{name: [raw.get(path)] for name, path in _GETS.items()},
    }


def _events(raw: RawServer, path: str, **body: Any) -> list[Any]:
    request = urllib.request.Request(
        raw.url + path,
        data=json.dumps({"model": MODEL, **body}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        text = response.read().decode()
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in data if line != "[DONE]"]


def _error(raw: RawServer) -> Any:
    try:
        raw.post(_CHAT, messages=MESSAGES, temperature=3)
    except urllib.error.HTTPError as error:
        return json.load(error)
    raise AssertionError("temperature 3 was accepted")
