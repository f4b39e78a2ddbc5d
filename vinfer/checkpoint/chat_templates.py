"""Finds the chat templates of a Hugging Face directory: the usual one, and the one for requests with tools.

Runs in the build half, on any thread. Renders nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from vinfer.checkpoint.json_file import read_json_object, read_text
from vinfer.errors import CheckpointError

_OWN_FILE = "chat_template.jinja"
_OTHER_FILES = "additional_chat_templates"
_OLD_FILE = "chat_template.json"


@dataclasses.dataclass(frozen=True, slots=True)
class ChatTemplates:
    """Jinja sources.

    Attributes:
        default: None for a model without a chat template.
        tool_use: for requests with tools, as in transformers; None if the default one serves them too.
    """

    default: str | None = None
    tool_use: str | None = None

    def write(self, token: str) -> bool:
        """Return whether a template spells a token out."""
        return any(token in source for source in (self.default, self.tool_use) if source is not None)


def read_chat_templates(directory: Path, tokenizer_config: Mapping[str, object]) -> ChatTemplates:
    """Read the templates: their own files first, as in transformers, then tokenizer_config.json.

    Raises:
        CheckpointError: a file is unreadable, or there are templates but none is the default.
    """
    if (directory / _OWN_FILE).is_file():
        tool_use = directory / _OTHER_FILES / "tool_use.jinja"
        return ChatTemplates(
            read_text(directory / _OWN_FILE), read_text(tool_use) if tool_use.is_file() else None
        )
    file_name, template = "tokenizer_config.json", tokenizer_config.get("chat_template")
    if template is None and (directory / _OLD_FILE).is_file():
        file_name, template = _OLD_FILE, read_json_object(directory / _OLD_FILE).get("chat_template")
    named = _named(template)
    if named is None:
        return ChatTemplates(_source(template, f"{directory}/{file_name}: chat_template"))
    if named.get("default") is None:
        raise CheckpointError(
            f"{directory}/{file_name}: chat_template has no entry named default "
            f"(found: {', '.join(named) or 'none'}): write the one you want to {_OWN_FILE}"
        )
    where = f"{directory}/{file_name}: chat_template"
    return ChatTemplates(
        _source(named["default"], f"{where} named default"),
        _source(named.get("tool_use"), f"{where} named tool_use"),
    )


def _named(template: object) -> dict[str, object] | None:
    """Return templates by name, written as a list of entries or as an object; None if there is only one."""
    if isinstance(template, dict):
        return template
    if not isinstance(template, list):
        return None
    entries = (entry for entry in template if isinstance(entry, dict))
    return {str(entry.get("name")): entry.get("template") for entry in entries}


def _source(template: object, where: str) -> str | None:
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{where} is {type(template).__name__}, not a string or list")
    return template
