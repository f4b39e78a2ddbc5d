"""The applied fields of `/v1/messages` and `/v1/messages/count_tokens`, and the chat completion of the same.

Like `chat`, and on the same threads. What depends on the model is checked in the fields of that completion;
`MESSAGES.own_words` names them as these routes do.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from vinfer.server.fields.anthropic.thinking import Thinking, thinking_kwargs
from vinfer.server.fields.anthropic.tool_use import ToolDefinitions, ToolUseChoice
from vinfer.server.fields.anthropic.treatment import COUNT_MESSAGES_OTHERS, MESSAGES_OTHERS
from vinfer.server.fields.anthropic.turns import System, Turn, chat_messages, check_turns, continues_answer
from vinfer.server.fields.body_model import Body
from vinfer.server.fields.chat import ChatFields
from vinfer.server.fields.conversation_form import ConversationBody, ConversationForm
from vinfer.server.fields.messages import MAX_MESSAGES
from vinfer.server.fields.sampling import MAX_INT32, MAX_STOP_STRINGS, Seed, StopString, Temperature, TopP
from vinfer.server.json_object import Json
from vinfer.server.model_table import ServedModel


class OutputFormat(Body):
    """`output_config.format`: the schema of the answer, which is enforced."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")

    def as_chat(self) -> dict[str, Any]:
        """Return the format in the form of chat completions."""
        return {"type": self.type, "json_schema": {"name": "output", "schema": self.schema_, "strict": True}}


class OutputConfig(Body):
    """`output_config`: how hard the model tries, and the form of its answer."""

    effort: Literal["low", "medium", "high", "xhigh"] | None = None
    format: OutputFormat | None = None


_TOOLS: Json = {"properties": {"tools": {"type": "array", "minItems": 1}}, "required": ["tools"]}
_NO_CALL_ASKED_FOR: Json = {
    "properties": {
        "tool_choice": {
            "anyOf": [{"type": "null"}, {"properties": {"type": {"enum": ["auto", "none"]}}}],
        }
    }
}
_NO_FORMAT: Json = {
    "properties": {
        "output_config": {
            "anyOf": [{"type": "null"}, {"properties": {"format": {"type": "null"}}}],
        }
    }
}


class CountMessagesFields(ConversationBody):
    """`POST /v1/messages/count_tokens`."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [_NO_CALL_ASKED_FOR, {"allOf": [_TOOLS, _NO_FORMAT]}]}
    )

    model: str = Field(min_length=1)
    # One less than the messages of a chat completion, because `system` becomes one.
    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES - 1)
    system: System = []
    tools: ToolDefinitions = []
    tool_choice: ToolUseChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()

    def check(self, path: str = "") -> None:
        check_turns(self.messages)
        if self.thinking is not None:
            self.thinking.check("thinking")
        if self.tool_choice is not None:
            self.tool_choice.check("tool_choice")

    def as_completion(self) -> dict[str, Any]:
        """Return the chat completion that asks for the same, all but `thinking`."""
        choice, config = self.tool_choice, self.output_config
        is_parallel = choice is None or not choice.disable_parallel_tool_use
        return {
            "model": self.model,
            "messages": chat_messages(self.system, self.messages),
            "continue_final_message": continues_answer(self.messages),
            "response_format": None if config.format is None else config.format.as_chat(),
            "tools": [tool.as_chat() for tool in self.tools],
            "tool_choice": None if choice is None else choice.as_chat(),
            "parallel_tool_calls": is_parallel,
            "reasoning_effort": config.effort,
            # A message is one answer, whatever the config says.
            "n": 1,
        }


class MessagesFields(CountMessagesFields):
    """`POST /v1/messages`."""

    max_tokens: int = Field(ge=1, le=MAX_INT32)
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] = []
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: int | None = Field(None, ge=-1, le=MAX_INT32)
    seed: Seed | None = None
    stream: bool = False

    def as_completion(self) -> dict[str, Any]:
        return {
            **super().as_completion(),
            "max_completion_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
        }


# What chat completions call a field, and what it is called here.
_NAMES = (
    (re.compile("response_format or structured_outputs"), "output_config.format"),
    (re.compile(r"\btools\[(\d+)\]\.function\.parameters\b"), r"tools[\1].input_schema"),
    (re.compile(r"\btools\[(\d+)\]\.function\."), r"tools[\1]."),
    (re.compile(r"\btool_choice\.function\."), "tool_choice."),
    (re.compile(r"\bresponse_format\.json_schema\."), "output_config.format."),
    (re.compile(r"\bresponse_format\b"), "output_config.format"),
    (re.compile(r"\bmax_completion_tokens\b"), "max_tokens"),
    (re.compile(r"\breasoning_effort\b"), "output_config.effort"),
    (re.compile(r"\bcontinue_final_message\b"), "messages"),
    # Anthropic's words: agents look for them, and then shorten the conversation.
    (re.compile(r"^prompt has (\d+) tokens"), r"prompt is too long: \1 tokens"),
)

MESSAGES = ConversationForm(MessagesFields, MESSAGES_OTHERS, _NAMES)
MESSAGES_COUNT = ConversationForm(CountMessagesFields, COUNT_MESSAGES_OTHERS, _NAMES)


def for_model(completion: ChatFields, thinking: Thinking | None, model: ServedModel) -> ChatFields:
    """Return a completion with what `thinking` means to the chat template of a model.

    Raises:
        RequestError: the model does not do what `thinking` asks for.
    """
    kwargs = thinking_kwargs(thinking, model)
    return completion.model_copy(update={"chat_template_kwargs": kwargs})
