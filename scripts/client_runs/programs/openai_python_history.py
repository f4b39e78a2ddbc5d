"""openai-python: what `create`, `stream` and `parse` hand back is sent back as it came, for three turns.

python -m client_runs.programs.openai_python_history URL
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import openai
from openai import OpenAI

from client_runs.questions import WEATHER_NAME, WEATHER_SCHEMA, WEATHER_TOOL
from client_runs.raw import MODEL, RawServer
from client_runs.rows import run_checks
from client_runs.turns import CITIES, MAX_TOKENS, NAMED, PlainConversation, question, result

STRICT_TOOL: Any = {
    "type": "function",
    "function": {**WEATHER_TOOL["function"], "strict": True, "parameters": WEATHER_SCHEMA},
}


def _created(client: OpenAI, **asked: Any) -> Any:
    return client.chat.completions.create(**asked).choices[0].message


def _streamed(client: OpenAI, **asked: Any) -> Any:
    with client.chat.completions.stream(**asked) as stream:
        return stream.get_final_completion().choices[0].message


def _parsed(client: OpenAI, **asked: Any) -> Any:
    return client.chat.completions.parse(**{**asked, "tools": [STRICT_TOOL]}).choices[0].message


def _chat(ask: Callable[..., Any]) -> Callable[[OpenAI, RawServer], str]:
    def check(client: OpenAI, raw: RawServer) -> str:
        asked: Any = {"model": MODEL, "temperature": 0, "max_tokens": MAX_TOKENS, "tools": [WEATHER_TOOL]}
        messages: list[Any] = []
        plain = PlainConversation()
        for city in CITIES:
            messages.append({"role": "user", "content": question(city)})
            called = ask(client, **asked, messages=messages, tool_choice=NAMED)
            (call,) = called.tool_calls
            messages += [called, {"role": "tool", "tool_call_id": call.id, "content": result(city)}]
            plain.add_call(city, call.function.arguments)
            answer = ask(client, **asked, messages=messages, tool_choice="none")
            messages.append(answer)
            plain.add_answer(raw, answer.content)
        return plain.remark()

    return check


def _responses(is_streamed: bool) -> Callable[[OpenAI, RawServer], str]:
    def ask(client: OpenAI, **asked: Any) -> Any:
        if not is_streamed:
            return client.responses.create(**asked)
        with client.responses.stream(**asked) as stream:
            return stream.get_final_response()

    def check(client: OpenAI, raw: RawServer) -> str:
        tool = {"type": "function", **WEATHER_TOOL["function"], "strict": False}
        asked: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": MAX_TOKENS, "tools": [tool]}
        items: list[Any] = []
        plain = PlainConversation()
        for city in CITIES:
            items.append({"role": "user", "content": question(city)})
            named = {"type": "function", "name": WEATHER_NAME}
            called = ask(client, **asked, input=items, tool_choice=named).output
            (call,) = called
            items += [
                *called,
                {"type": "function_call_output", "call_id": call.call_id, "output": result(city)},
            ]
            plain.add_call(city, call.arguments)
            answer = ask(client, **asked, input=items, tool_choice="none")
            items += answer.output
            plain.add_answer(raw, answer.output_text)
        return plain.remark()

    return check


CHECKS: dict[str, Callable[[OpenAI, RawServer], str]] = {
    "three turns with tools, messages of `create` sent back": _chat(_created),
    "three turns with tools, messages of `stream` sent back": _chat(_streamed),
    "three turns with tools, messages of `parse` sent back": _chat(_parsed),
    "three turns with tools, items of `responses.create` sent back": _responses(is_streamed=False),
    "three turns with tools, items of `responses.stream` sent back": _responses(is_streamed=True),
}


def main(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        run_checks("openai", CHECKS, client, RawServer(url))


if __name__ == "__main__":
    main(sys.argv[1])
