"""How models write tool calls: one row per format, and which one a chat template speaks.

Pure data. `tool_calls` parses by it, `tool_prompt` explains it to models whose template knows no tools, and
the server binds answers to it.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import string
from collections.abc import Mapping
from typing import Any, Literal

ToolFormatName = Literal["hermes", "llama3_json", "mistral", "pythonic"]
ToolParserName = Literal["auto", "hermes", "llama3_json", "mistral", "pythonic", "none"]

_ID_CHARACTERS = string.ascii_letters + string.digits


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """The form of one or more calls: `opening`, objects with `separator` between, `closing`.

    Attributes:
        opening: begins a call, or a list of them; often one token of the vocabulary.
        closing: ends what `opening` began; may be empty.
        repeats_markers: each call has its own opening and closing.
        begins_with_call: an answer that begins with a call needs no opening.
        gap: characters that may stand before, between and after calls and mean nothing.
        before_calls, after_calls: what is written between the markers and the calls.
        separator: what is written between two calls.
        arguments_key: the member of a call that holds its arguments; the other is `name`.
        id_len: characters of an id; Mistral's templates insist on nine.
    """

    name: ToolFormatName
    opening: str
    closing: str = ""
    repeats_markers: bool = False
    begins_with_call: bool = False
    gap: str = " \t\r\n"
    before_calls: str = ""
    after_calls: str = ""
    separator: str
    arguments_key: str = "arguments"
    id_len: int = 24

    def new_id(self) -> str:
        """Make the id of a call."""
        letters = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(self.id_len))
        return letters if self.id_len < 24 else f"call_{letters}"

    def call_head(self, name: str) -> str:
        """Write a call up to its arguments."""
        return f'{{"name": {json.dumps(name)}, "{self.arguments_key}": '


HERMES = ToolFormat(
    name="hermes",
    opening="<tool_call>",
    closing="</tool_call>",
    repeats_markers=True,
    before_calls="\n",
    after_calls="\n",
    separator="\n",
)
FORMATS: Mapping[str, ToolFormat] = {HERMES.name: HERMES}


def format_of_template(source: str) -> ToolFormat | None:
    """Say which format a chat template that takes tools teaches; None where it is none of ours."""
    if "<tool_call>" in source:
        return HERMES
    return None


def written_calls(calls: list[dict[str, Any]]) -> str:
    """Write earlier calls, as a chat template takes them, in the Hermes form."""
    texts = []
    for call in calls:
        function = call["function"]
        arguments = function["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        body = f"{HERMES.call_head(function['name'])}{arguments}}}"
        texts.append(f"{HERMES.opening}{HERMES.before_calls}{body}{HERMES.after_calls}{HERMES.closing}")
    return HERMES.separator.join(texts)
