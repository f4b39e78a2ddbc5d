"""Turns a conversation into a prompt: the chat template, and what has to be said in another way for it.

Runs on worker threads. A `ChatForm` is immutable. Knows neither token ids nor HTTP.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vinfer.errors import RequestError
from vinfer.text.answer_form import AnswerForm, answer_form
from vinfer.text.chat_template import TOOL_USE_FILE, ChatTemplate, load_chat_template
from vinfer.text.control_tokens import RenderedPrompt
from vinfer.text.shown_content import Message, Place, Shape, Tool, first_hidden, refusal, shape_of
from vinfer.text.tokenizer import Tokenizer
from vinfer.text.tool_calls.formats import HERMES
from vinfer.text.tool_calls.prompt import with_tools_as_text

logger = logging.getLogger(__name__)

_MAX_KEPT_PARTS = 256
"""Longer conversations have shapes that seldom come back."""


@dataclasses.dataclass(frozen=True, slots=True)
class ChatForm:
    """A chat template, and the form of the answers to its prompts."""

    template: ChatTemplate
    answers: AnswerForm

    def render(
        self,
        messages: list[Message],
        tools: list[Tool],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        **variables: Any,
    ) -> RenderedPrompt:
        """Render a conversation, of which nothing may be missing in the prompt.

        If the template does not show developer messages, they become system messages. If it does not show
        the text next to tool calls, the text becomes a message of its own.

        Args:
            messages: as in the OpenAI API, already validated; `content` is a string, None or a list of parts.
            tools: those that the prompt offers.
            continue_final_message: the prompt ends with the text of the last message.

        Raises:
            RequestError: the template refuses the messages, or does not show one of them.
        """
        choice = {**variables, "add_generation_prompt": add_generation_prompt}
        messages = self._shown(messages, len(tools), choice)
        inputs, offered = self._inputs(messages, tools)
        if continue_final_message:
            return self.template.render_unfinished(inputs, tools=offered, **variables)
        return self.template.render(inputs, tools=offered, **choice)

    def _inputs(
        self, messages: list[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Tool] | None]:
        """Return what the template takes: if it does not know tools, they are explained in the messages."""
        if not self.answers.has_tools_as_text:
            return messages, list(tools) or None
        form = self.answers.tool_format or HERMES
        return with_tools_as_text(messages, tools, form, shows_system=self.template.shows_system), None

    def _shown(self, messages: list[Message], num_tools: int, variables: dict[str, Any]) -> list[Message]:
        """Return the messages in the first form in which the template shows all of them."""
        refusals: list[RequestError] = []
        for form in _forms(messages):
            shape = shape_of(form, num_tools, variables)
            find = _kept_hidden if shape.num_parts <= _MAX_KEPT_PARTS else _hidden
            try:
                place = find(self, shape)
            except RequestError:
                # Its words would be about the shape; the conversation itself gets the template's own.
                continue
            if place is None:
                return form
            refusals.append(refusal(place, form))
        if refusals:
            raise refusals[0]
        return messages


@dataclasses.dataclass(frozen=True, slots=True)
class ChatForms:
    """The chat templates of a model, and the form of its answers.

    Attributes:
        template: None if the model takes no conversations.
        tool_use: for conversations with tools, if the model has a template of its own for them.
    """

    template: ChatTemplate | None
    answers: AnswerForm
    tool_use: ChatForm | None


def load_chat_forms(
    directory: Path, tokenizer: Tokenizer, *, tool_parser: str, reasoning_parser: str
) -> ChatForms:
    """Load the chat templates from a bundle's `tokenizer/` directory.

    Args:
        tool_parser, reasoning_parser: as `answer_form` takes them.

    Raises:
        BundleError: a template is unreadable or does not compile.
    """
    usual = load_chat_template(directory, tokenizer)
    of_tools = load_chat_template(directory, tokenizer, file_name=TOOL_USE_FILE)
    for template in (usual, of_tools):
        if template is not None and (split := template.split_markers(tokenizer)):
            logger.warning(
                "%s: the chat template writes %s, of which the tokenizer makes several tokens: right only if "
                "the model was trained so; otherwise tokens are missing in tokenizer.json",
                directory,
                ", ".join(split[:4]),
            )
    answers = answer_form(tool_parser, usual, reasoning_parser=reasoning_parser)
    if of_tools is None:
        return ChatForms(usual, answers, None)
    with_tools = answer_form(tool_parser, of_tools, reasoning_parser=reasoning_parser)
    # One model writes its answers in one way, whichever template a request uses.
    thinks = answers.has_reasoning or with_tools.has_reasoning
    answers = dataclasses.replace(answers, tool_format=with_tools.tool_format, has_reasoning=thinks)
    with_tools = dataclasses.replace(with_tools, has_reasoning=thinks)
    return ChatForms(usual, answers, ChatForm(of_tools, with_tools))


def _hidden(form: ChatForm, shape: Shape) -> Place | None:
    def render(messages: list[Message], tools: list[Tool], variables: dict[str, Any]) -> str:
        inputs, offered = form._inputs(messages, tools)
        return form.template.render(inputs, tools=offered, **variables).text

    return first_hidden(shape, render)


_kept_hidden: Callable[[ChatForm, Shape], Place | None] = functools.lru_cache(maxsize=1024)(_hidden)


def _forms(messages: list[Message]) -> Iterator[list[Message]]:
    """Yield the messages as they are, then said in other ways."""
    yield messages
    has_developer = any(message["role"] == "developer" for message in messages)
    has_both = any(_has_text_and_calls(message) for message in messages)
    if has_developer:
        yield [_as_system(message) for message in messages]
    if has_both:
        yield _with_text_apart(messages)
    if has_developer and has_both:
        yield _with_text_apart([_as_system(message) for message in messages])


def _as_system(message: Message) -> Message:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _has_text_and_calls(message: Message) -> bool:
    return bool(message.get("tool_calls") and message.get("content"))


def _with_text_apart(messages: list[Message]) -> list[Message]:
    apart: list[Message] = []
    for message in messages:
        if _has_text_and_calls(message):
            said = {key: value for key, value in message.items() if key != "tool_calls"}
            apart += [said, {**message, "content": None}]
        else:
            apart.append(message)
    return apart
