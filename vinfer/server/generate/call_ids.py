"""The ids of earlier tool calls, as the chat template wants them. Pure functions, worker threads.

Mistral's templates refuse ids that do not have nine characters. Ids come from any server or client, and some
clients send none.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

# `tool_call.id|length != 9`, as in Mistral's templates.
_LENGTH_CHECK = re.compile(r"\bid['\"\]]*\s*\|\s*length\s*(?:!=|==|<|>)\s*([1-9][0-9]?)\b")
_ALPHABET = string.digits + string.ascii_letters


def checked_length(template_source: str) -> int | None:
    """Return the length that a template wants ids to have; None if it takes any."""
    found = _LENGTH_CHECK.search(template_source)
    return None if found is None else int(found[1])


def with_call_ids(messages: Sequence[Message], length: int | None) -> list[Message]:
    """Return messages whose calls all have ids, each of which its result repeats.

    Args:
        messages: as templates take them; they are not changed.
        length: the length that ids must have; None for any.
    """
    return [_renamed(message, length) for message in _completed(messages)]


def _completed(messages: Sequence[Message]) -> list[Message]:
    """Give the calls without an id that of the next result that answers no other call, or a new one."""
    completed: list[Message] = []
    for i, message in enumerate(messages):
        calls = message.get("tool_calls", ())
        if all(call["id"] is not None for call in calls):
            completed.append(message)
            continue
        known = {call["id"] for call in calls}
        results = iter([each for each in _results_after(messages, i) if each not in known])
        named = [
            call if call["id"] is not None else {**call, "id": next(results, f"call_{i}_{j}")}
            for j, call in enumerate(calls)
        ]
        completed.append({**message, "tool_calls": named})
    return completed


def _results_after(messages: Sequence[Message], position: int) -> list[str]:
    """Return the ids of the results directly after a message."""
    ids = []
    for message in messages[position + 1 :]:
        if message["role"] != "tool":
            break
        ids.append(message["tool_call_id"])
    return ids


def _renamed(message: Message, length: int | None) -> Message:
    if length is None:
        return message
    renamed = dict(message)
    if "tool_calls" in message:
        renamed["tool_calls"] = [
            {**call, "id": _of_length(call["id"], length)} for call in message["tool_calls"]
        ]
    if "tool_call_id" in message:
        renamed["tool_call_id"] = _of_length(message["tool_call_id"], length)
    return renamed


def _of_length(call_id: str, length: int) -> str:
    """Return an id as it is if it has the length, else one of letters and digits that depends only on it."""
    if len(call_id) == length and call_id.isascii() and call_id.isalnum():
        return call_id
    number = int.from_bytes(hashlib.sha512(call_id.encode()).digest())
    characters = []
    for _ in range(length):
        number, index = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[index])
    return "".join(characters)
