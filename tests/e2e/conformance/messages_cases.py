"""Cases of `/v1/messages` and its token count: the prompt's exact length, and the reference's answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from answer_cases import OF_SCHEMA, SCHEMA
from image_cases import IMAGES, NUM_TOKENS, QUESTION, data_url
from PIL import Image
from responses_cases import of_completion
from routes import PROMPT, Route
from tiny.vision_models import LLAVA
from tiny_server import EOS_ID, MAX_MODEL_LEN, MODEL, OTHER, SEEING, THINKING, in_pieces
from tool_cases import CALLS, CHOICE_OF_TWO, NO_ARGUMENTS, OFFERED, WRITTEN_CHOICE

from vinfer.text.tool_calls.formats import HERMES

Case = Callable[[Route], None]
Json = dict[str, Any]

PATH = "/v1/messages"
COUNT_PATH = f"{PATH}/count_tokens"
GREEDY = {"temperature": 0, "max_tokens": 10}
DRAWN = {"temperature": 1.0, "seed": 7, "max_tokens": 10}
TURN = {"role": "user", "content": PROMPT}
USER = {"role": "user", "content": "hi"}
END = "user: hi|assistant: "


def is_count(route: Route) -> bool:
    return route.form == "CountMessagesFields"


def asked(route: Route, **fields: Any) -> Json:
    return route.talk.post(PATH, {"model": MODEL, "messages": [TURN], **fields})


def refused(route: Route, **fields: Any) -> str:
    """Return the field that a refusal names."""
    body = {"model": MODEL, "messages": [TURN], **fields}
    path = COUNT_PATH if is_count(route) else PATH
    param: str = route.talk.refusal(path, body if is_count(route) else {**GREEDY, **body})["param"]
    return param


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text of a message, which has at most one block."""
    texts = [block["text"] for block in message["content"]]
    assert len(texts) <= 1
    return "".join(texts)


def check_answer(
    route: Route,
    fields: Mapping[str, Any] = GREEDY,
    *,
    prompt: str = f"user: {PROMPT}|assistant: ",
    texts: Collection[str] = (),
    **others: Any,
) -> str:
    """Check the length of the prompt and, unless tokens are only counted, the answer; return its text.

    Args:
        fields: sampling fields.
        texts: all texts that a form allows.
        others: fields that the reference does not know.
    """
    ids = route.talk.ids(prompt)
    if is_count(route):
        body = {"model": MODEL, "messages": [TURN], **others}
        assert route.talk.post(COUNT_PATH, body) == {"input_tokens": len(ids)}
        return ""
    expected = route.expected.answer(ids, of_completion(fields), texts=texts)
    message = asked(route, **fields, **others)
    has_ended = expected.finish_reason == "stop"
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(ids)
    assert usage["output_tokens"] == len(expected.ids) + has_ended
    assert message["stop_reason"] == ("end_turn" if has_ended else "max_tokens")
    assert text_of(message) == expected.text
    return expected.text


def shown(messages: list[Json], text: str, **fields: Any) -> Case:
    """Return the case of a part of a conversation that the template shows."""

    def check(route: Route) -> None:
        check_answer(route, prompt=f"{text}|assistant: ", messages=messages, **fields)

    return check


SAID: Json = {"type": "text", "text": "so"}
USE: Json = {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}}
RESULT: Json = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "3"}]}
THOUGHT: Json = {"type": "thinking", "thinking": "hm", "signature": "EqQB"}
REDACTED: Json = {"type": "redacted_thinking", "data": "secret"}
CALLED_TEXT = 'user: hi|assistant: so c1 function add{"a": 1}'
RESULT_TEXT = f"{CALLED_TEXT}|tool: 3 tool_call_id=c1"


def called(use: Json = USE, *results: Json) -> list[Json]:
    return [
        USER,
        {"role": "assistant", "content": [SAID, use]},
        {"role": "user", "content": list(results) or [RESULT]},
    ]


def thought(*blocks: Json) -> list[Json]:
    return [USER, {"role": "assistant", "content": [*blocks, SAID]}, USER]


THOUGHT_TEXT = "user: hi|assistant: so reasoning_content=hm|user: hi"


def check_role(route: Route) -> None:
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    shown(turns, "system: system|user: user|assistant: assistant|user: user")(route)
    assert refused(route, messages=[{"role": "tool", "content": "x"}]) == "messages[0].role"


def check_block_type(route: Route) -> None:
    shown(called(), RESULT_TEXT)(route)
    shown(thought(THOUGHT, REDACTED), THOUGHT_TEXT)(route)
    bad = [{"role": "user", "content": [{"type": "document", "source": {}}]}]
    assert refused(route, messages=bad) == "messages[0].content[0].type"
    assert refused(route, messages=[{"role": "user", "content": [USE]}]) == "messages[0].content[0].type"


def check_text(route: Route) -> None:
    blocks = [{"type": "text", "text": text} for text in ("a", "b")]
    shown([{"role": "user", "content": "Gruß <s>"}], "user: Gruß <s>")(route)
    shown([{"role": "user", "content": blocks}], "user: a\nb")(route)


def check_result_type(route: Route) -> None:
    for content in ("3", RESULT["content"]):
        shown(called(USE, {**RESULT, "content": content}), RESULT_TEXT)(route)
    bad = {**RESULT, "content": [THOUGHT]}
    assert refused(route, messages=called(USE, bad)) == "messages[2].content[0].content[0].type"


def check_result_text(route: Route) -> None:
    blocks = [{"type": "text", "text": text} for text in ("3", "4")]
    shown(called(USE, {**RESULT, "content": blocks}), RESULT_TEXT.replace("3", "3\n4"))(route)


def check_call_id(route: Route) -> None:
    turns = called({**USE, "id": "x"}, {**RESULT, "tool_use_id": "x"})
    shown(turns, RESULT_TEXT.replace("c1", "x"))(route)


def check_is_error(route: Route) -> None:
    shown(called(USE, {**RESULT, "is_error": True}), RESULT_TEXT.replace("3", "Error: 3"))(route)
    shown(called(USE, {**RESULT, "is_error": False}), RESULT_TEXT)(route)


def without_effect(messages: Callable[[Any], list[Json]], text: str, *values: Any) -> Case:
    """Return the case of a key of the history that changes nothing."""

    def check(route: Route) -> None:
        for value in values:
            shown(messages(value), text)(route)

    return check


CACHE = ({"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}, None)


def source_of(image: Image.Image) -> Json:
    return {"type": "base64", "media_type": "image/png", "data": data_url(image).partition(",")[2]}


def check_seen(route: Route, image: Image.Image, turns: list[Json], text: tuple[str, str]) -> None:
    """Check what a model says to an image: the text before and after its tokens is known."""
    talk = route.talk
    ids = [*talk.ids(text[0]), *[LLAVA.image_token_id] * LLAVA.num_image_tokens, *talk.ids(text[1])]
    body = {"model": SEEING, "messages": turns}
    if is_count(route):
        assert talk.post(COUNT_PATH, body) == {"input_tokens": len(ids)}
        return
    tokens = route.expected.seen(ids, [image], num_tokens=NUM_TOKENS)
    assert EOS_ID not in tokens, "this image ends the answer: use another seed"
    answer = talk.text([token for token in tokens if token != LLAVA.image_token_id])
    assert text_of(talk.post(PATH, {**body, "temperature": 0, "max_tokens": NUM_TOKENS})) == answer


def check_source(route: Route) -> None:
    asked_about = ("USER: ", f"\n{QUESTION}ASSISTANT: ")
    for image in IMAGES:
        blocks = [{"type": "image", "source": source_of(image)}, {"type": "text", "text": QUESTION}]
        check_seen(route, image, [{"role": "user", "content": blocks}], asked_about)
    good = source_of(IMAGES[0])
    for source, path in (
        ({**good, "media_type": "image/bmp"}, "source.media_type"),
        ({**good, "data": ""}, "source.data"),
        ({"type": "file", "file_id": "f"}, "source.type"),
        ({"type": "url"}, "source.url"),
        ({"type": "url", "url": ""}, "source.url"),
    ):
        turns = [{"role": "user", "content": [{"type": "image", "source": source}]}]
        assert refused(route, model=SEEING, messages=turns) == f"messages[0].content[0].{path}"
    turns = [{"role": "user", "content": [{"type": "image", "source": good}]}]
    assert refused(route, messages=turns) == "messages[0].content[0].source.data"


def check_result_source(route: Route) -> None:
    """An image of a result becomes part of the user's turn; this model's template knows no tools."""
    image = IMAGES[0]
    result = {**RESULT, "content": [{"type": "image", "source": source_of(image)}]}
    turns = [USER, {"role": "assistant", "content": [USE]}]
    turns += [{"role": "user", "content": [result, {"type": "text", "text": QUESTION}]}]
    path = COUNT_PATH if is_count(route) else PATH
    limit = {} if is_count(route) else {"max_tokens": NUM_TOKENS, "temperature": 0}
    answer = route.talk.post(path, {"model": SEEING, "messages": turns, **limit})
    without = [*turns[:2], {"role": "user", "content": [{**RESULT, "content": []}, *turns[2]["content"][1:]]}]
    other = route.talk.post(path, {"model": SEEING, "messages": without, **limit})

    def num_tokens(found: Json) -> int:
        usage = found if is_count(route) else found["usage"]
        return sum(usage.get(key, 0) for key in ("input_tokens", "cache_read_input_tokens"))

    # The image's tokens, and the newline after them.
    assert num_tokens(answer) == num_tokens(other) + LLAVA.num_image_tokens + 1


BLOCK_CASES: Mapping[str, Case] = {
    "type": check_block_type,
    "text": check_text,
    "id": check_call_id,
    "name": shown(called({**USE, "name": "sub"}), RESULT_TEXT.replace("add", "sub")),
    "input": shown(called({**USE, "input": {}}), RESULT_TEXT.replace('"a": 1', "")),
    "tool_use_id": check_call_id,
    "caller": without_effect(
        lambda value: called({**USE, "caller": value}), RESULT_TEXT, {"type": "direct"}, None
    ),
    "content.type": check_result_type,
    "content.text": check_result_text,
    "content.cache_control": without_effect(
        lambda value: called(USE, {**RESULT, "content": [{**RESULT["content"][0], "cache_control": value}]}),
        RESULT_TEXT,
        *CACHE,
    ),
    **{f"content.source.{key}": check_result_source for key in ("type", "media_type", "data", "url")},
    "is_error": check_is_error,
    "thinking": shown(thought({**THOUGHT, "thinking": "ah"}), THOUGHT_TEXT.replace("hm", "ah")),
    "signature": without_effect(
        lambda value: thought({**THOUGHT, "signature": value}), THOUGHT_TEXT, "x", "", None
    ),
    "data": without_effect(
        lambda value: thought(THOUGHT, {**REDACTED, "data": value}), THOUGHT_TEXT, "x", ""
    ),
    "cache_control": without_effect(
        lambda value: called({**USE, "cache_control": value}, {**RESULT, "cache_control": value}),
        RESULT_TEXT,
        *CACHE,
    ),
    **{f"source.{key}": check_source for key in ("type", "media_type", "data", "url")},
}


def check_model(route: Route) -> None:
    if is_count(route):
        response = route.talk.http.post(COUNT_PATH, json={"model": "none", "messages": [TURN]})
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "not_found_error"
        check_answer(route)
        return
    for model in (MODEL, OTHER):
        message = asked(route, **GREEDY, model=model)
        assert message["model"] == model
        expected = route.expected.answer(route.talk.ids(f"user: {PROMPT}|assistant: "), GREEDY)
        assert text_of(message) == expected.text


def check_system(route: Route) -> None:
    prompt = f"system: be kind|user: {PROMPT}|assistant: "
    for system in ("be kind", [{"type": "text", "text": "be kind"}]):
        check_answer(route, prompt=prompt, system=system)
    blocks = [{"type": "text", "text": text} for text in ("be", "kind")]
    check_answer(route, prompt=prompt.replace("be kind", "be\nkind"), system=blocks)


def check_system_type(route: Route) -> None:
    check_system(route)
    assert refused(route, system=[{"type": "image", "source": {}}]) == "system[0].type"


def check_system_cache(route: Route) -> None:
    for value in CACHE:
        blocks = [{"type": "text", "text": "be kind", "cache_control": value}]
        check_answer(route, prompt=f"system: be kind|user: {PROMPT}|assistant: ", system=blocks)


def tool(name: str, schema: Any = None, **fields: Any) -> Json:
    return {"name": name, "input_schema": schema or {"type": "object", "properties": {}}, **fields}


TOOLS = [tool("add", CHOICE_OF_TWO), tool("stop")]


def offered(tools: list[Json], text: str, **fields: Any) -> Case:
    """Return the case of a part of a tool that the template shows."""

    def check(route: Route) -> None:
        check_answer(route, prompt=f"{text}{END}", messages=[USER], tools=tools, **fields)

    return check


PLAIN = f"function f  {NO_ARGUMENTS}|"


def option(name: str, neutral: Sequence[Any], wrong: Any) -> Case:
    """Return the case of a tool's field that prompts do not show.

    Args:
        neutral: values that change nothing.
        wrong: a value that is refused.
    """

    def check(route: Route) -> None:
        for value in neutral:
            offered([tool("f", **{name: value})], PLAIN)(route)
        if wrong is not None:
            assert refused(route, tools=[tool("f", **{name: wrong})]) == f"tools[0].{name}"

    return check


def made(route: Route, allowed: Sequence[Sequence[tuple[str, str]]], **fields: Any) -> list[tuple[str, Json]]:
    """Check that the model makes the likeliest of the allowed calls; return them."""
    sampled = {"temperature": 0, "max_tokens": 200}
    texts = [HERMES.written(calls) for calls in allowed]
    expected = route.expected.answer(route.talk.ids(OFFERED), sampled, texts=texts)
    assert expected.finish_reason == "stop"
    message = asked(route, **{"messages": [USER], "tools": TOOLS, **sampled, **fields})
    assert message["stop_reason"] == "tool_use"
    assert message["usage"]["output_tokens"] == len(expected.ids) + 1
    assert {block["type"] for block in message["content"]} == {"tool_use"}
    return [(block["name"], block["input"]) for block in message["content"]]


INPUTS = [("add", {"a": 1}), ("add", {"a": 2}), ("stop", {})]


def check_tool_choice(route: Route) -> None:
    offered(TOOLS, "", tool_choice={"type": "none"})(route)
    offered(TOOLS, OFFERED.removesuffix(END), tool_choice={"type": "auto"})(route)
    if not is_count(route):
        allowed = [[call] for calls in CALLS.values() for call in calls]
        choice = {"type": "any", "disable_parallel_tool_use": True}
        (call,) = made(route, allowed, tool_choice=choice)
        assert call in INPUTS
    assert refused(route, tools=TOOLS, tool_choice={"type": "required"}) == "tool_choice.type"


def check_named_tool(route: Route) -> None:
    for name, calls in CALLS.items():
        choice = {"type": "tool", "name": name}
        offered(TOOLS, OFFERED.removesuffix(END))(route)
        if not is_count(route):
            ((made_name, _),) = made(route, [[call] for call in calls], tool_choice=choice)
            assert made_name == name
    assert refused(route, tools=TOOLS, tool_choice={"type": "tool", "name": "x"}) == "tool_choice.name"
    assert refused(route, tools=TOOLS, tool_choice={"type": "tool"}) == "tool_choice.name"


def check_parallel_calls(route: Route) -> None:
    """After one call the model must end, or may go on, which needs more tokens than there are."""
    (call,) = CALLS["stop"]
    num_tokens = len(route.talk.ids(HERMES.written([call, call])))
    for is_disabled in (True, False):
        choice = {"type": "any", "disable_parallel_tool_use": is_disabled}
        if is_count(route):
            offered(TOOLS, OFFERED.removesuffix(END), tool_choice=choice)(route)
        else:
            fields = {"tools": TOOLS[1:], "tool_choice": choice, "max_tokens": num_tokens, "temperature": 0}
            message = asked(route, messages=[USER], **fields)
            texts = [HERMES.written([call] * num) for num in ((1,) if is_disabled else (1, 2, 3))]
            prompt = f"{PLAIN.replace('function f', 'function stop')}{END}"
            expected = route.expected.answer(route.talk.ids(prompt), of_completion(fields), texts=texts)
            assert len(message["content"]) == expected.text.count(HERMES.opening)
    wrong = {"type": "any", "disable_parallel_tool_use": "yes"}
    assert refused(route, tools=TOOLS, tool_choice=wrong) == "tool_choice.disable_parallel_tool_use"


def check_tool_strict(route: Route) -> None:
    """With strict tools text is valid UTF-8, which this model's text is not otherwise."""
    option("strict", (False, None), "yes")(route)
    if is_count(route):
        return
    fields = {"messages": [USER], "temperature": 0, "max_tokens": 40}
    free, constrained = (
        text_of(asked(route, **fields, tools=[tool("f", strict=strict)])) for strict in (False, True)
    )
    assert "\ufffd" in free
    # The answer may end inside a character.
    assert "\ufffd" not in constrained[:-1]


def check_thinking_type(route: Route) -> None:
    """The chat template of a model that reasons is told; one that does not may only be told so."""
    for how, text in (
        ({"type": "enabled", "budget_tokens": 1024}, "thinking=True|"),
        ({"type": "adaptive"}, "thinking=True|"),
        ({"type": "disabled"}, "thinking=False|"),
        (None, ""),
    ):
        check_answer(route, prompt=f"{text}{END}", messages=[USER], model=THINKING, thinking=how)
    for kind in ("adaptive", "disabled"):
        check_answer(route, thinking={"type": kind})
    assert refused(route, thinking={"type": "enabled", "budget_tokens": 1024}) == "thinking.type"


def check_budget(route: Route) -> None:
    for budget in (1, 100_000):
        how = {"type": "enabled", "budget_tokens": budget}
        check_answer(route, prompt=f"thinking=True|{END}", messages=[USER], model=THINKING, thinking=how)
    how = {"type": "enabled", "budget_tokens": 0}
    assert refused(route, model=THINKING, thinking=how) == "thinking.budget_tokens"


def check_display(route: Route) -> None:
    """An answer that begins inside of the reasoning shows it, or only its signature."""
    for display in ("summarized", "omitted", None):
        how = {"type": "adaptive", "display": display}
        check_answer(route, prompt=f"thinking=True|{END}", messages=[USER], model=THINKING, thinking=how)
        if not is_count(route):
            # The prompt opens the reasoning, so that all of the answer belongs to it.
            turns = [USER, {"role": "assistant", "content": "<think>"}]
            message = asked(route, messages=turns, model=THINKING, thinking=how, **GREEDY)
            prompt = "thinking=True|user: hi|assistant: <think>"
            text = route.expected.answer(route.talk.ids(prompt), GREEDY).text.strip()
            (block,) = message["content"]
            assert block["thinking"] == ("" if display == "omitted" else text)
            assert block["signature"] == hashlib.sha256(text.encode()).hexdigest()
    assert refused(route, thinking={"type": "adaptive", "display": "all"}) == "thinking.display"


def check_effort(route: Route) -> None:
    config = {"effort": "high"}
    check_answer(route, prompt=f"effort=high|{END}", messages=[USER], output_config=config)
    assert refused(route, output_config={"effort": "endless"}) == "output_config.effort"


FORMAT = {"type": "json_schema", "schema": SCHEMA}


def check_format(route: Route) -> None:
    """The model takes the likeliest tokens that the schema allows."""
    sampled = {**GREEDY, "max_tokens": 40}
    text = check_answer(route, sampled, texts=OF_SCHEMA, output_config={"format": FORMAT})
    assert is_count(route) or text in OF_SCHEMA
    assert refused(route, output_config={"format": {"type": "json_object"}}) == "output_config.format.type"


def changed(field: str, value: Any, fields: Mapping[str, Any] = DRAWN) -> Case:
    """Return the case of a field that changes the text: with it the text is NumPy's, without it another."""

    def check(route: Route) -> None:
        with_it = check_answer(route, {**fields, field: value})
        rest = {key: kept for key, kept in fields.items() if key != field}
        without = route.expected.answer(route.talk.ids(f"user: {PROMPT}|assistant: "), rest)
        assert with_it != without.text

    return check


def check_max_tokens(route: Route) -> None:
    """Agents ask for more tokens than there is room for: they get what fits, and the header says how many."""
    check_answer(route, {**DRAWN, "max_tokens": 4})
    room = MAX_MODEL_LEN - len(route.talk.ids(f"user: {PROMPT}|assistant: "))
    body = {"model": MODEL, "messages": [TURN], "temperature": 0, "max_tokens": MAX_MODEL_LEN}
    response = route.talk.http.post(PATH, json=body)
    assert response.headers["x-vinfer-max-tokens"] == str(room)
    message = response.json()
    assert message["usage"]["output_tokens"] <= room
    assert refused(route, max_tokens=0) == "max_tokens"


def check_stop_sequences(route: Route) -> None:
    """The text ends before the first of the strings, and the message names it."""
    fields = {**DRAWN, "max_tokens": 60}
    whole = route.expected.answer(route.talk.ids(f"user: {PROMPT}|assistant: "), fields).text
    stop = next(letter for letter in whole[1:] if letter.isascii() and letter != whole[0])
    message = asked(route, **fields, stop_sequences=["never", stop])
    assert text_of(message) == whole[: whole.index(stop)]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", stop)


def check_stream(route: Route) -> None:
    """The same text arrives in several events."""
    fields = {**DRAWN, "max_tokens": 30}
    whole = asked(route, **fields)
    body = {"model": MODEL, "messages": [TURN], **fields}

    def deltas(events: list[Any]) -> list[str]:
        return [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]

    events = in_pieces(lambda: route.talk.named_events(PATH, body), deltas)
    assert "".join(deltas(events)) == text_of(whole) == check_answer(route, fields)
    kinds = [event["type"] for event in events if event["type"] != "content_block_delta"]
    blocks = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", *blocks, "message_delta", "message_stop"]
    assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"]
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


_PROMPT_CASES: Mapping[str, Case] = {
    **{f"messages.content.{path}": case for path, case in BLOCK_CASES.items()},
    "messages.role": check_role,
    "model": check_model,
    "system.type": check_system_type,
    "system.text": check_system,
    "system.cache_control": check_system_cache,
    "tools.type": option("type", ("custom", None), "web_search_20250305"),
    "tools.name": offered(
        [tool("one"), tool("two")], f"function one  {NO_ARGUMENTS}|function two  {NO_ARGUMENTS}|"
    ),
    "tools.description": offered([tool("f", description="Sums up.")], f"function f Sums up. {NO_ARGUMENTS}|"),
    "tools.input_schema": offered([tool("f", CHOICE_OF_TWO)], f"function f  {WRITTEN_CHOICE}|"),
    "tools.strict": check_tool_strict,
    "tools.cache_control": option("cache_control", CACHE, None),
    "tools.eager_input_streaming": option("eager_input_streaming", (True, False, None), "yes"),
    "tools.input_examples": option("input_examples", ([], None), [{"a": 1}]),
    "tools.defer_loading": option("defer_loading", (False, None), True),
    "tools.allowed_callers": option("allowed_callers", (["direct"], None), ["code"]),
    "tool_choice.type": check_tool_choice,
    "tool_choice.name": check_named_tool,
    "tool_choice.disable_parallel_tool_use": check_parallel_calls,
    "thinking.type": check_thinking_type,
    "thinking.budget_tokens": check_budget,
    "thinking.display": check_display,
    "output_config.effort": check_effort,
    "output_config.format.type": check_format,
    "output_config.format.schema": check_format,
}
MESSAGES_CASES: dict[str, Mapping[str, Case]] = {
    "CountMessagesFields": _PROMPT_CASES,
    "MessagesFields": {
        **_PROMPT_CASES,
        "max_tokens": check_max_tokens,
        "stop_sequences": check_stop_sequences,
        "temperature": changed("temperature", 0.4),
        "top_p": changed("top_p", 0.6),
        "top_k": changed("top_k", 2),
        "seed": changed("seed", -8),
        "stream": check_stream,
    },
}


def check_accepted(route: Route, accepted: Collection[str]) -> None:
    """Check that fields without effect have none."""
    check_answer(route, DRAWN, **{key: {"any": [1, "thing"]} for key in accepted})
