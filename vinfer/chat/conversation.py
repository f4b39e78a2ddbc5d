"""The messages and settings of one conversation, as the body of a chat completion. No input and no output."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vinfer.chat.answer import ToolCall
from vinfer.errors import ConfigError

MAX_IMAGE_BYTES = 20 * 2**20
_SIGNATURES = {
    "image/png": b"\x89PNG",
    "image/jpeg": b"\xff\xd8\xff",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
}
# The client decides how an answer arrives, and the conversation what is asked.
_OURS = frozenset({"messages", "model", "n", "stream", "stream_options", "tool_choice", "tools"})


class Conversation:
    """What has been said, and with which fields the next answer is asked for."""

    def __init__(self, model: str = "", *, system: str | None = None) -> None:
        self.model = model
        self.system = system
        self.fields: dict[str, Any] = {}
        self.tools: Sequence[Mapping[str, Any]] = ()
        self._messages: list[dict[str, Any]] = []
        self._images: list[str] = []

    @property
    def num_messages(self) -> int:
        return len(self._messages)

    def attach(self, path: Path) -> None:
        """Send an image with the next question.

        Raises:
            ConfigError: it is not an image file, or larger than 20 MiB.
        """
        try:
            with path.expanduser().open("rb") as file:
                content = file.read(MAX_IMAGE_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"image {path}: {error.strerror}: give the path of an image file") from None
        if len(content) > MAX_IMAGE_BYTES:
            raise ConfigError(f"image {path} has more than {MAX_IMAGE_BYTES} bytes: make it smaller")
        kind = next((kind for kind, start in _SIGNATURES.items() if content.startswith(start)), None)
        if kind is None:
            kinds = ", ".join(name.removeprefix("image/") for name in _SIGNATURES)
            raise ConfigError(f"image {path} is none of {kinds}: convert it")
        self._images.append(f"data:{kind};base64,{base64.b64encode(content).decode()}")

    def ask(self, question: str) -> dict[str, Any]:
        """Add a question, with the images that wait for it, and return the request's body."""
        content: str | list[dict[str, Any]] = question
        if self._images:
            images = [{"type": "image_url", "image_url": {"url": url}} for url in self._images]
            content = [*images, {"type": "text", "text": question}]
            self._images = []
        self._messages.append({"role": "user", "content": content})
        return self._body()

    def _body(self) -> dict[str, Any]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        tools = {"tools": list(self.tools)} if self.tools else {}
        return {"model": self.model, "messages": [*system, *self._messages], **tools, **self.fields}

    def answer(self, text: str) -> None:
        """Add the answer to the last question; without any text, forget that question and its calls."""
        if text:
            self._messages.append({"role": "assistant", "content": text})
            return
        while self._messages.pop()["role"] != "user":
            pass

    def answer_calls(self, text: str, answers: Sequence[tuple[ToolCall, str]]) -> dict[str, Any]:
        """Add calls that the model asked for, with what came of them, and return the next request's body.

        Args:
            text: what the model said before it called.
        """
        calls = [call.as_message_part() for call, _ in answers]
        self._messages.append({"role": "assistant", "content": text or None, "tool_calls": calls})
        for call, content in answers:
            self._messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
        return self._body()

    def clear(self) -> None:
        """Forget what has been said; model, system prompt and fields stay."""
        self._messages = []
        self._images = []

    def set_field(self, name: str, text: str) -> None:
        """Set a field of the requests to a JSON value, or to a text that is no JSON; remove it if empty.

        Raises:
            ConfigError: the field is not for the user to set.
        """
        if not name.isidentifier() or name in _OURS:
            raise ConfigError(
                f"{name} is no field to set: give one of a chat completion, such as temperature"
            )
        if not text:
            self.fields.pop(name, None)
            return
        self.fields[name] = parse_value(text)


def parse_value(text: str) -> Any:
    """Return a JSON value, or a text that is no JSON as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text
