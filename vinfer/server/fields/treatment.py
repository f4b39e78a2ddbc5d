"""What vinfer does with each request field of the OpenAI API: applied, refused, or accepted without effect.

The types of the other files of this package declare the applied fields. Here is one table per route of the
fields that are not applied. Nothing is run here: this module only sorts the keys of a parsed body.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
from collections.abc import Mapping
from typing import Any, Literal

from vinfer.errors import RequestError
from vinfer.server.fields import foreign
from vinfer.server.http.body import printable

MAX_ACCEPTED_VALUES = 65_536
"""The limit of characters and values in a field that is accepted without effect."""


class Treatment(enum.Enum):
    APPLIED = "applied"
    REFUSED = "refused"
    ACCEPTED = "accepted without effect"
    ALIAS = "another name of an applied field"


@dataclasses.dataclass(frozen=True, slots=True)
class FieldRule:
    """How one field is treated.

    Attributes:
        reason: why it is refused and what to do instead; for an alias, the name of the applied field.
        neutral: values of a refused field that pass because they ask for nothing; null always passes.
    """

    treatment: Treatment
    reason: str = ""
    neutral: tuple[Any, ...] = ()


APPLIED = FieldRule(Treatment.APPLIED)
ACCEPTED = FieldRule(Treatment.ACCEPTED)


def refused(reason: str, *neutral: Any) -> FieldRule:
    """Return the rule of a field that asks for something vinfer does not do."""
    return FieldRule(Treatment.REFUSED, reason, neutral)


def _foreign(*tables: Mapping[str, foreign.Entry]) -> dict[str, FieldRule]:
    return {key: refused(reason, *neutral) for table in tables for key, (reason, neutral) in table.items()}


_OPENAIS = dict.fromkeys(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"), ACCEPTED
)
"""They concern OpenAI's own server."""

_OF_SAMPLING: Mapping[str, FieldRule] = {
    **_OPENAIS,
    **dict.fromkeys(foreign.WITHOUT_EFFECT, ACCEPTED),
    **{key: FieldRule(Treatment.ALIAS, name) for key, name in foreign.ALIASES.items()},
}

CHAT_OTHERS: Mapping[str, FieldRule] = {
    **_OF_SAMPLING,
    **_foreign(foreign.SAMPLING, foreign.CHAT),
    "chat_template": refused("a template is never taken from a request: leave it out"),
    "functions": refused("the old form of tools: use tools", []),
    "function_call": refused("the old form of tool_choice: use tools and tool_choice", "none", "auto"),
    "audio": refused("vinfer does not support audio: leave it out"),
    "prediction": refused("vinfer does not use predicted outputs: leave it out"),
    "web_search_options": refused("vinfer does not search the web: leave it out"),
}

COMPLETION_OTHERS: Mapping[str, FieldRule] = {
    **_OF_SAMPLING,
    **_foreign(foreign.SAMPLING, foreign.COMPLETION),
    "suffix": refused("vinfer does not fill in the middle: leave it out", ""),
}

_STATELESS = "vinfer keeps nothing between requests: send the whole conversation as input"
_OPENAIS_CACHE = "it controls OpenAI's prompt cache: leave it out"

RESPONSES_OTHERS: Mapping[str, FieldRule] = {
    **_foreign(foreign.RESPONSES),
    **_OPENAIS,
    "prompt_cache_retention": ACCEPTED,
    "client_metadata": ACCEPTED,
    "previous_response_id": refused(_STATELESS),
    "conversation": refused(_STATELESS),
    "prompt": refused("vinfer keeps no prompts: send instructions and input"),
    "background": refused("an answer is returned at once or as a stream: leave it out", False),
    "background_options": refused("an answer is returned at once or as a stream: leave it out", {}),
    "top_logprobs": refused("this route returns no logprobs: use /v1/chat/completions", 0),
    "truncation": refused("an input that is too long is refused, never cut: leave it out", "disabled"),
    "context_management": refused("an input is never changed: leave it out", []),
    "max_tool_calls": refused("it limits OpenAI's own tools, which vinfer does not have: leave it out"),
    "prompt_cache_options": refused(_OPENAIS_CACHE, {}),
    "moderation": refused("vinfer does not moderate: leave it out"),
    "access_programs": refused("it only concerns OpenAI's own models: leave it out", {}),
    "image": refused("vinfer has no options for images: leave it out", {}),
}

EMBEDDING_OTHERS: Mapping[str, FieldRule] = {**_foreign(foreign.EMBEDDING), "user": ACCEPTED}

_ONE_OF_BOTH = "prompt and messages exclude each other: send one of them"

TOKENIZE_TEXT_OTHERS: Mapping[str, FieldRule] = {"messages": refused(_ONE_OF_BOTH)}

TOKENIZE_MESSAGES_OTHERS: Mapping[str, FieldRule] = {
    "prompt": refused(_ONE_OF_BOTH),
    "add_special_tokens": refused("the chat template writes a prompt's special tokens: leave it out", False),
    # A conversation becomes the prompt that the chat route makes of it, so these are treated as there.
    "chat_template": CHAT_OTHERS["chat_template"],
    "media_io_kwargs": CHAT_OTHERS["mm_processor_kwargs"],
    "mm_processor_kwargs": CHAT_OTHERS["mm_processor_kwargs"],
}


def applied_fields(
    body: Mapping[str, Any], rules: Mapping[str, FieldRule], unknown: Literal["refuse", "ignore"]
) -> dict[str, Any]:
    """Return the fields that are applied; null counts as left out.

    Raises:
        RequestError: a field is refused, or it is unknown and unknown fields are refused.
    """
    applied = {}
    for key, value in body.items():
        rule = rules.get(key)
        if rule is None:
            if unknown == "refuse":
                raise RequestError(_unknown_message(key, rules), param=key[:128])
        elif value is None:
            continue
        elif rule.treatment is Treatment.ACCEPTED:
            _check_small(key, value)
        elif rule.treatment is Treatment.APPLIED:
            applied[key] = value
        elif rule.treatment is Treatment.ALIAS:
            if body.get(rule.reason, value) not in (None, value):
                raise RequestError(f"{key} is another name of {rule.reason}: send one of them", param=key)
            applied[rule.reason] = value
        # `==` alone would let 0 pass for False and vice versa.
        elif not any(type(value) is type(neutral) and value == neutral for neutral in rule.neutral):
            raise RequestError(f"{key}: {rule.reason}", param=key)
    return applied


def _check_small(key: str, value: Any) -> None:
    """Refuse a value that nobody sends for what it says and that costs memory and time all the same.

    Raises:
        RequestError: names the field.
    """
    num_left = MAX_ACCEPTED_VALUES
    stack = [value]
    while stack:
        here = stack.pop()
        inner = [*here.keys(), *here.values()] if isinstance(here, dict) else here
        num_left -= max(len(inner), 1) if isinstance(inner, (list, str)) else 1
        if num_left < 0:
            raise RequestError(
                f"{key} has no effect, and has more than {MAX_ACCEPTED_VALUES} characters and values: "
                "shorten it or leave it out",
                param=key,
            )
        if isinstance(inner, list):
            stack += inner


def used_aliases(body: Mapping[str, Any], rules: Mapping[str, FieldRule]) -> dict[str, str]:
    """Return the aliases that a body uses, by the applied field that each stands for."""
    return {
        rules[key].reason: key for key in body if key in rules and rules[key].treatment is Treatment.ALIAS
    }


def _unknown_message(key: str, rules: Mapping[str, FieldRule]) -> str:
    known = [name for name, rule in rules.items() if rule.treatment is Treatment.APPLIED]
    near = difflib.get_close_matches(key[:64], known, n=1)
    next_move = f"did you mean {near[0]}?" if near else "leave it out"
    return f"{printable(key)} is not a field of this route: {next_move}"
