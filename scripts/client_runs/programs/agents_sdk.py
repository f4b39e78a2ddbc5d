"""The OpenAI Agents SDK: an agent with a tool, three turns long, over chat completions and responses.

python -m client_runs.programs.agents_sdk URL
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from client_runs.raw import MODEL
from client_runs.rows import expect_equal, run_checks
from client_runs.turns import CITIES, MAX_TOKENS, question, result


def _three_turns(kind: Any) -> Callable[[str], str]:
    def check(url: str) -> str:
        asked: list[str] = []

        @function_tool(name_override="get_weather")
        def get_weather(city: str, days: int) -> str:
            """Weather forecast of a city."""
            asked.append(f"{city}, {days}")
            return result(city)

        settings = ModelSettings(
            temperature=0, max_tokens=MAX_TOKENS, tool_choice="required", parallel_tool_calls=False
        )
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        # After the first call of a run the agent's own choice is `auto`.
        agent = Agent(name="weather", model=kind(MODEL, client), tools=[get_weather], model_settings=settings)
        items: list[Any] = []
        said = ""
        for city in CITIES:
            before = len(asked)
            run = Runner.run_sync(agent, [*items, {"role": "user", "content": question(city)}], max_turns=8)
            assert len(asked) > before, "the tool was not called"
            items, said = run.to_input_list(), run.final_output
        expect_equal(sum(item.get("role") == "user" for item in items), len(CITIES))
        assert said
        return f"{len(items)} items, {len(asked)} calls, then {said[:60]!r}"

    return check


CHECKS: dict[str, Callable[[str], str]] = {
    "three turns with tools, chat completions": _three_turns(OpenAIChatCompletionsModel),
    "three turns with tools, responses": _three_turns(OpenAIResponsesModel),
}


def main(url: str) -> None:
    set_tracing_disabled(True)
    run_checks("openai-agents", CHECKS, url)


if __name__ == "__main__":
    main(sys.argv[1])
