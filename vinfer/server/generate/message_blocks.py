"""The content blocks of a message of Anthropic's form as they grow, and the events that report it.

Event loop. Blocks are built from the pieces that `MessageReader` returns; whole and streamed answers go
through the same blocks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from vinfer.server.answers.bodies import MessageDelta
from vinfer.server.answers.message_types import (
    BlockDelta,
    BlockGain,
    BlockStart,
    MessageBlock,
    MessageEvent,
    MessageText,
    MessageThinking,
    MessageToolUse,
)
from vinfer.server.json_object import Json


class _Block:
    """One block; `index` is its index in the content."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.text = ""

    def written(self) -> MessageBlock:
        """Return the block so far."""
        raise NotImplementedError

    def begin(self) -> BlockStart:
        """Return the event of its beginning."""
        return {"type": "content_block_start", "index": self.index, "content_block": self.written()}

    def delta(self, text: str) -> BlockGain:
        """Return what it gains by more text."""
        raise NotImplementedError

    def grow(self, text: str) -> Iterator[MessageEvent]:
        """Append text and yield the event for it."""
        self.text += text
        yield self.event(self.delta(text))

    def end(self) -> Iterator[MessageEvent]:
        """Yield the events of its end."""
        yield {"type": "content_block_stop", "index": self.index}

    def event(self, delta: BlockGain) -> BlockDelta:
        return {"type": "content_block_delta", "index": self.index, "delta": delta}


class _Text(_Block):
    def written(self) -> MessageText:
        return {"type": "text", "text": self.text, "citations": None}

    def delta(self, text: str) -> BlockGain:
        return {"type": "text_delta", "text": text}


class _Thinking(_Block):
    """Reasoning. Clients need a signature to send it back; ours is a digest of the text."""

    def __init__(self, index: int, *, is_shown: bool) -> None:
        super().__init__(index)
        self._digest = hashlib.sha256()
        self._is_shown = is_shown
        self._signature = ""

    def written(self) -> MessageThinking:
        return {"type": "thinking", "thinking": self.text, "signature": self._signature}

    def delta(self, text: str) -> BlockGain:
        return {"type": "thinking_delta", "thinking": text}

    def grow(self, text: str) -> Iterator[MessageEvent]:
        self._digest.update(text.encode())
        if self._is_shown:
            yield from super().grow(text)

    def end(self) -> Iterator[MessageEvent]:
        self._signature = self._digest.hexdigest()
        yield self.event({"type": "signature_delta", "signature": self._signature})
        yield from super().end()


class _ToolUse(_Block):
    def __init__(self, index: int, call_id: str, name: str) -> None:
        super().__init__(index)
        self._call_id = call_id
        self._name = name

    def written(self) -> MessageToolUse:
        return {
            "type": "tool_use",
            "id": self._call_id,
            "name": self._name,
            "input": self._input(),
            "caller": {"type": "direct"},
        }

    def delta(self, text: str) -> BlockGain:
        return {"type": "input_json_delta", "partial_json": text}

    def _input(self) -> Json:
        """Return the arguments; empty until they are complete, and for a call that was cut off."""
        try:
            value = json.loads(self.text)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


class MessageBlocks:
    """The blocks of an answer, in order: reasoning, text and calls.

    Args:
        shows_thinking: the text of the reasoning is returned.
    """

    def __init__(self, *, shows_thinking: bool) -> None:
        self._blocks: list[_Block] = []
        self._shows_thinking = shows_thinking

    def written(self) -> list[MessageBlock]:
        """Return the blocks so far."""
        return [block.written() for block in self._blocks]

    def push(self, piece: MessageDelta) -> Iterator[MessageEvent]:
        """Add a piece of a message and yield its events."""
        for call in piece.get("tool_calls", ()):
            if "id" in call:
                yield from self._begin(_ToolUse(len(self._blocks), call["id"], call["function"]["name"]))
            yield from self._grow(call["function"]["arguments"])
        if piece.get("reasoning_content"):
            if not self._is_last(_Thinking):
                yield from self._begin(_Thinking(len(self._blocks), is_shown=self._shows_thinking))
            yield from self._grow(piece["reasoning_content"])
        if piece.get("content"):
            if not self._is_last(_Text):
                yield from self._begin(_Text(len(self._blocks)))
            yield from self._grow(piece["content"])

    def finish(self) -> Iterator[MessageEvent]:
        """Yield the events of the end."""
        if self._blocks:
            yield from self._blocks[-1].end()

    def _is_last(self, kind: type[_Block]) -> bool:
        return bool(self._blocks) and isinstance(self._blocks[-1], kind)

    def _begin(self, block: _Block) -> Iterator[MessageEvent]:
        yield from self.finish()
        self._blocks.append(block)
        yield block.begin()

    def _grow(self, text: str) -> Iterator[MessageEvent]:
        if text:
            yield from self._blocks[-1].grow(text)
