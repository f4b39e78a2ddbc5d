"""The forms of other APIs that are answered like a chat completion: Responses and Anthropic's Messages.

Like `chat`, and on the same threads. What depends on the model is checked in the fields of that completion;
`own_words` names them as the other API does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from pydantic import ValidationError

from vinfer.server.fields.body_model import Body, Unknown
from vinfer.server.fields.chat import ChatFields
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.problems import renaming, request_error


class ConversationBody(Body):
    """The body of a request that a chat completion can answer."""

    def as_completion(self) -> dict[str, Any]:
        """Return the chat completion that asks for the same, as a client would send it.

        Raises:
            RequestError: there is none.
        """
        raise NotImplementedError


ConversationT = TypeVar("ConversationT", bound=ConversationBody)


@dataclasses.dataclass(frozen=True)
class ConversationForm(RequestForm[ConversationT]):
    """A form whose requests are answered like a chat completion.

    Attributes:
        names: the patterns of chat completions' names, and what stands for each here; tried in order.
    """

    names: Sequence[tuple[re.Pattern[str], str]] = ()

    def parse_as_chat(
        self, body: Mapping[str, Any], unknown: Unknown, ignored: list[str] | None = None
    ) -> tuple[ConversationT, ChatFields]:
        """Parse a body, and return it with the chat completion that asks for the same; see `parse`."""
        fields = self.parse(body, unknown, ignored)
        try:
            completion = ChatFields.model_validate(fields.as_completion())
        except ValidationError as error:
            # Several of its items became one message, which is then too long.
            raise request_error(error, {}) from None
        with self.own_words():
            completion.check_answer()
        return fields, completion

    def own_words(self) -> AbstractContextManager[None]:
        """Make errors of a chat completion name the fields of this form."""
        return renaming(self.names)
