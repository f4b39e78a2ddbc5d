"""The base of what a client sends back from earlier turns: keys that say nothing are accepted.

Like `chat`, and on the same threads.
"""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import ConfigDict, model_validator

from vinfer.server.fields.body_model import Body

ANY_KEYS: dict[str, Any] = {"additionalProperties": True}
"""Part of the `json_schema_extra` of every type of history."""


class History(Body):
    """The base of messages and content blocks. Keys of client libraries have no effect.

    A key that is nearly a known one is refused, because what it carries would be missing from the prompt.
    """

    model_config = ConfigDict(json_schema_extra=ANY_KEYS)

    @model_validator(mode="before")
    @classmethod
    def _drop_unknown_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = cls.model_fields.keys()
        return {key: item for key, item in value.items() if key in known or _is_near(key, known)}


def _is_near(key: Any, known: Any) -> bool:
    return bool(difflib.get_close_matches(str(key)[:64], known, n=1, cutoff=0.8))
