"""The applied fields of `/v1/chat/completions`, typed and limited.

Limits that depend on the model or the config are checked in `generate.sampling` and `generate.prompts`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vinfer.engine.request import MAX_TOP_LOGPROBS
from vinfer.errors import RequestError
from vinfer.server.answers.response_types import ReasoningEffort
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.messages import Messages, check_continuation, check_messages
from vinfer.server.fields.rules import Problem, Rule, all_of, any_of, having, one_of
from vinfer.server.fields.sampling import STREAM_OPTIONS_NEED_STREAM, MaxTokens, SamplingFields
from vinfer.server.fields.structured_outputs import (
    CONSTRAINT_PROBLEMS,
    ENDS_BY_ITSELF,
    ONE_CONSTRAINT,
    UNCONSTRAINED,
)
from vinfer.server.fields.template_kwargs import TemplateKwargs
from vinfer.server.fields.tools import (
    HAS_TOOLS,
    NO_CALL_ASKED_FOR,
    Tool,
    ToolChoiceField,
    Tools,
    check_tool_choice,
    check_tools,
    strict_tools,
)
from vinfer.server.fields.treatment import CHAT_OTHERS


class ChatFields(SamplingFields):
    """`POST /v1/chat/completions`."""

    rules = (
        STREAM_OPTIONS_NEED_STREAM,
        Rule(
            any_of(one_of("top_logprobs", None, 0), having("logprobs", True)),
            Problem("top_logprobs", "needs logprobs: true"),
        ),
        Rule(
            any_of(
                *(all_of(form, NO_CALL_ASKED_FOR) for form in (UNCONSTRAINED, *ONE_CONSTRAINT)),
                all_of(UNCONSTRAINED, HAS_TOOLS, ENDS_BY_ITSELF),
            ),
            *CONSTRAINT_PROBLEMS,
            Problem("tool_choice", "needs tools: send them or leave it out", HAS_TOOLS),
            Problem(
                "tool_choice",
                "asks for a call, but response_format or structured_outputs for another form: send one of "
                "them",
                UNCONSTRAINED,
            ),
            Problem(
                "ignore_eos",
                "cannot be combined with a tool_choice that asks for a call: once the call is complete, only "
                "the end token may follow; leave it out",
            ),
        ),
    )

    messages: Messages
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] = ["text"]
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    tools: Tools = []
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: ReasoningEffort | None = None
    include_reasoning: bool = True
    chat_template_kwargs: TemplateKwargs = {}

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that this answer may call."""
        choice = self.tool_choice
        return [] if choice is not None and choice.type == "none" else self.tools

    def check(self, path: str = "") -> None:
        check_messages(self.messages, "messages")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise RequestError(
                f"max_tokens is {both[0]} and max_completion_tokens is {both[1]}: send one of them",
                param="max_tokens",
            )
        if self.continue_final_message:
            check_continuation(self.messages, self.add_generation_prompt)
        self.check_answer()

    def check_answer(self) -> None:
        """Check what the answer may be; other APIs' forms of a conversation are checked by this too.

        Raises:
            RequestError: names the field.
        """
        super().check()
        check_tools(self.tools)
        check_tool_choice(self.tools, self.tool_choice)
        if self.ignore_eos and strict_tools(self.tools, self.tool_choice):
            raise RequestError(
                "ignore_eos cannot be combined with strict tools: once a call is complete, only the end "
                "token may follow; leave it out",
                param="ignore_eos",
            )


CHAT = RequestForm(ChatFields, CHAT_OTHERS)
