"""Converts message content to the kind that a chat template understands: a string or a list of parts.

Runs on worker threads. Knows the shape of OpenAI messages, not how templates are rendered.

A template is probed, not parsed: when it is loaded, a message of each role is rendered with its content as a
string and as two text parts, and the texts must appear. After that
- a list of parts is passed unchanged to a template that takes parts for that role;
- otherwise its text parts are joined by a newline, as vLLM does;
- a string is passed unchanged, or as one text part to a template that shows only parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vinfer.errors import RequestError

_WORD = "xprobex"
_WORDS = ("xprobex", "yprobey")
_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True, slots=True)
class ContentFormats:
    """The content that a template takes. A role that cannot be rendered alone counts as taking only strings.

    Attributes:
        part_roles: roles whose content may be a list of parts.
        only_part_roles: those of them whose content must be a list of parts.
    """

    part_roles: frozenset[str]
    only_part_roles: frozenset[str]

    @classmethod
    def probe(cls, render: Callable[[Mapping[str, Any]], str]) -> ContentFormats:
        """Probe a template by rendering; `render` takes its variables and may raise RequestError."""

        def shows(role: str, content: Any) -> bool:
            message = {"role": role, "content": content}
            greeting = {
                "role": "user",
                "content": [{"type": "text", "text": "a"}] if user_needs_parts else "a",
            }
            before = [] if role in ("system", "developer", "user") else [greeting]
            after = [greeting] if role in ("system", "developer") else []
            given = {"tools": None, "documents": None, "add_generation_prompt": True}
            try:
                rendered = render({**given, "messages": [*before, message, *after]})
            except RequestError:
                return False
            # A template that only takes strings may print the list itself, or take one part of it.
            is_shown = all(word in rendered for word in ((_WORD,) if isinstance(content, str) else _WORDS))
            return is_shown and "'type'" not in rendered and '"type"' not in rendered

        parts = [{"type": "text", "text": word} for word in _WORDS]
        user_needs_parts = False
        user_needs_parts = shows("user", parts) and not shows("user", _WORD)
        part_roles = frozenset(role for role in _ROLES if shows(role, parts))
        return cls(part_roles, frozenset(role for role in part_roles if not shows(role, _WORD)))

    def apply(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages with each content in the form that the template takes.

        Raises:
            RequestError: a part is not text, and the template takes only strings.
        """
        return [
            {**message, "content": self._content(index, message)} if "content" in message else message
            for index, message in enumerate(messages)
        ]

    def _content(self, index: int, message: dict[str, Any]) -> Any:
        role, content = message.get("role"), message["content"]
        if isinstance(content, str) and role in self.only_part_roles:
            return [{"type": "text", "text": content}]
        if not isinstance(content, list) or role in self.part_roles:
            return content
        for position, part in enumerate(content):
            if part.get("type") != "text":
                raise RequestError(
                    f"this model's chat template takes only text in {role} messages, not a part of type "
                    f"{part.get('type')!r}: leave it out",
                    param=f"messages[{index}].content[{position}]",
                )
        return "\n".join(part["text"] for part in content)
