"""The output items of a response as they grow, and the events that report it.

Event loop. Items are built from the pieces that `MessageReader` returns; whole and streamed answers go
through the same items. Events have no sequence numbers yet.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import ClassVar

from vinfer.server.json_object import Json


class _Item:
    """One item.

    Args:
        index: its index in the output.
    """

    id_prefix: ClassVar[str]

    def __init__(self, index: int) -> None:
        self.id = f"{self.id_prefix}_{uuid.uuid4().hex}"
        self.index = index
        self.text = ""
        self.status = "in_progress"

    def written(self) -> Json:
        """Return the item so far."""
        raise NotImplementedError

    def begin(self) -> Iterator[Json]:
        """Yield the events of its beginning."""
        yield {"type": "response.output_item.added", "output_index": self.index, "item": self.written()}

    def grow(self, text: str) -> Json:
        """Append text and return the event for it."""
        self.text += text
        return {**self.event("delta"), "delta": text}

    def event(self, what: str) -> Json:
        """Return the common fields of an event of its text."""
        raise NotImplementedError

    def end(self, status: str) -> Iterator[Json]:
        """Yield the events of its end."""
        self.status = status
        yield {"type": "response.output_item.done", "output_index": self.index, "item": self.written()}


class _TextItem(_Item):
    """An item whose content is one part of text."""

    event_type: ClassVar[str]

    def part(self) -> Json:
        """Return the part so far."""
        raise NotImplementedError

    def content(self) -> list[Json]:
        """Return the content; it is empty until its part has been announced."""
        return [self.part()] if self.text or self.status != "in_progress" else []

    def begin(self) -> Iterator[Json]:
        yield from super().begin()
        yield {"type": "response.content_part.added", **self._place(), "part": self.part()}

    def event(self, what: str) -> Json:
        return {"type": f"{self.event_type}.{what}", **self._place()}

    def end(self, status: str) -> Iterator[Json]:
        yield {**self.event("done"), "text": self.text}
        yield {"type": "response.content_part.done", **self._place(), "part": self.part()}
        yield from super().end(status)

    def _place(self) -> Json:
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}


class _Message(_TextItem):
    id_prefix = "msg"
    event_type = "response.output_text"

    def part(self) -> Json:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}

    def event(self, what: str) -> Json:
        return {**super().event(what), "logprobs": []}

    def written(self) -> Json:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": self.status,
            "content": self.content(),
        }


class _Reasoning(_TextItem):
    id_prefix = "rs"
    event_type = "response.reasoning_text"

    def part(self) -> Json:
        return {"type": "reasoning_text", "text": self.text}

    def written(self) -> Json:
        return {
            "id": self.id,
            "type": "reasoning",
            "status": self.status,
            "summary": [],
            "content": self.content(),
        }


class _Call(_Item):
    id_prefix = "fc"

    def __init__(self, index: int, call_id: str, name: str) -> None:
        super().__init__(index)
        self._call_id = call_id
        self._name = name

    def written(self) -> Json:
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": self.text,
        }

    def event(self, what: str) -> Json:
        return {
            "type": f"response.function_call_arguments.{what}",
            "item_id": self.id,
            "output_index": self.index,
        }

    def end(self, status: str) -> Iterator[Json]:
        yield {**self.event("done"), "name": self._name, "arguments": self.text}
        yield from super().end(status)


class ResponseItems:
    """The items of an answer, in order: reasoning, messages and calls."""

    def __init__(self) -> None:
        self._items: list[_Item] = []

    @property
    def reasoning(self) -> str:
        """The whole text of the model's reasoning."""
        return "".join(item.text for item in self._items if isinstance(item, _Reasoning))

    def written(self) -> list[Json]:
        """Return the items so far."""
        return [item.written() for item in self._items]

    def push(self, piece: Json) -> Iterator[Json]:
        """Add a piece of a message, in the form of a chat completion's delta, and yield its events."""
        for call in piece.get("tool_calls", ()):
            if "id" in call:
                yield from self._begin(_Call(len(self._items), call["id"], call["function"]["name"]))
            yield from self._grow(call["function"]["arguments"])
        for key, kind in (("reasoning_content", _Reasoning), ("content", _Message)):
            if piece.get(key):
                if not self._items or not isinstance(self._items[-1], kind):
                    yield from self._begin(kind(len(self._items)))
                yield from self._grow(piece[key])

    def finish(self, status: str) -> Iterator[Json]:
        """Yield the events of the end; an answer without items becomes an empty message."""
        if not self._items:
            yield from self._begin(_Message(0))
        yield from self._items[-1].end(status)

    def _begin(self, item: _Item) -> Iterator[Json]:
        if self._items:
            yield from self._items[-1].end("completed")
        self._items.append(item)
        yield from item.begin()

    def _grow(self, text: str) -> Iterator[Json]:
        if text:
            yield self._items[-1].grow(text)
