"""The two routes that generate. Only this module knows how they differ in requests and answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from expected import Expected
from tiny_server import BOS_ID, MODEL, Answer, Talk

PROMPT = "Once upon a time"
MESSAGES = [{"role": "user", "content": PROMPT}]


@dataclasses.dataclass(frozen=True)
class Route:
    """A route, the server and the reference.

    Attributes:
        form: name of the `vinfer.server` model that types its body.
    """

    form: str
    talk: Talk
    expected: Expected

    @property
    def is_chat(self) -> bool:
        return self.form == "ChatFields"

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    @property
    def prompt(self) -> list[int]:
        """The ids of the prompt in `body`."""
        if self.is_chat:
            return self.talk.ids(f"user: {PROMPT}|assistant: ")
        return [BOS_ID, *self.talk.ids(PROMPT)]

    def body(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return a body that asks for logprobs, which identify the tokens."""
        if self.is_chat:
            return {"model": MODEL, "messages": MESSAGES, "logprobs": True, **fields}
        return {"model": MODEL, "prompt": PROMPT, "logprobs": 0, **fields}

    def ask(self, **fields: Any) -> list[Answer]:
        """Return the choices of an answer that is not streamed."""
        return [self.answer(choice) for choice in self.talk.post(self.path, self.body(fields))["choices"]]

    def answer(self, choice: Mapping[str, Any]) -> Answer:
        text = choice["message"]["content"] if self.is_chat else choice["text"]
        return Answer(self.tokens(choice["logprobs"]), text, choice["finish_reason"])

    def tokens(self, logprobs: Mapping[str, Any]) -> list[int]:
        """Return the ids of the tokens that logprobs belong to."""
        if self.is_chat:
            labels = [entry["token"] for entry in logprobs["content"]]
        else:
            labels = logprobs["tokens"]
        ids = [self.talk.id_of_label(label) for label in labels]
        return [token_id for token_id in ids if token_id is not None]

    def refusal(self, **fields: Any) -> str:
        """Return `param` of a request that must be refused."""
        param: str = self.talk.refusal(self.path, self.body(fields))["param"]
        return param
