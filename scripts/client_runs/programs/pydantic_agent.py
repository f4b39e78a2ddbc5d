"""pydantic-ai: an agent that answers, fills in a type, and calls a Python tool before it answers.

python -m client_runs.programs.pydantic_agent URL
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

from annotated_types import Interval
from pydantic_ai import Agent, RunContext
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.output import NativeOutput
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from client_runs.questions import (
    CITY_REQUEST,
    MESSAGES,
    QUESTION,
    WEATHER_NAME,
    WEATHER_QUESTION,
    WEATHER_RESULT,
    City,
)
from client_runs.raw import MODEL, RawServer
from client_runs.rows import expect_equal, run_checks
from client_runs.turns import CITIES, MAX_TOKENS, question, result


def answer(model: OpenAIChatModel, raw: RawServer) -> str:
    text = Agent(model).run_sync(QUESTION).output
    expect_equal(text, raw.chat(messages=MESSAGES)["message"]["content"])
    return text


def output_type(model: OpenAIChatModel, raw: RawServer) -> str:
    del raw
    city = Agent(model, output_type=City, retries=0).run_sync(CITY_REQUEST).output
    assert isinstance(city, City)
    return repr(city)


def native_output(model: OpenAIChatModel, raw: RawServer) -> str:
    del raw
    city = Agent(model, output_type=NativeOutput(City), retries=0).run_sync(CITY_REQUEST).output
    assert isinstance(city, City)
    return repr(city)


def _settings(context: RunContext[None]) -> ModelSettings:
    """Force a call in the first step of a run, and forbid it in the next."""
    return ModelSettings(
        tool_choice="required" if context.run_step == 1 else "none",
        parallel_tool_calls=False,
        max_tokens=MAX_TOKENS,
    )


def round_trip(model: OpenAIChatModel, raw: RawServer) -> str:
    """Force a call in the first step and forbid it in the second; the agent runs the tool in between."""
    del raw
    asked = []

    agent = Agent(model, model_settings=_settings, retries=0)

    @agent.tool_plain(name=WEATHER_NAME)
    def get_weather(city: str, days: Annotated[int, Interval(ge=1, le=7)]) -> str:
        """Weather forecast of a city."""
        asked.append((city, days))
        return WEATHER_RESULT

    run = agent.run_sync(WEATHER_QUESTION)
    assert asked, "the tool was not called"
    expect_equal(run.usage.requests, 2)
    assert run.output
    return f"{asked}, then {run.output!r}"


def _three_turns(kind: Any) -> Callable[[OpenAIChatModel, RawServer], str]:
    def check(model: OpenAIChatModel, raw: RawServer) -> str:
        provider = OpenAIProvider(base_url=f"{raw.url}/v1", api_key="unused")
        own = kind(MODEL, provider=provider, settings=model.settings)
        agent = Agent(own, model_settings=_settings, retries=0)
        asked: list[str] = []

        @agent.tool_plain(name=WEATHER_NAME)
        def get_weather(city: str, days: Annotated[int, Interval(ge=1, le=7)]) -> str:
            """Weather forecast of a city."""
            asked.append(f"{city}, {days}")
            return result(city)

        history: list[Any] = []
        for city in CITIES:
            run = agent.run_sync(question(city), message_history=history)
            history = run.all_messages()
            expect_equal(run.usage.requests, 2)
        expect_equal(len(asked), len(CITIES))
        assert run.output
        return f"{len(history)} messages, {asked}, then {run.output[:60]!r}"

    return check


CHECKS: dict[str, Callable[[OpenAIChatModel, RawServer], str]] = {
    "`run_sync`": answer,
    "an `output_type`, filled in by a call": output_type,
    "an `output_type`, `NativeOutput`": native_output,
    "tool round trip, the first step with `tool_choice` `required`": round_trip,
    "three turns with tools, `message_history`": _three_turns(OpenAIChatModel),
    "three turns with tools, `message_history`, responses": _three_turns(OpenAIResponsesModel),
}


def main(url: str) -> None:
    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="unused")
    model = OpenAIChatModel(MODEL, provider=provider, settings=ModelSettings(temperature=0))
    run_checks("pydantic-ai-slim", CHECKS, model, RawServer(url))


if __name__ == "__main__":
    main(sys.argv[1])
