"""openai-python, which validates every answer and event against its own types.

python -m client_runs.programs.openai_python URL
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import openai
from openai import OpenAI

from client_runs.pictures import MODEL as PICTURES
from client_runs.pictures import read_picture
from client_runs.questions import (
    CITY_REQUEST,
    MESSAGES,
    QUESTION,
    WEATHER_MESSAGES,
    WEATHER_NAME,
    WEATHER_RESULT,
    WEATHER_TOOL,
    City,
    expect_weather_call,
)
from client_runs.raw import MODEL, RawServer
from client_runs.rows import expect_equal, run_checks

GREEDY: Any = {"model": MODEL, "temperature": 0}


def chat(client: OpenAI, raw: RawServer) -> str:
    answer = client.chat.completions.create(**GREEDY, messages=MESSAGES)
    expected = raw.post("/v1/chat/completions", temperature=0, messages=MESSAGES)
    expect_equal(answer.choices[0].message.content, expected["choices"][0]["message"]["content"])
    expect_equal(answer.choices[0].finish_reason, "stop")
    assert answer.usage is not None
    expect_equal(answer.usage.total_tokens, expected["usage"]["total_tokens"])
    return str(answer.choices[0].message.content)


def chat_streamed(client: OpenAI, raw: RawServer) -> str:
    chunks = list(
        client.chat.completions.create(
            **GREEDY, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    *told, last = chunks
    text = "".join(chunk.choices[0].delta.content or "" for chunk in told)
    expected = raw.post("/v1/chat/completions", temperature=0, messages=MESSAGES)
    expect_equal(text, expected["choices"][0]["message"]["content"])
    expect_equal(told[-1].choices[0].finish_reason, "stop")
    assert last.usage is not None
    expect_equal(last.choices, [])
    expect_equal(last.usage.completion_tokens, expected["usage"]["completion_tokens"])
    return f"{len(chunks)} chunks, usage in the last"


def choices_with_logprobs(client: OpenAI, raw: RawServer) -> str:
    asked: Any = {
        "messages": MESSAGES,
        "n": 2,
        "seed": 7,
        "temperature": 1,
        "max_tokens": 12,
        "logprobs": True,
        "top_logprobs": 3,
    }
    answer = client.chat.completions.create(model=MODEL, **asked)
    expected = raw.post("/v1/chat/completions", **asked)["choices"]
    for choice, raw_choice in zip(answer.choices, expected, strict=True):
        expect_equal(choice.message.content, raw_choice["message"]["content"])
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        raw_tokens = raw_choice["logprobs"]["content"]
        expect_equal([token.token for token in choice.logprobs.content], [t["token"] for t in raw_tokens])
        assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)
    return "equal to the same request sent without a client, with the same seed"


def _tools(tool_choice: Any, messages: Any = WEATHER_MESSAGES) -> Callable[[OpenAI, RawServer], str]:
    def check(client: OpenAI, raw: RawServer) -> str:
        asked: Any = {"messages": messages, "tools": [WEATHER_TOOL], "tool_choice": tool_choice}
        expected = raw.chat(**asked)["message"]
        whole = client.chat.completions.create(**GREEDY, **asked).choices[0].message
        with client.chat.completions.stream(**GREEDY, **asked) as stream:
            streamed = stream.get_final_completion().choices[0].message
        said = ""
        for message in (whole, streamed):
            # A stream starts with a role and an empty text.
            expect_equal(message.content or None, expected["content"])
            calls = [call.function for call in message.tool_calls or () if call.type == "function"]
            arguments = [call.arguments for call in calls]
            expect_equal(
                arguments, [call["function"]["arguments"] for call in expected.get("tool_calls") or ()]
            )
            for call in calls:
                expect_weather_call(call.name, call.arguments)
            said = ", ".join(arguments)
        assert said or tool_choice == "auto", "no call"
        return said or f"text, no call: {whole.content}"

    return check


def tool_round_trip(client: OpenAI, raw: RawServer) -> str:
    asked: Any = {**GREEDY, "tools": [WEATHER_TOOL], "max_tokens": 60}
    first = client.chat.completions.create(
        **asked, messages=WEATHER_MESSAGES, tool_choice="required", parallel_tool_calls=False
    )
    (call,) = first.choices[0].message.tool_calls or ()
    messages: Any = [
        *WEATHER_MESSAGES,
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": WEATHER_RESULT},
    ]
    second = client.chat.completions.create(**asked, messages=messages, tool_choice="none")
    expected = raw.chat(messages=messages, tools=[WEATHER_TOOL], tool_choice="none", max_tokens=60)
    expect_equal(second.choices[0].message.content, expected["message"]["content"])
    assert second.choices[0].message.content
    return _shortened(second.choices[0].message.content)


def completions(client: OpenAI, raw: RawServer) -> str:
    prompts = ["The capital of France is", "Once upon a time"]
    asked: Any = {"prompt": prompts, "max_tokens": 8, "logprobs": 2}
    expected = [choice["text"] for choice in raw.post("/v1/completions", temperature=0, **asked)["choices"]]
    answer = client.completions.create(**GREEDY, **asked)
    expect_equal([choice.text for choice in answer.choices], expected)
    return _shortened(expected[0])


def completions_streamed(client: OpenAI, raw: RawServer) -> str:
    asked: Any = {"prompt": ["The capital of France is", "Once upon a time"], "max_tokens": 8}
    streamed = ["", ""]
    for chunk in _lenient(client).completions.create(**GREEDY, **asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    expected = raw.post("/v1/completions", temperature=0, **asked)["choices"]
    expect_equal(streamed, [choice["text"] for choice in expected])
    return "without strict validation: the client has no type for a chunk whose finish_reason is null"


def echo(client: OpenAI, raw: RawServer) -> str:
    asked: Any = {"prompt": "The capital of France is", "max_tokens": 1, "echo": True, "logprobs": 1}
    answer = _lenient(client).completions.create(**GREEDY, **asked).choices[0]
    expected = raw.post("/v1/completions", temperature=0, **asked)["choices"][0]
    expect_equal(answer.text, expected["text"])
    assert answer.logprobs is not None
    logprobs: Any = answer.logprobs.token_logprobs
    expect_equal(logprobs, expected["logprobs"]["token_logprobs"])
    expect_equal(logprobs[0], None)
    return (
        "without strict validation: the client's type does not allow null as the logprob of the first token"
    )


def embeddings(client: OpenAI, raw: RawServer) -> str:
    asked: Any = {"input": ["The capital of France", "A river"], "encoding_format": "float"}
    expected = [item["embedding"] for item in raw.post("/v1/embeddings", **asked)["data"]]
    answer = client.embeddings.create(model=MODEL, **asked)
    expect_equal([item.embedding for item in answer.data], expected)
    return f"{len(expected[0])} numbers for each of {len(expected)} inputs"


def embeddings_in_base64(client: OpenAI, raw: RawServer) -> str:
    asked: Any = {"input": ["The capital of France", "A river"]}
    answer = _lenient(client).embeddings.create(model=MODEL, **asked)
    expected = raw.post("/v1/embeddings", **asked, encoding_format="float")["data"]
    for item, raw_item in zip(answer.data, expected, strict=True):
        # Sent as float32, so they are equal within its rounding.
        distances = [abs(a - b) for a, b in zip(item.embedding, raw_item["embedding"], strict=True)]
        assert max(distances) < 1e-7, max(distances)
    return (
        "the client's default, without strict validation: the client validates before it decodes the base64"
    )


def models(client: OpenAI, raw: RawServer) -> str:
    listed = client.models.list().data
    expect_equal([model.id for model in listed], [model["id"] for model in raw.get("/v1/models")["data"]])
    expect_equal(client.models.retrieve(MODEL).id, MODEL)
    return MODEL


def errors(client: OpenAI, raw: RawServer) -> str:
    del raw
    try:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=-1)
    except openai.BadRequestError as error:
        expect_equal(error.param, "temperature")
        return f"BadRequestError, param {error.param}"
    raise AssertionError("temperature -1 was not refused")


def parse(client: OpenAI, raw: RawServer) -> str:
    messages: Any = [{"role": "user", "content": CITY_REQUEST}]
    answer = client.chat.completions.parse(**GREEDY, messages=messages, response_format=City).choices[0]
    expect_equal(answer.finish_reason, "stop")
    city = answer.message.parsed
    assert isinstance(city, City)
    form = {
        "type": "json_schema",
        "json_schema": {"name": "City", "schema": City.model_json_schema(), "strict": True},
    }
    expected = raw.chat(messages=messages, response_format=form)
    expect_equal(answer.message.content, expected["message"]["content"])
    return repr(city)


def responses(client: OpenAI, raw: RawServer) -> str:
    answer = client.responses.create(**GREEDY, input=QUESTION)
    expect_equal(answer.status, "completed")
    expect_equal(answer.output_text, raw.chat(messages=MESSAGES)["message"]["content"])
    return answer.output_text


def responses_streamed(client: OpenAI, raw: RawServer) -> str:
    with client.responses.stream(**GREEDY, input=QUESTION) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    expect_equal("".join(deltas), raw.chat(messages=MESSAGES)["message"]["content"])
    expect_equal(final.output_text, "".join(deltas))
    return f"{len(events)} events, {len(deltas)} of them text"


def responses_parsed(client: OpenAI, raw: RawServer) -> str:
    answer = client.responses.parse(**GREEDY, input=CITY_REQUEST, text_format=City)
    expect_equal(answer.status, "completed")
    assert isinstance(answer.output_parsed, City)
    form = {"type": "json_schema", "name": "City", "schema": City.model_json_schema()}
    expected = raw.post("/v1/responses", temperature=0, input=CITY_REQUEST, text={"format": form})
    expect_equal(answer.output_text, expected["output"][0]["content"][0]["text"])
    return repr(answer.output_parsed)


def responses_tools(client: OpenAI, raw: RawServer) -> str:
    asked: Any = {**GREEDY, "tools": [{"type": "function", **WEATHER_TOOL["function"]}]}
    named: Any = {"type": "function", "name": WEATHER_NAME}
    (call,) = client.responses.create(
        **asked, input=WEATHER_MESSAGES, tool_choice=named, max_output_tokens=200
    ).output
    assert call.type == "function_call"
    expect_weather_call(call.name, call.arguments)
    returned = {"type": "function_call_output", "call_id": call.call_id, "output": WEATHER_RESULT}
    items: Any = [*WEATHER_MESSAGES, call.model_dump(exclude_none=True), returned]
    last: Any = {"input": items, "tool_choice": "none", "max_output_tokens": 60}
    answer = client.responses.create(**asked, **last)
    expected = raw.post("/v1/responses", temperature=0, tools=asked["tools"], **last)
    expect_equal(answer.output_text, expected["output"][0]["content"][0]["text"])
    assert answer.output_text
    return _shortened(answer.output_text)


def image_named(client: OpenAI, raw: RawServer) -> str:
    del raw
    picture = read_picture()
    assert picture is not None
    client = client.with_options(base_url=f"{picture['url']}/v1")
    url = f"data:image/png;base64,{picture['png']}"
    text: Any = {"type": "text", "text": picture["question"]}
    in_chat: Any = [{"type": "image_url", "image_url": {"url": url, "detail": "auto"}}, text]
    answer = client.chat.completions.create(
        model=PICTURES, temperature=0, messages=[{"role": "user", "content": in_chat}]
    )
    expect_equal(answer.choices[0].message.content, picture["colour"])
    in_responses: Any = [
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_text", "text": picture["question"]},
    ]
    response = client.responses.create(
        model=PICTURES, temperature=0, input=[{"role": "user", "content": in_responses}]
    )
    expect_equal(response.output_text, picture["colour"])
    return str(picture["colour"])


NAMED: Any = {"type": "function", "function": {"name": WEATHER_NAME}}
# A model of this size makes a call on its own only after it has just seen one.
AFTER_A_CALL: Any = [
    {"role": "user", "content": "How is the weather in London?"},
    {
        "role": "assistant",
        "tool_calls": [
            {
                "id": "call_0",
                "type": "function",
                "function": {"name": WEATHER_NAME, "arguments": '{"city": "London", "days": 1}'},
            }
        ],
    },
    *WEATHER_MESSAGES,
]
CHECKS: dict[str, Callable[[OpenAI, RawServer], str]] = {
    "chat": chat,
    "chat streamed, with usage": chat_streamed,
    "chat, `n=2` with `logprobs`": choices_with_logprobs,
    "`chat.completions.parse` with a pydantic model": parse,
    "tools `auto`, answered with text, whole and streamed": _tools("auto", MESSAGES),
    "tools `auto`, answered with a call, whole and streamed": _tools("auto", AFTER_A_CALL),
    "tools `required`, whole and streamed": _tools("required"),
    "tools by name, whole and streamed": _tools(NAMED),
    "tool round trip": tool_round_trip,
    "completions of two prompts": completions,
    "completions streamed": completions_streamed,
    "completions with `echo` and `logprobs`": echo,
    "embeddings": embeddings,
    "embeddings in base64": embeddings_in_base64,
    "models, listed and retrieved": models,
    "an invalid field": errors,
    "responses": responses,
    "responses streamed": responses_streamed,
    "`responses.parse` with a pydantic model": responses_parsed,
    "responses, tool round trip": responses_tools,
    **({"an image is named, in chat and responses": image_named} if read_picture() else {}),
}


def _lenient(client: OpenAI) -> OpenAI:
    """Return the client with its default, lenient validation."""
    return OpenAI(base_url=client.base_url, api_key="unused", max_retries=0)


def _shortened(text: str) -> str:
    return json.dumps(text[:60])


def main(url: str) -> None:
    with OpenAI(
        base_url=f"{url}/v1", api_key="unused", max_retries=0, _strict_response_validation=True
    ) as client:
        run_checks("openai", CHECKS, client, RawServer(url))


if __name__ == "__main__":
    main(sys.argv[1])
