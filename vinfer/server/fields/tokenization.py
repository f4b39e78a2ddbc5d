"""The applied fields of `/tokenize` and `/detokenize`, typed and limited, in vLLM's format.

Like `chat`, and on the same threads. `generate.prompts` compares ids with the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from vinfer.server.answers.response_types import ReasoningEffort
from vinfer.server.fields.body_model import Body, Unknown
from vinfer.server.fields.count import MAX_PROMPT_CHARS
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.messages import Messages, check_continuation, check_messages
from vinfer.server.fields.sampling import TokenId
from vinfer.server.fields.template_kwargs import TemplateKwargs
from vinfer.server.fields.tools import Tools, check_tools
from vinfer.server.fields.treatment import TOKENIZE_MESSAGES_OTHERS, TOKENIZE_TEXT_OTHERS

# These take half a second of a worker thread, and the JSON of their answers takes less than a tenth of one.
MAX_TOKENS = 1 << 18


class TokenizeText(Body):
    """`POST /tokenize` for a text; `model` may be left out if only one is served."""

    model: str | None = Field(None, min_length=1)
    prompt: str = Field(max_length=MAX_PROMPT_CHARS)
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeMessages(Body):
    """`POST /tokenize` for a conversation."""

    model: str | None = Field(None, min_length=1)
    messages: Messages
    return_token_strs: bool = False
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    tools: Tools = []
    chat_template_kwargs: TemplateKwargs = {}
    reasoning_effort: ReasoningEffort | None = None

    def check(self, path: str = "") -> None:
        check_messages(self.messages, "messages")
        check_tools(self.tools)
        if self.continue_final_message:
            check_continuation(self.messages, self.add_generation_prompt)


class DetokenizeFields(Body):
    """`POST /detokenize`."""

    model: str | None = Field(None, min_length=1)
    tokens: list[TokenId] = Field(max_length=MAX_TOKENS)


TOKENIZE_TEXT = RequestForm(TokenizeText, TOKENIZE_TEXT_OTHERS)
TOKENIZE_MESSAGES = RequestForm(TokenizeMessages, TOKENIZE_MESSAGES_OTHERS)
DETOKENIZE = RequestForm(DetokenizeFields)


def parse_tokenize(
    body: Mapping[str, Any], unknown: Unknown, ignored: list[str] | None = None
) -> TokenizeText | TokenizeMessages:
    """Check the body of a tokenize request, which has one of two forms; see `RequestForm.parse`."""
    form = TOKENIZE_TEXT if body.get("messages") is None else TOKENIZE_MESSAGES
    return form.parse(body, unknown, ignored)
