"""What a model's answers contain besides plain text; decided once per model from chat template and config."""

from __future__ import annotations

import dataclasses

from vinfer.text import reasoning
from vinfer.text.chat_template import ChatTemplate
from vinfer.text.tokenizer import Tokenizer
from vinfer.text.tool_calls.formats import FORMATS, HERMES, ToolFormat, format_of_template


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """The form of a model's answers.

    Attributes:
        tool_format: how it writes tool calls; None if `tools` are refused.
        has_tools_as_text: its template does not know tools, so the prompt explains them in text.
        has_reasoning: it may think in `<think>` tags before it answers.
    """

    tool_format: ToolFormat | None = None
    has_tools_as_text: bool = True
    has_reasoning: bool = False

    def marker_ids(self, tokenizer: Tokenizer, *, reads_calls: bool) -> frozenset[int]:
        """Return the special tokens that delimit parts of an answer; most models have none."""
        markers = [reasoning.OPENING, reasoning.CLOSING] if self.has_reasoning else []
        if reads_calls and self.tool_format is not None:
            markers += [self.tool_format.opening, self.tool_format.closing]
        found = map(tokenizer.token_to_id, markers)
        return tokenizer.special_ids.intersection(token_id for token_id in found if token_id is not None)


PLAIN_ANSWERS = AnswerForm()


def answer_form(
    tool_parser: str, template: ChatTemplate | None, *, reasoning_parser: str = "auto"
) -> AnswerForm:
    """Choose the form of a model's answers.

    If a template takes tools in an unsupported format, the prompt also explains them in text: a model follows
    an example in its prompt better than we could parse an unknown format.

    Args:
        tool_parser: a format's name, `none`, or `auto` to follow the template.
        reasoning_parser: `think`, `none`, or `auto` to follow the template.
        template: None if the model has none; it then takes no conversations.
    """
    takes_tools = template is not None and template.takes_tools
    taught = format_of_template(template.source) if template is not None and takes_tools else None
    has_reasoning = reasoning_parser == "think"
    if reasoning_parser == "auto" and template is not None:
        has_reasoning = reasoning.CLOSING in template.source
    if tool_parser == "none":
        return AnswerForm(has_tools_as_text=not takes_tools, has_reasoning=has_reasoning)
    if tool_parser == "auto":
        return AnswerForm(
            tool_format=taught or HERMES, has_tools_as_text=taught is None, has_reasoning=has_reasoning
        )
    return AnswerForm(
        tool_format=FORMATS[tool_parser], has_tools_as_text=not takes_tools, has_reasoning=has_reasoning
    )
