"""How models write tool calls: one row per format, and the detection of a chat template's format.

Pure data. `parser` parses a format, `prompt` explains it to models whose template does not know tools, and
the server constrains answers to it.
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
        opening: begins a call, or a list of calls; often one token of the vocabulary.
        closing: ends what `opening` began; may be empty.
        repeats_markers: whether each call has its own opening and closing.
        begins_with_call: whether an answer that begins with a call needs no opening.
        is_pythonic: whether calls may be written as Python calls; constrained answers and examples use
            objects.
        gap: characters that may appear before, between and after calls without meaning.
        before_calls, after_calls: text between the markers and the calls.
        separator: text between two calls.
        arguments_key: the member of a call that holds its arguments; the other is `name`.
        id_len: length of an id; Mistral's templates insist on nine characters.
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
        """Return a new call id."""
        letters = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(self.id_len))
        return letters if self.id_len < 24 else f"call_{letters}"

    def call_head(self, name: str) -> str:
        """Return the text of a call up to its arguments; a closing brace follows them."""
        return f'{{"name": {json.dumps(name)}, "{self.arguments_key}": '

    def written(self, calls: Sequence[tuple[str, str]]) -> str:
        """Return the text of calls, each given as a name and the JSON text of its arguments."""
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
    """Return the format of a chat template that takes tools; None if the format is unsupported.

    The format of newer Mistral templates (`[TOOL_CALLS]name[ARGS]{...}`) is unsupported.
    """
    if "<tool_call>" in source:
        # GLM and Qwen3-Coder use the same tag, but with XML or a bare name inside.
        is_json = '"name"' in source or '\\"name\\"' in source
        return HERMES if is_json else None
    if "[TOOL_CALLS]" in source:
        return None if "[ARGS]" in source else MISTRAL
    if "func_name1(" in source:
        return PYTHONIC
    if "<|python_tag|>" in source or ('"parameters": ' in source and "<|start_header_id|>" in source):
        return LLAMA3_JSON
    return None
