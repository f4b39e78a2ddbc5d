"""The output items of a response as they grow, and the events that report it.

Event loop. Items are built from the pieces that `MessageReader` returns; whole and streamed answers go
through the same items. An event takes its number when it is made, so each
must be sent before the next one is made.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import ClassVar

from vinfer.server.answers.bodies import MessageDelta
from vinfer.server.answers.response_types import (
    EventOfItem,
    EventOfPart,
    ItemEventType,
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    ResponseEvent,
)


class _Item:
    """One item.

    Args:
        index: its index in the output.
        numbers: of the response's events.
    """

    id_prefix: ClassVar[str]

    def __init__(self, index: int, numbers: Iterator[int]) -> None:
        self.id = f"{self.id_prefix}_{uuid.uuid4().hex}"
        self.index = index
        self.numbers = numbers
        self.text = ""
        self.status: ItemStatus = "in_progress"

    def written(self) -> OutputItem:
        """Return the item so far."""
        raise NotImplementedError

    def begin(self) -> Iterator[ResponseEvent]:
        """Yield the events of its beginning."""
        yield self._event("response.output_item.added")

    def delta(self, text: str) -> ResponseEvent:
        """Return the event of more text."""
        raise NotImplementedError

    def done(self) -> ResponseEvent:
        """Return the event of the whole text."""
        raise NotImplementedError

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """Yield the events of its end."""
        yield self.done()
        yield from self.close(status)

    def close(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """Yield the events after that of the whole text."""
        self.status = status
        yield self._event("response.output_item.done")

    def _event(self, kind: ItemEventType) -> ResponseEvent:
        number = next(self.numbers)
        return {"type": kind, "output_index": self.index, "item": self.written(), "sequence_number": number}

    def place(self) -> EventOfItem:
        """Return what the events of its text have in common."""
        return {"item_id": self.id, "output_index": self.index, "sequence_number": next(self.numbers)}


class _TextItem(_Item):
    """An item whose content is one part of text."""

    def part(self) -> OutputText | ReasoningText:
        """Return the part so far."""
        raise NotImplementedError

    @property
    def has_content(self) -> bool:
        """Whether its part has been announced."""
        return bool(self.text) or self.status != "in_progress"

    def begin(self) -> Iterator[ResponseEvent]:
        yield from super().begin()
        yield {"type": "response.content_part.added", **self.place_of_part(), "part": self.part()}

    def close(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        yield {"type": "response.content_part.done", **self.place_of_part(), "part": self.part()}
        yield from super().close(status)

    def place_of_part(self) -> EventOfPart:
        return {**self.place(), "content_index": 0}


class _Message(_TextItem):
    id_prefix = "msg"

    def part(self) -> OutputText:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}

    def delta(self, text: str) -> ResponseEvent:
        return {"type": "response.output_text.delta", **self.place_of_part(), "logprobs": [], "delta": text}

    def done(self) -> ResponseEvent:
        text = self.text
        return {"type": "response.output_text.done", **self.place_of_part(), "logprobs": [], "text": text}

    def written(self) -> OutputMessage:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": self.status,
            "content": [self.part()] if self.has_content else [],
        }


class _Reasoning(_TextItem):
    id_prefix = "rs"

    def part(self) -> ReasoningText:
        return {"type": "reasoning_text", "text": self.text}

    def delta(self, text: str) -> ResponseEvent:
        return {"type": "response.reasoning_text.delta", **self.place_of_part(), "delta": text}

    def done(self) -> ResponseEvent:
        return {"type": "response.reasoning_text.done", **self.place_of_part(), "text": self.text}

    def written(self) -> OutputReasoning:
        return {
            "id": self.id,
            "type": "reasoning",
            "status": self.status,
            "summary": [],
            "content": [self.part()] if self.has_content else [],
        }


class _Call(_Item):
    id_prefix = "fc"

    def __init__(self, index: int, numbers: Iterator[int], call_id: str, name: str) -> None:
        super().__init__(index, numbers)
        self._call_id = call_id
        self._name = name

    def written(self) -> OutputCall:
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": self.text,
        }

    def delta(self, text: str) -> ResponseEvent:
        return {"type": "response.function_call_arguments.delta", **self.place(), "delta": text}

    def done(self) -> ResponseEvent:
        return {
            "type": "response.function_call_arguments.done",
            **self.place(),
            "name": self._name,
            "arguments": self.text,
        }


class ResponseItems:
    """The items of an answer, in order: reasoning, messages and calls.

    Args:
        numbers: of the response's events.
    """

    def __init__(self, numbers: Iterator[int]) -> None:
        self._items: list[_Item] = []
        self._numbers = numbers

    @property
    def reasoning(self) -> str:
        """The whole text of the model's reasoning."""
        return "".join(item.text for item in self._items if isinstance(item, _Reasoning))

    def written(self) -> list[OutputItem]:
        """Return the items so far."""
        return [item.written() for item in self._items]

    def push(self, piece: MessageDelta) -> Iterator[ResponseEvent]:
        """Add a piece of a message and yield its events."""
        for call in piece.get("tool_calls", ()):
            function = call["function"]
            if "id" in call:
                yield from self._begin(_Call(len(self._items), self._numbers, call["id"], function["name"]))
            yield from self._grow(function["arguments"])
        yield from self._grow_text(_Reasoning, piece.get("reasoning_content", ""))
        yield from self._grow_text(_Message, piece.get("content", ""))

    def finish(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """Yield the events of the end; an answer without items becomes an empty message."""
        if not self._items:
            yield from self._begin(_Message(0, self._numbers))
        yield from self._items[-1].end(status)

    def _begin(self, item: _Item) -> Iterator[ResponseEvent]:
        if self._items:
            yield from self._items[-1].end("completed")
        self._items.append(item)
        yield from item.begin()

    def _grow_text(self, kind: type[_TextItem], text: str) -> Iterator[ResponseEvent]:
        if text and not (self._items and isinstance(self._items[-1], kind)):
            yield from self._begin(kind(len(self._items), self._numbers))
        yield from self._grow(text)

    def _grow(self, text: str) -> Iterator[ResponseEvent]:
        if text:
            self._items[-1].text += text
            yield self._items[-1].delta(text)
