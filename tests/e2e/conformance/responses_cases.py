"""Cases of `/v1/responses`: the text shows which tokens were generated, and the prompt's ids decide it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from answer_cases import OF_SCHEMA, SCHEMA
from image_cases import IMAGES, ITEM_IMAGE_CASES, QUESTION, data_url
from routes import PROMPT, Route
from tiny.vision_models import LLAVA
from tiny_server import EOS_ID, MODEL, OTHER, OTHER_MAX_TOKENS, SEEING, in_pieces
from tool_cases import CALLS, CHOICE_OF_TWO, NO_ARGUMENTS, OFFERED, WRITTEN_CHOICE

from vinfer.text.tool_calls.formats import HERMES

Case = Callable[[Route], None]

PATH = "/v1/responses"
GREEDY = {"temperature": 0, "max_output_tokens": 10}
DRAWN = {"temperature": 1.0, "seed": 7, "max_output_tokens": 10}
USER = {"role": "user", "content": "hi"}
END = "user: hi|assistant: "


def asked(route: Route, **fields: Any) -> dict[str, Any]:
    return route.talk.post(PATH, {"model": MODEL, "input": PROMPT, **fields})


def refused(route: Route, **fields: Any) -> str:
    param: str = route.talk.refusal(PATH, {"model": MODEL, "input": PROMPT, **fields})["param"]
    return param


def text_of(response: Mapping[str, Any]) -> str:
    """Return the text of a response with one message."""
    (item,) = response["output"]
    text: str = item["content"][0]["text"]
    return text


def of_completion(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return sampling fields under the names that the reference knows."""
    return {"max_tokens" if key == "max_output_tokens" else key: value for key, value in fields.items()}


def check_answer(
    route: Route,
    fields: Mapping[str, Any],
    *,
    prompt: str = f"user: {PROMPT}|assistant: ",
    texts: Collection[str] = (),
    **others: Any,
) -> str:
    """Check that a response is the reference's answer to this prompt; return its text.

    Args:
        fields: sampling fields.
        texts: all texts that a form allows.
        others: fields that the reference does not know.
    """
    ids = route.talk.ids(prompt)
    expected = route.expected.answer(ids, of_completion(fields), texts=texts)
    response = asked(route, **fields, **others)
    has_ended = expected.finish_reason == "stop"
    assert response["usage"]["input_tokens"] == len(ids)
    assert response["usage"]["output_tokens"] == len(expected.ids) + has_ended
    assert response["status"] == ("completed" if has_ended else "incomplete")
    assert text_of(response) == expected.text
    return expected.text


def shown(items: list[dict[str, Any]], text: str) -> Case:
    """Return the case of a part of an item that the template shows."""

    def check(route: Route) -> None:
        check_answer(route, GREEDY, prompt=f"{text}|assistant: ", input=items)

    return check


def empty(item: dict[str, Any], path: str, text: str, nothing: Sequence[Any], something: Any) -> Case:
    """Return the case of a field that answers have and prompts do not: empty is accepted, a value refused.

    Args:
        item: the item without the field.
        path: path of the field in the item.
        nothing: values that are accepted.
    """
    *outer, key = path.split(".")

    def changed(value: Any) -> dict[str, Any]:
        if not outer:
            return {**item, key: value}
        (part,) = item[outer[0]]
        return {**item, outer[0]: [{**part, key: value}]}

    def check(route: Route) -> None:
        for value in nothing:
            shown([USER, changed(value)], f"user: hi|{text}")(route)
        inside = f"input[1].{outer[0]}[0]" if outer else "input[1]"
        assert refused(route, input=[USER, changed(something)]) == f"{inside}.{key}"

    return check


ANSWERED: dict[str, Any] = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "so"}],
}
CALL: dict[str, Any] = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}
OUTPUT: dict[str, Any] = {
    "type": "function_call_output",
    "call_id": "c1",
    "output": [{"type": "input_text", "text": "3"}],
}
THOUGHT: dict[str, Any] = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
CALLED_TEXT = 'user: hi|assistant: so c1 function add{"a": 1}'
OUTPUT_TEXT = f"{CALLED_TEXT}|tool: 3 tool_call_id=c1"


def check_item_type(route: Route) -> None:
    """Without it an item is a message; types that need stored state are refused."""
    shown([USER], "user: hi")(route)
    shown([{"type": "message", **USER}], "user: hi")(route)
    shown([USER, ANSWERED, CALL, OUTPUT], OUTPUT_TEXT)(route)
    assert refused(route, input=[USER, {"type": "item_reference", "id": "msg_1"}]) == "input[1].type"


def check_role(route: Route) -> None:
    roles = ("system", "developer", "user", "assistant")
    text = "|".join(f"{role}: {role}s" for role in roles)
    shown([{"role": role, "content": f"{role}s"} for role in roles], text)(route)


def check_part_type(route: Route) -> None:
    """Input and output text are parts of the same kind; reasoning has its own."""
    for kind in ("input_text", "output_text"):
        shown([{"role": "user", "content": [{"type": kind, "text": "one part"}]}], "user: one part")(route)
    file = {"type": "input_file", "file_id": "file-1"}
    assert refused(route, input=[{"role": "user", "content": [file]}]) == "input[0].content[0].type"
    wrong = {**THOUGHT, "content": [{"type": "input_text", "text": "x"}]}
    assert refused(route, input=[wrong]) == "input[0].content[0].type"


def check_part_text(route: Route) -> None:
    parts = [{"type": "input_text", "text": text} for text in ("a", "b")]
    shown(
        [{"role": "user", "content": "Gruß <s>"}, {"role": "user", "content": parts}],
        "user: Gruß <s>|user: a\nb",
    )(route)
    shown([USER, THOUGHT, ANSWERED], "user: hi|assistant: so reasoning_content=hm")(route)


def check_output_type(route: Route) -> None:
    shown([USER, ANSWERED, CALL, OUTPUT], OUTPUT_TEXT)(route)
    file = {"type": "input_file", "file_id": "file-1"}
    assert refused(route, input=[{**OUTPUT, "output": [file]}]) == "input[0].output[0].type"


def check_output_image(route: Route) -> None:
    """An image that a function returns becomes part of the user's turn, whatever its `detail`."""

    def num_tokens(*parts: dict[str, Any]) -> int:
        turn = {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}
        body = {"model": SEEING, "input": [USER, CALL, {**OUTPUT, "output": list(parts)}, turn]}
        num: int = route.talk.post(PATH, {**body, "max_output_tokens": 1})["usage"]["input_tokens"]
        return num

    image = {"type": "input_image", "image_url": data_url(IMAGES[0])}
    for details in ({}, {"detail": "auto"}, {"detail": "low"}, {"detail": "high"}):
        # The image's tokens, and the newline after them.
        assert num_tokens({**image, **details}) == num_tokens() + LLAVA.num_image_tokens + 1
    place = "input[0].output[0]"
    for fields, key in (({"detail": "fine"}, "detail"), ({"image_url": ""}, "image_url"), ({}, "image_url")):
        assert refused(route, input=[{**OUTPUT, "output": [{**image, **fields}]}]) == f"{place}.{key}"


def check_output_text(route: Route) -> None:
    for output in ("3", [{"type": "input_text", "text": "3"}]):
        shown([USER, ANSWERED, CALL, {**OUTPUT, "output": output}], OUTPUT_TEXT)(route)


def check_call_id(route: Route) -> None:
    items = [USER, ANSWERED, {**CALL, "call_id": "x"}, {**OUTPUT, "call_id": "x"}]
    shown(items, OUTPUT_TEXT.replace("c1", "x"))(route)


ITEM_CASES: Mapping[str, Case] = {
    **ITEM_IMAGE_CASES,
    "type": check_item_type,
    "role": check_role,
    "content.type": check_part_type,
    "content.text": check_part_text,
    "id": empty(ANSWERED, "id", "assistant: so", ["msg_1", None], 3),
    "status": empty(ANSWERED, "status", "assistant: so", ["completed", "incomplete", None], "done"),
    "call_id": check_call_id,
    "name": shown([USER, ANSWERED, {**CALL, "name": "sub"}], CALLED_TEXT.replace("add", "sub")),
    "arguments": shown([USER, ANSWERED, {**CALL, "arguments": "{}"}], CALLED_TEXT.replace('"a": 1', "")),
    "output.type": check_output_type,
    "output.text": check_output_text,
    "output.image_url": check_output_image,
    "output.detail": check_output_image,
}


def check_model(route: Route) -> None:
    """Another name is another model: its own defaults apply, and the answer carries its name."""
    for model, fields in ((MODEL, {"max_output_tokens": 6, "temperature": 0}), (OTHER, {})):
        response = asked(route, **{**fields, "model": model})
        assert response["model"] == model
        limit = fields.get("max_output_tokens", OTHER_MAX_TOKENS)
        expected = route.expected.answer(
            route.talk.ids(f"user: {PROMPT}|assistant: "), {"temperature": 0, "max_tokens": limit}
        )
        assert text_of(response) == expected.text


def check_instructions(route: Route) -> None:
    check_answer(route, GREEDY, prompt=f"system: be kind|user: {PROMPT}|assistant: ", instructions="be kind")


def changed(field: str, value: Any, fields: Mapping[str, Any] = DRAWN) -> Case:
    """Return the case of a field that changes the text: with it the text is NumPy's, without it another."""

    def check(route: Route) -> None:
        with_it = check_answer(route, {**fields, field: value})
        rest = {key: kept for key, kept in fields.items() if key != field}
        without = route.expected.answer(
            route.talk.ids(f"user: {PROMPT}|assistant: "), {"max_tokens": 16, **of_completion(rest)}
        )
        assert with_it != without.text

    return check


def check_max_output_tokens(route: Route) -> None:
    check_answer(route, {**DRAWN, "max_output_tokens": 4})
    response = asked(route, **{**DRAWN, "max_output_tokens": 4})
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert refused(route, max_output_tokens=0) == "max_output_tokens"


def check_stream(route: Route) -> None:
    """The same text arrives in several events, and the whole response in the last one."""
    fields = {**DRAWN, "max_output_tokens": 30}
    whole = asked(route, **fields)
    body = {"model": MODEL, "input": PROMPT, **fields}

    def deltas(events: list[Any]) -> list[str]:
        return [event["delta"] for event in events if event["type"] == "response.output_text.delta"]

    events = in_pieces(lambda: route.talk.named_events(PATH, body), deltas)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(deltas(events)) == check_answer(route, fields)
    last = events[-1]["response"]
    assert text_of(last) == text_of(whole)
    assert last["usage"] == whole["usage"]
    assert events[-1]["type"] == f"response.{whole['status']}"


def formed(texts: Collection[str], **fields: Any) -> Case:
    """Return the case of a form: the model takes the likeliest tokens that the form allows."""

    def check(route: Route) -> None:
        sampled = {**GREEDY, "max_output_tokens": 40}
        assert check_answer(route, sampled, texts=texts, text={"format": fields}) in texts

    return check


FORMAT = {"type": "json_schema", "name": "form", "schema": SCHEMA}


def check_format_type(route: Route) -> None:
    """An object begins with a brace; text is not constrained."""
    response = asked(route, temperature=0, max_output_tokens=1, text={"format": {"type": "json_object"}})
    assert text_of(response) == "{"
    assert check_answer(route, GREEDY, text={"format": {"type": "text"}})[0] != "{"
    formed(OF_SCHEMA, **FORMAT)(route)


def check_format_name(route: Route) -> None:
    formed(OF_SCHEMA, **{**FORMAT, "name": "another-name_1"})(route)
    assert refused(route, text={"format": {**FORMAT, "name": "no name"}}) == "text.format.name"


def check_format_description(route: Route) -> None:
    formed(OF_SCHEMA, **FORMAT, description="of people")(route)
    assert refused(route, text={"format": {**FORMAT, "description": 3}}) == "text.format.description"


def check_format_strict(route: Route) -> None:
    """The schema is enforced whatever the value."""
    for strict in (True, False):
        formed(OF_SCHEMA, **FORMAT, strict=strict)(route)
    assert refused(route, text={"format": {**FORMAT, "strict": "yes"}}) == "text.format.strict"


def check_verbosity(route: Route) -> None:
    check_answer(route, GREEDY, text={"verbosity": "medium"})
    assert refused(route, text={"verbosity": "low"}) == "text.verbosity"


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, **fields}


TOOLS = [tool("add", parameters=CHOICE_OF_TWO), tool("stop")]


def offered(tools: list[dict[str, Any]], text: str, **fields: Any) -> Case:
    """Return the case of a part of a tool that the template shows."""

    def check(route: Route) -> None:
        check_answer(route, GREEDY, prompt=f"{text}{END}", input=[USER], tools=tools, **fields)

    return check


def check_tool_type(route: Route) -> None:
    offered([tool("f")], f"function f  {NO_ARGUMENTS}|")(route)
    assert refused(route, tools=[{**tool("f"), "type": "custom"}]) == "tools[0].type"


def check_tool_strict(route: Route) -> None:
    """With strict tools text is valid UTF-8: the model takes the likeliest tokens that allow it."""
    offered([tool("f", strict=False)], f"function f  {NO_ARGUMENTS}|")(route)
    fields = {"input": [USER], "temperature": 0, "max_output_tokens": 40}
    (free, constrained) = (
        asked(route, **fields, tools=[tool("f", strict=strict)])["output"][0]["content"][0]["text"]
        for strict in (False, True)
    )
    assert "\ufffd" in free
    # The answer may end inside a character.
    assert "\ufffd" not in constrained[:-1]
    assert refused(route, tools=[tool("f", strict="yes")]) == "tools[0].strict"


def called(
    route: Route, prompt: str, allowed: Sequence[Sequence[tuple[str, str]]], **fields: Any
) -> list[tuple[str, str]]:
    """Check that the model makes the likeliest of the allowed calls; return them."""
    sampled = {"temperature": 0, "max_output_tokens": 200}
    texts = {HERMES.written(calls): list(calls) for calls in allowed}
    expected = route.expected.answer(route.talk.ids(prompt), of_completion(sampled), texts=texts)
    assert expected.finish_reason == "stop"
    response = asked(route, **{"input": [USER], "tools": TOOLS, **sampled, **fields})
    calls = [(item["name"], item["arguments"]) for item in response["output"]]
    assert {item["type"] for item in response["output"]} == {"function_call"}
    assert calls == texts[expected.text]
    return calls


def check_tool_choice(route: Route) -> None:
    offered(TOOLS, "", tool_choice="none")(route)
    offered(TOOLS, OFFERED.removesuffix(END), tool_choice="auto")(route)
    allowed = [[call] for calls in CALLS.values() for call in calls]
    called(route, OFFERED, allowed, tool_choice="required", parallel_tool_calls=False)
    assert refused(route, tools=TOOLS, tool_choice="any") == "tool_choice"


def check_named_tool(route: Route) -> None:
    for name, calls in CALLS.items():
        called(route, OFFERED, [[call] for call in calls], tool_choice={"type": "function", "name": name})
    assert refused(route, tools=TOOLS, tool_choice={"type": "function", "name": "x"}) == "tool_choice.name"


def check_parallel_calls(route: Route) -> None:
    """With a prompt after which the model goes on, it makes more than one call, or must end after one."""
    (call,) = CALLS["stop"]
    one, two = HERMES.written([call]), HERMES.written([call, call])
    separator = route.talk.ids(two[len(one)])[0]

    def goes_on(prompt: str) -> bool:
        row = route.expected.logprobs(route.talk.ids(prompt + one))[-1]
        return bool(row[separator] > row[EOS_ID])

    def prompt(text: str) -> str:
        return f"function stop  {NO_ARGUMENTS}|user: {text}|assistant: "

    text = next(text for text in (f"go {i}" for i in range(50)) if goes_on(prompt(text)))
    fields = {
        "input": text,
        "tools": TOOLS[1:],
        "tool_choice": "required",
        "temperature": 0,
        "max_output_tokens": len(route.talk.ids(two)),
    }
    for parallel, num_calls in ((True, 2), (False, 1)):
        response = asked(route, **fields, parallel_tool_calls=parallel)
        assert [(item["name"], item["arguments"]) for item in response["output"]] == [call] * num_calls
        assert response["usage"]["input_tokens"] == len(route.talk.ids(prompt(text)))


def check_effort(route: Route) -> None:
    check_answer(route, GREEDY, prompt=f"effort=high|{END}", input=[USER], reasoning={"effort": "high"})
    assert refused(route, reasoning={"effort": "endless"}) == "reasoning.effort"


def check_summary(route: Route) -> None:
    for summary in (None, "auto"):
        check_answer(route, GREEDY, reasoning={"summary": summary})
    assert refused(route, reasoning={"summary": "detailed"}) == "reasoning.summary"


def check_include(route: Route) -> None:
    check_answer(route, GREEDY, include=["reasoning.encrypted_content"])
    assert refused(route, include=["message.output_text.logprobs"]) == "include[0]"


def check_include_obfuscation(route: Route) -> None:
    for include in (True, False):
        check_answer(route, GREEDY, stream_options={"include_obfuscation": include})
    options = {"include_obfuscation": "yes"}
    assert refused(route, stream_options=options) == "stream_options.include_obfuscation"


def check_ignore_eos(route: Route) -> None:
    """The answer of this prompt reaches its limit, whether or not the model wants to end it."""
    response = asked(route, **{**DRAWN, "max_output_tokens": 60}, ignore_eos=True)
    assert response["usage"]["output_tokens"] == 60
    assert refused(route, ignore_eos=1) == "ignore_eos"


RESPONSES_CASES: Mapping[str, Case] = {
    **{f"input.{path}": case for path, case in ITEM_CASES.items()},
    "model": check_model,
    "instructions": check_instructions,
    "max_output_tokens": check_max_output_tokens,
    "temperature": changed("temperature", 0.4),
    "top_p": changed("top_p", 0.6),
    "seed": changed("seed", -8),
    "stream": check_stream,
    "text.format.type": check_format_type,
    "text.format.name": check_format_name,
    "text.format.description": check_format_description,
    "text.format.schema": formed(OF_SCHEMA, **FORMAT),
    "text.format.strict": check_format_strict,
    "text.verbosity": check_verbosity,
    "tools.type": check_tool_type,
    "tools.name": offered(
        [tool("one"), tool("two")], f"function one  {NO_ARGUMENTS}|function two  {NO_ARGUMENTS}|"
    ),
    "tools.description": offered([tool("f", description="Sums up.")], f"function f Sums up. {NO_ARGUMENTS}|"),
    "tools.parameters": offered([tool("f", parameters=CHOICE_OF_TWO)], f"function f  {WRITTEN_CHOICE}|"),
    "tools.strict": check_tool_strict,
    "tool_choice.type": check_tool_choice,
    "tool_choice.name": check_named_tool,
    "parallel_tool_calls": check_parallel_calls,
    "reasoning.effort": check_effort,
    "reasoning.summary": check_summary,
    "presence_penalty": changed("presence_penalty", 2.0),
    "frequency_penalty": changed("frequency_penalty", 2.0),
    "ignore_eos": check_ignore_eos,
    "include": check_include,
    "stream_options.include_obfuscation": check_include_obfuscation,
}


def check_accepted(route: Route, accepted: Collection[str]) -> None:
    """Check that fields without effect have none."""
    check_answer(route, DRAWN, **{key: {"any": [1, "thing"]} for key in accepted})
