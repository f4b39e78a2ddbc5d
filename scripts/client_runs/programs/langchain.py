"""langchain-openai: answers, streams, structured output, and a tool call with its result returned.

python -m client_runs.programs.langchain URL
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from client_runs.questions import (
    CITY_REQUEST,
    MESSAGES,
    QUESTION,
    WEATHER_MESSAGES,
    WEATHER_NAME,
    WEATHER_QUESTION,
    WEATHER_RESULT,
    WEATHER_TOOL,
    City,
    expect_weather_call,
)
from client_runs.raw import MODEL, RawServer
from client_runs.rows import expect_equal, run_checks
from client_runs.turns import CITIES, MAX_TOKENS, PlainConversation, question, result


def invoke(model: ChatOpenAI, raw: RawServer) -> str:
    text = model.invoke(QUESTION).content
    expect_equal(text, raw.chat(messages=MESSAGES)["message"]["content"])
    return str(text)


def stream(model: ChatOpenAI, raw: RawServer) -> str:
    chunks = list(model.stream(QUESTION))
    text = "".join(str(chunk.content) for chunk in chunks)
    expect_equal(text, raw.chat(messages=MESSAGES)["message"]["content"])
    return f"{len(chunks)} chunks"


def _structured(method: Any) -> Callable[[ChatOpenAI, RawServer], str]:
    def check(model: ChatOpenAI, raw: RawServer) -> str:
        del raw
        city = model.with_structured_output(City, method=method).invoke(CITY_REQUEST)
        assert isinstance(city, City)
        return repr(city)

    return check


def round_trip(model: ChatOpenAI, raw: RawServer) -> str:
    called = model.bind_tools([WEATHER_TOOL], tool_choice=WEATHER_NAME).invoke(WEATHER_QUESTION)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    expect_weather_call(call["name"], call["args"])
    result = ToolMessage(WEATHER_RESULT, tool_call_id=call["id"])
    told = [HumanMessage(WEATHER_QUESTION), called, result]
    text = model.bind_tools([WEATHER_TOOL], tool_choice="none").invoke(told).content
    (raw_call,) = raw.chat(
        messages=WEATHER_MESSAGES,
        tools=[WEATHER_TOOL],
        tool_choice={"type": "function", "function": {"name": WEATHER_NAME}},
    )["message"]["tool_calls"]
    messages = [
        *WEATHER_MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [raw_call]},
        {"role": "tool", "tool_call_id": raw_call["id"], "content": WEATHER_RESULT},
    ]
    expected = raw.chat(messages=messages, tools=[WEATHER_TOOL], tool_choice="none")
    expect_equal(text, expected["message"]["content"])
    assert text
    return f"{call['args']}, then {text!r}"


def _three_turns(is_streamed: bool) -> Callable[[ChatOpenAI, RawServer], str]:
    def ask(model: ChatOpenAI, messages: list[Any], tool_choice: str) -> Any:
        bound = model.bind_tools([WEATHER_TOOL], tool_choice=tool_choice).bind(max_tokens=MAX_TOKENS)
        if not is_streamed:
            return bound.invoke(messages)
        first, *rest = bound.stream(messages)
        return functools.reduce(operator.add, rest, first)

    def check(model: ChatOpenAI, raw: RawServer) -> str:
        messages: list[Any] = []
        plain = PlainConversation()
        for city in CITIES:
            messages.append(HumanMessage(question(city)))
            called = ask(model, messages, WEATHER_NAME)
            (call,) = called.tool_calls
            messages += [called, ToolMessage(result(city), tool_call_id=call["id"])]
            plain.add_call(city, call["args"])
            answer = ask(model, messages, "none")
            messages.append(answer)
            plain.add_answer(raw, answer.content)
        return plain.remark()

    return check


CHECKS: dict[str, Callable[[ChatOpenAI, RawServer], str]] = {
    "`invoke`": invoke,
    "`stream`": stream,
    "`with_structured_output`, a pydantic model by `json_schema`": _structured("json_schema"),
    "`with_structured_output`, a pydantic model by `function_calling`": _structured("function_calling"),
    "tool round trip, `bind_tools` with a named `tool_choice`": round_trip,
    "three turns with tools, messages of `invoke` sent back": _three_turns(is_streamed=False),
    "three turns with tools, messages of `stream` sent back": _three_turns(is_streamed=True),
}


def main(url: str) -> None:
    model = ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="unused", temperature=0, max_retries=0)
    run_checks("langchain-openai", CHECKS, model, RawServer(url))


if __name__ == "__main__":
    main(sys.argv[1])
