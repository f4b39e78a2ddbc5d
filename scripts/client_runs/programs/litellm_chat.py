"""LiteLLM: whole and streamed answers, and three turns whose messages are sent back as they came.

python -m client_runs.programs.litellm_chat URL
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from client_runs.questions import MESSAGES, WEATHER_TOOL
from client_runs.raw import MODEL, RawServer
from client_runs.rows import expect_equal, run_checks
from client_runs.turns import CITIES, MAX_TOKENS, NAMED, PlainConversation, question, result

# Prices of models are not asked for.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm


def _asked(raw: RawServer) -> dict[str, Any]:
    return {
        "model": f"openai/{MODEL}",
        "api_base": f"{raw.url}/v1",
        "api_key": "unused",
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "num_retries": 0,
    }


def whole(raw: RawServer) -> str:
    text = litellm.completion(**_asked(raw), messages=MESSAGES).choices[0].message.content
    expect_equal(text, raw.chat(messages=MESSAGES, max_tokens=MAX_TOKENS)["message"]["content"])
    return str(text)


def streamed(raw: RawServer) -> str:
    chunks = list(litellm.completion(**_asked(raw), messages=MESSAGES, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    expect_equal(text, raw.chat(messages=MESSAGES, max_tokens=MAX_TOKENS)["message"]["content"])
    return f"{len(chunks)} chunks"


def _three_turns(is_streamed: bool) -> Callable[[RawServer], str]:
    def ask(raw: RawServer, **asked: Any) -> Any:
        answer = litellm.completion(**_asked(raw), **asked, stream=is_streamed)
        if is_streamed:
            answer = litellm.stream_chunk_builder(list(answer), messages=asked["messages"])
        return answer.choices[0].message

    def check(raw: RawServer) -> str:
        messages: list[Any] = []
        plain = PlainConversation()
        for city in CITIES:
            messages.append({"role": "user", "content": question(city)})
            called = ask(raw, messages=messages, tools=[WEATHER_TOOL], tool_choice=NAMED)
            (call,) = called.tool_calls
            messages += [called, {"role": "tool", "tool_call_id": call.id, "content": result(city)}]
            plain.add_call(city, call.function.arguments)
            answer = ask(raw, messages=messages, tools=[WEATHER_TOOL], tool_choice="none")
            messages.append(answer)
            plain.add_answer(raw, answer.content)
        return plain.remark()

    return check


CHECKS: dict[str, Callable[[RawServer], str]] = {
    "`completion`": whole,
    "`completion`, streamed": streamed,
    "three turns with tools, messages sent back": _three_turns(is_streamed=False),
    "three turns with tools, streamed messages sent back": _three_turns(is_streamed=True),
}


def main(url: str) -> None:
    # It would print to standard output, which is for rows.
    litellm.suppress_debug_info = True
    run_checks("litellm", CHECKS, RawServer(url))


if __name__ == "__main__":
    main(sys.argv[1])
