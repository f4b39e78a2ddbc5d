"""A `vinfer serve` process with a tiny real model, for the conformance cases.

The bundle is the tests' own `llama` with another tokenizer file and chat template: text begins with BOS, and
the template shows every part of a message. It is served under two names, one of them with its own defaults
and a tool call format that may begin an answer, and under a third one as a model that reasons. A fourth takes
images; its bundle is unchanged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from server_process import CACHE as E2E_CACHE
from server_process import started, tiny_environment
from tiny.checkpoints import BOS, CACHE, EOS
from tokenizers import Tokenizer, processors

from vinfer.bundle.verification import sha256_of
from vinfer.text.token_bytes import BYTE_OF_CHARACTER

T = TypeVar("T")
NUM_ATTEMPTS = 5

MODEL, OTHER, SEEING, THINKING = "tiny", "other", "seeing", "thinking"
OTHER_MAX_TOKENS = 3
MAX_MODEL_LEN = 512
BOS_ID, EOS_ID = 256, 257

# The comment in it selects the Hermes format.
CHAT_TEMPLATE = """\
{#- <tool_call> #}
{%- if enable_thinking is defined %}thinking={{ enable_thinking }}|{% endif %}
{%- if reasoning_effort is defined %}effort={{ reasoning_effort }}|{% endif %}
{%- for tool in tools or [] %}
{{- tool.type }} {{ tool.function.name }} {{ tool.function.description }} {# -#}
{{ tool.function.parameters | tojson }}|
{%- endfor %}
{%- for message in messages %}
{{- message.role }}: {{ message.content or "" }}
{%- for key in ["name", "tool_call_id", "reasoning_content"] if message[key] %} {{ key }}={{ message[key] }}
{%- endfor %}
{%- for call in message.tool_calls or [] %} {{ call.id }} {{ call.type }} {{ call.function.name }}
{{- call.function.arguments | tojson }}
{%- endfor %}|
{%- endfor %}
{%- if add_generation_prompt %}assistant: {% endif %}"""

YAML = """
models:
  - {{name: tiny, source: {bundle}, dtype: float32, sampling: {{temperature: 1, top_p: 1}}}}
  - {{name: other, source: {bundle}, dtype: float32, tool_parser: llama3_json,
     sampling: {{max_tokens: 3, temperature: 0}}}}
  - {{name: thinking, source: {bundle}, dtype: float32, reasoning_parser: think,
     sampling: {{temperature: 1, top_p: 1}}}}
  - {{name: seeing, source: {seeing}, dtype: float32, task: image-text}}
"""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One choice: token ids without the stop token, text, and the finish reason."""

    ids: list[int]
    text: str
    finish_reason: str | None


class Talk:
    """A client of the server that knows the tokenizer: a token is one byte, BOS, or EOS."""

    def __init__(self, http: httpx.Client, tokenizer: Tokenizer) -> None:
        self.http = http
        spelled = [tokenizer.id_to_token(token_id) for token_id in range(BOS_ID)]
        self._byte_of_id = [BYTE_OF_CHARACTER[character] for character in spelled]
        self._id_of_byte = {byte: token_id for token_id, byte in enumerate(self._byte_of_id)}

    def ids(self, text: str | bytes) -> list[int]:
        raw = text.encode() if isinstance(text, str) else text
        return [self._id_of_byte[byte] for byte in raw]

    def text(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        special = {BOS_ID: BOS, EOS_ID: EOS} if not skip_special_tokens else {BOS_ID: "", EOS_ID: ""}
        raw = b"".join(special[i].encode() if i in special else bytes((self._byte_of_id[i],)) for i in ids)
        return raw.decode("utf-8", "replace")

    def id_of_label(self, label: str) -> int | None:
        """Return the token with this spelling in logprobs; None for an id that the tokenizer lacks."""
        if label in (BOS, EOS):
            return BOS_ID if label == BOS else EOS_ID
        raw = bytes.fromhex(label[8:]) if label.startswith("bytes:\\x") else label.encode()
        return self._id_of_byte[raw[0]] if raw else None

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        document: dict[str, Any] = response.json()
        return document

    def refusal(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the error of a request that must be refused with a client error."""
        response = self.http.post(path, json=body)
        assert response.status_code == 400, response.text
        assert response.headers["x-should-retry"] == "false"
        error: dict[str, Any] = response.json()["error"]
        if path.startswith("/v1/messages"):
            # Anthropic's form has no field for the path, so messages begin with it.
            error["param"] = error["message"].split()[0].rstrip(":")
            error["code"] = error.pop("details", {}).get("error_code")
            error["request_id"] = response.json()["request_id"]
        assert set(error) == {"message", "type", "param", "code", "request_id"}
        assert error["type"] == "invalid_request_error"
        return error

    def events(self, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the events of a stream before [DONE]."""
        response = self.http.post(path, json={**body, "stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.text.split("\n\n") if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def named_events(self, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the events of a stream whose events are named by their types."""
        response = self.http.post(path, json={**body, "stream": True})
        assert response.status_code == 200, response.text
        blocks = [block for block in response.text.split("\n\n") if block.startswith("event: ")]
        events: list[dict[str, Any]] = []
        for name, data in (block.split("\n", 1) for block in blocks):
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
        return events


@contextlib.contextmanager
def serving(bundle: Path, seeing: Path, folder: Path) -> Iterator[Talk]:
    """Serve two bundles, the first from a changed copy in `folder`; fail if the server exits badly."""
    tokenizer = write_bundle(bundle, folder / "bundle")
    yaml = folder / "two.yaml"
    yaml.write_text(YAML.format(bundle=folder / "bundle", seeing=seeing))
    # The cache where the tests of the build half keep the code of the same programs.
    env = tiny_environment(VINFER_XLA_CACHE=str(CACHE / "test-code"), VINFER_CACHE_DIR=str(E2E_CACHE))
    with started(yaml, env=env) as server:
        server.wait_until_ready()
        yield Talk(server.http, tokenizer)
        assert server.metrics()["post_ready_compiles_total"] == 0
        assert server.terminate() == 0, server.log


def write_bundle(bundle: Path, copy: Path) -> Tokenizer:
    """Copy a bundle by hard links, except its tokenizer, template and manifest."""
    try:
        shutil.copytree(bundle, copy, copy_function=os.link)
    except shutil.Error:
        # Links do not work across file systems.
        shutil.rmtree(copy)
        shutil.copytree(bundle, copy)
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer" / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)]
    )
    manifest = json.loads((copy / "manifest.json").read_text())
    changed = {"tokenizer/tokenizer.json": tokenizer.to_str(), "tokenizer/chat_template.jinja": CHAT_TEMPLATE}
    for name, content in changed.items():
        replace(copy / name, content)
        assert name in manifest["files"]
        manifest["files"][name] = sha256_of(copy / name)
    replace(copy / "manifest.json", json.dumps(manifest))
    return tokenizer


def in_pieces(ask: Callable[[], list[T]], texts: Callable[[list[T]], Sequence[str]]) -> list[T]:
    """Return the events of a stream whose text came in several.

    A server that is kept from its processor may send a short answer at once, so it is asked a few times.
    """
    for _ in range(NUM_ATTEMPTS):
        events = ask()
        if len(texts(events)) > 1:
            return events
    raise AssertionError(f"{NUM_ATTEMPTS} answers came at once: {events}")


def replace(path: Path, content: str) -> None:
    """Replace a link with a new file."""
    path.unlink()
    path.write_text(content)
