"""The applied fields of `/v1/count_tokens`, typed and limited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from vinfer.server.fields.body_model import Body, Unknown
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.messages import Messages, check_messages

MAX_PROMPT_CHARS = 1 << 20
"""The limit of a text whose tokens are counted or listed: half a second of a worker thread."""


class CountText(Body):
    """`POST /v1/count_tokens` for a text."""

    model: str = Field(min_length=1)
    conversation: str = Field(max_length=MAX_PROMPT_CHARS)


class CountMessages(Body):
    """`POST /v1/count_tokens` for a conversation."""

    model: str = Field(min_length=1)
    conversation: Messages

    def check(self, path: str = "") -> None:
        check_messages(self.conversation, "conversation")


COUNT_TEXT = RequestForm(CountText)
COUNT_MESSAGES = RequestForm(CountMessages)


def parse_count(
    body: Mapping[str, Any], unknown: Unknown, ignored: list[str] | None = None
) -> CountText | CountMessages:
    """Check the body of a token count, which has one of two forms; see `RequestForm.parse`."""
    # Chosen here, because pydantic would put the branch of a union into the error's path.
    form = COUNT_TEXT if isinstance(body.get("conversation"), str) else COUNT_MESSAGES
    return form.parse(body, unknown, ignored)
