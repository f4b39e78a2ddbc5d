"""How models write tool calls: one row per format, and which one a chat template speaks.

Pure data. `parser` parses by it, `prompt` explains it to models whose template knows no tools, and
the server binds answers to it.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import string
from collections.abc import Mapping, Sequence
from typing import Literal

ToolFormatName = Literal["hermes", "llama3_json", "mistral", "pythonic"]

_ID_CHARACTERS = string.ascii_letters + string.digits


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """The form of one or more calls: `opening`, objects with `separator` between, `closing`.

    Attributes:
        opening: begins a call, or a list of them; often one token of the vocabulary.
        closing: ends what `opening` began; may be empty.
        repeats_markers: each call has its own opening and closing.
        begins_with_call: an answer that begins with a call needs no opening.
        is_pythonic: calls may be written as Python writes them; bound answers and examples have objects.
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
    is_pythonic: bool = False
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
        """Write a call up to its arguments; a closing brace ends it after them."""
        return f'{{"name": {json.dumps(name)}, "{self.arguments_key}": '

    def written(self, calls: Sequence[tuple[str, str]]) -> str:
        """Write calls, each a name and the JSON text of its arguments."""
        opening = ("" if self.begins_with_call else self.opening) + self.before_calls
        closing = self.after_calls + self.closing
        bodies = [f"{self.call_head(name)}{arguments}}}" for name, arguments in calls]
        if self.repeats_markers:
            return self.separator.join(f"{opening}{body}{closing}" for body in bodies)
        return f"{opening}{self.separator.join(bodies)}{closing}"


HERMES = ToolFormat(
    name="hermes",
    opening="<tool_call>",
    closing="</tool_call>",
    repeats_markers=True,
    before_calls="\n",
    after_calls="\n",
    separator="\n",
)
LLAMA3_JSON = ToolFormat(
    name="llama3_json",
    opening="<|python_tag|>",
    begins_with_call=True,
    gap=" \t\r\n;,[]",
    separator="; ",
    arguments_key="parameters",
)
MISTRAL = ToolFormat(
    name="mistral",
    opening="[TOOL_CALLS]",
    gap=" \t\r\n,[]",
    before_calls="[",
    after_calls="]",
    separator=", ",
    id_len=9,
)
PYTHONIC = ToolFormat(
    name="pythonic", opening="[", closing="]", is_pythonic=True, gap=" \t\r\n,]", separator=", "
)
FORMATS: Mapping[str, ToolFormat] = {form.name: form for form in (HERMES, LLAMA3_JSON, MISTRAL, PYTHONIC)}


def format_of_template(source: str) -> ToolFormat | None:
    """Say which format a chat template that takes tools teaches; None where it is none of ours.

    Newer Mistral templates (`[TOOL_CALLS]name[ARGS]{...}`) are not.
    """
    if "<tool_call>" in source:
        # GLM and Qwen3-Coder have the tag, and XML or a bare name in it.
        is_json = '"name"' in source or '\\"name\\"' in source
        return HERMES if is_json else None
    if "[TOOL_CALLS]" in source:
        return None if "[ARGS]" in source else MISTRAL
    if "func_name1(" in source:
        return PYTHONIC
    if "<|python_tag|>" in source or ('"parameters": ' in source and "<|start_header_id|>" in source):
        return LLAMA3_JSON
    return None
