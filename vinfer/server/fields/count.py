"""The applied fields of `/v1/count_tokens`, typed and limited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from vinfer.server.fields.body_model import Body, Unknown
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.messages import Messages, check_messages
from vinfer.server.fields.treatment import COUNT_FIELDS

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


COUNT_TEXT = RequestForm(CountText, COUNT_FIELDS)


COUNT_MESSAGES = RequestForm(CountMessages, COUNT_FIELDS)


def parse_count(
    body: Mapping[str, Any], unknown: Unknown, ignored: list[str] | None = None
) -> CountText | CountMessages:
    """Check the body of a token count; `ignored` as in `RequestForm.parse`.

    Raises:
        RequestError: names the first bad field.
    """
    # Chosen here, because pydantic would put the branch of a union into the error's path.
    if isinstance(body.get("conversation"), str):
        return COUNT_TEXT.parse(body, unknown)
    fields = COUNT_MESSAGES.parse(body, unknown, ignored)
    check_messages(fields.conversation, "conversation")
    return fields
