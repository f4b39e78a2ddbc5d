"""Cases of tools and of chat template variables in requests: exact prompts, and constrained calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prompt_cases import CONVERSATIONS, USER, check_prompt
from routes import Route
from sampling_cases import GREEDY
from tiny_server import EOS_ID, MODEL, OTHER

from vinfer.text.tool_calls.formats import HERMES, LLAMA3_JSON

Case = Callable[[Route], None]

CHOICE_OF_TWO = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
WRITTEN_CHOICE = '{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}'
NO_ARGUMENTS = '{"type": "object", "properties": {}}'
END = "user: hi|assistant: "


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def offered(tools: list[dict[str, Any]], text: str) -> Case:
    """Return the case of a part of a tool that the template shows."""

    def check(route: Route) -> None:
        check_prompt(route, f"{text}|{END}", messages=[USER], tools=tools)

    return check


def refused(route: Route, **fields: Any) -> str:
    path, _ = CONVERSATIONS[route.form]
    param: str = route.talk.refusal(path, {"model": MODEL, "messages": [USER], **fields})["param"]
    return param


def check_tool_type(route: Route) -> None:
    offered([tool("f")], f"function f  {NO_ARGUMENTS}")(route)
    assert refused(route, tools=[{**tool("f"), "type": "custom"}]) == "tools[0].type"


def check_tool_strict(route: Route) -> None:
    """It changes no prompt; if it is true, text is valid UTF-8, which this model's text is not otherwise."""
    offered([tool("f", strict=False)], f"function f  {NO_ARGUMENTS}")(route)
    assert refused(route, tools=[tool("f", strict="yes")]) == "tools[0].function.strict"


def check_template_kwargs(route: Route) -> None:
    for value in (True, False):
        check_prompt(
            route, f"thinking={value}|{END}", messages=[USER], chat_template_kwargs={"enable_thinking": value}
        )
    assert refused(route, chat_template_kwargs={"other": 1}) == "chat_template_kwargs.other"


def check_reasoning_effort(route: Route) -> None:
    check_prompt(route, f"effort=high|{END}", messages=[USER], reasoning_effort="high")
    assert refused(route, reasoning_effort="endless") == "reasoning_effort"


TOOLS = [tool("add", parameters=CHOICE_OF_TWO), tool("stop")]
OFFERED = f"function add  {WRITTEN_CHOICE}|function stop  {NO_ARGUMENTS}|{END}"
CALLS = {"add": [("add", '{"a": 1}'), ("add", '{"a": 2}')], "stop": [("stop", "{}")]}


def check_calls(
    route: Route, allowed: Sequence[Sequence[tuple[str, str]]], num_tokens: int = 200, **fields: Any
) -> list[tuple[str, str]]:
    """Check that the model makes the likeliest of the allowed calls; return them."""
    bias = {"logit_bias": {str(EOS_ID): -100.0}}
    asked = {**GREEDY, **bias, "max_tokens": num_tokens}
    texts = [HERMES.written(calls) for calls in allowed]
    expected = route.expected.answer(route.talk.ids(OFFERED), asked, texts=texts)
    body = route.body({**asked, "messages": [USER], "tools": TOOLS, **fields})
    (choice,) = route.talk.post(route.path, body)["choices"]
    assert route.tokens(choice["logprobs"]) == expected.ids
    if expected.finish_reason == "stop":
        assert choice["finish_reason"] == "tool_calls"
    calls = choice["message"]["tool_calls"]
    assert len({call["id"] for call in calls}) == len(calls)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def check_tool_choice(route: Route) -> None:
    check_prompt(route, END, messages=[USER], tools=TOOLS, tool_choice="none")
    check_prompt(route, OFFERED, messages=[USER], tools=TOOLS, tool_choice="auto")
    allowed = [[call] for calls in CALLS.values() for call in calls]
    assert check_calls(route, allowed, tool_choice="required", parallel_tool_calls=False) in allowed
    assert refused(route, tools=TOOLS, tool_choice="any") == "tool_choice"


def check_named_tool(route: Route) -> None:
    for name, calls in CALLS.items():
        allowed = [[call] for call in calls]
        named = {"type": "function", "function": {"name": name}}
        assert check_calls(route, allowed, tool_choice=named) in allowed
    named = {"type": "function", "function": {"name": "none"}}
    assert refused(route, tools=TOOLS, tool_choice=named) == "tool_choice.function.name"


def check_parallel_calls(route: Route) -> None:
    """If the model avoids the end token, it goes on calling, or must end after one call."""
    (call,) = CALLS["stop"]
    two = len(route.talk.ids(HERMES.written([call, call])))
    only = {"tools": TOOLS[1:], "tool_choice": "required"}
    prompt = f"function stop  {NO_ARGUMENTS}|{END}"
    check_prompt(route, prompt, messages=[USER], tools=TOOLS[1:])
    for parallel, calls in ((True, [call, call]), (False, [call])):
        body = {
            **GREEDY,
            "messages": [USER],
            "max_tokens": two,
            "logit_bias": {str(EOS_ID): -100.0},
            "parallel_tool_calls": parallel,
            **only,
        }
        (choice,) = route.talk.post(route.path, route.body(body))["choices"]
        made = choice["message"]["tool_calls"]
        assert [(one["function"]["name"], one["function"]["arguments"]) for one in made] == calls


def check_strict_calls(route: Route) -> None:
    """A model biased to braces begins a call if its format begins with one; `strict` constrains the rest."""
    check_tool_strict(route)
    brace, *_ = route.talk.ids("{")
    asked = {**GREEDY, "max_tokens": 100, "logit_bias": {str(brace): 100.0, str(EOS_ID): -100.0}}
    prompt = route.talk.ids(OFFERED)
    calls = [call for of_tool in CALLS.values() for call in of_tool]
    for strict, texts in ((True, [LLAMA3_JSON.written([call]) for call in calls]), (False, [])):
        tools = [{**one, "function": {**one["function"], "strict": strict}} for one in TOOLS]
        body = {
            **asked,
            "model": OTHER,
            "messages": [USER],
            "tools": tools,
            "tool_choice": "auto",
            "parallel_tool_calls": False,
        }
        (choice,) = route.talk.post(route.path, route.body(body))["choices"]
        expected = route.expected.answer(prompt, asked, texts=texts)
        assert route.tokens(choice["logprobs"]) == expected.ids
        assert choice["finish_reason"] == ("tool_calls" if strict else "length")
        made = choice["message"].get("tool_calls", [])
        assert [(one["function"]["name"], one["function"]["arguments"]) in calls for one in made] == [
            True
        ] * strict


TEMPLATE_CASES: Mapping[str, Case] = {
    "tools.type": check_tool_type,
    "tools.function.name": offered(
        [tool("one"), tool("two")], f"function one  {NO_ARGUMENTS}|function two  {NO_ARGUMENTS}"
    ),
    "tools.function.description": offered(
        [tool("f", description="Adds.")], f"function f Adds. {NO_ARGUMENTS}"
    ),
    "tools.function.parameters": offered(
        [tool("f", parameters=CHOICE_OF_TWO)], f"function f  {WRITTEN_CHOICE}"
    ),
    "tools.function.strict": check_tool_strict,
    "chat_template_kwargs": check_template_kwargs,
    "reasoning_effort": check_reasoning_effort,
}
TOOL_CASES: dict[str, Mapping[str, Case]] = {
    "ChatFields": {
        **TEMPLATE_CASES,
        "tools.function.strict": check_strict_calls,
        "tool_choice.type": check_tool_choice,
        "tool_choice.function.name": check_named_tool,
        "parallel_tool_calls": check_parallel_calls,
    },
    "TokenizeMessages": TEMPLATE_CASES,
}
