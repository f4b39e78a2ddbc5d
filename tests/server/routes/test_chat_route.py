"""Chat completions as raw HTTP: the golden stream, the whole answer, choices, stops, logprobs, usage."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import pytest
from fake_engine import EOS, IM_END, IM_START, PROMPT_IDS, START, ids_of, letters
from running_server import RunningServer, events


def streamed_text(chunks: list[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ()) if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_whole_answer(server: RunningServer) -> None:
    response = server.chat()
    body = response.json()
    assert response.status_code == 200
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": letters(START, 4),
                "refusal": None,
                "annotations": [],
            },
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert body["object"] == "chat.completion"
    assert body["model"] == "fake"
    assert body["system_fingerprint"] == "bundle-0123"
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(PROMPT_IDS), 4)
    assert usage["total_tokens"] == len(PROMPT_IDS) + 4
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert usage["tokens_per_second"] == pytest.approx(4 / usage["processing_time"])
    assert server.engine.requests[0].prompt_ids == PROMPT_IDS


def test_golden_stream(server: RunningServer) -> None:
    server.engine.script = [*ids_of("Hi"), EOS]
    server.engine.tokens_per_event = 3
    response = server.chat(stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    chunks = events(response.text)
    heads = {tuple((key, chunk[key]) for key in ("id", "object", "created", "model")) for chunk in chunks}
    assert len(heads) == 1
    assert [(chunk["choices"], chunk["usage"] is None) for chunk in chunks] == [
        (
            [
                {
                    "index": 0,
                    "delta": {"role": "assistant", "content": "", "refusal": None},
                    "logprobs": None,
                    "finish_reason": None,
                }
            ],
            True,
        ),
        ([{"index": 0, "delta": {"content": "Hi"}, "logprobs": None, "finish_reason": None}], True),
        ([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}], True),
        ([], False),
    ]
    assert chunks[-1]["usage"]["completion_tokens"] == 3  # the end token counts but is not shown


def test_stream_says_what_the_whole_answer_says(server: RunningServer) -> None:
    server.engine.script = [*ids_of("Grüße 日本 END more"), EOS]
    fields = {"stop": ["END"], "max_tokens": 40, "n": 2}
    whole = server.chat(**fields).json()
    chunks = events(server.chat(**fields, stream=True).text)
    assert [streamed_text(chunks, i) for i in range(2)] == ["Grüße 日本 ", "Grüße 日本 "]
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["Grüße 日本 ", "Grüße 日本 "]
    assert all("\ufffd" not in streamed_text([chunk]) for chunk in chunks)


@pytest.mark.parametrize("tokens_per_event", [1, 3, 100])
def test_stop_string_ends_the_choice_and_cancels_it(server: RunningServer, tokens_per_event: int) -> None:
    server.engine.script = ids_of("one STOP two three four")
    server.engine.tokens_per_event = tokens_per_event
    body = server.chat(stop="STOP", max_tokens=23).json()
    assert body["choices"][0]["message"]["content"] == "one "
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == len("one STOP")
    if tokens_per_event < 23:
        assert server.engine.cancelled == [server.engine.requests[0].id]


def test_half_a_stop_string_is_text_after_all(server: RunningServer) -> None:
    server.engine.script = ids_of("a STO")
    chunks = events(server.chat(stop=["STOP"], max_tokens=5, stream=True).text)
    assert streamed_text(chunks) == "a STO"


def test_every_choice_has_a_seed_of_its_own(server: RunningServer) -> None:
    server.chat(n=3, seed=-5, temperature=1.0)
    first = 2**64 - 5
    derived = [int.from_bytes(hashlib.sha256(f"{first}:{i}".encode()).digest()[:8], "big") for i in (1, 2)]
    assert [request.params.seed for request in server.engine.requests] == [first, *derived]


def test_usage_on_every_chunk(server: RunningServer) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(server.chat(stream=True, stream_options=options).text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    # The role comes with the first token.
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[-1] == 4


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_first_event_comes_with_the_first_token(server: RunningServer, path: str) -> None:
    """Clients take its time as the time to first token. The first token here is half a character."""
    server.engine.script = ids_of("éa")
    server.engine.seconds_per_event = 0.3
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 3}
    if path == "/v1/completions":
        body["prompt"] = body.pop("messages")[0]["content"]
    with server.http.stream("POST", path, json=body) as response:
        started = time.monotonic()
        lines = (line for line in response.iter_lines() if line)
        first = json.loads(next(lines).removeprefix("data: "))
        seconds = time.monotonic() - started
        rest = list(lines)
    assert 0.2 < seconds < 0.55
    (choice,) = first["choices"]
    assert choice.get("delta", {"role": "assistant"})["role"] == "assistant"
    assert choice.get("text", "") == ""
    assert rest[-1] == "data: [DONE]"


def test_each_choice_has_its_role_once(server: RunningServer) -> None:
    chunks = events(server.chat(stream=True, n=3).text)
    roles = [choice["index"] for chunk in chunks for choice in chunk["choices"] if "role" in choice["delta"]]
    assert sorted(roles) == [0, 1, 2]
    for index in range(3):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"


def test_logprobs(server: RunningServer) -> None:
    server.engine.script = [*ids_of("é"), EOS]
    logprobs = server.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs["content"] == [
        {
            "token": f"bytes:\\x{byte:02x}",
            "logprob": -0.5,
            "bytes": [byte],
            "top_logprobs": [
                {"token": f"bytes:\\x{byte + i:02x}", "logprob": -0.5 - i, "bytes": [byte + i]}
                for i in (0, 1)
            ],
        }
        for byte in "é".encode()
    ]


def test_streamed_logprobs_are_all_there(server: RunningServer) -> None:
    server.engine.script = ids_of("ab STOPcd")
    chunks = events(server.chat(logprobs=True, stop="STOP", max_tokens=9, stream=True).text)
    content = [
        entry["token"]
        for chunk in chunks
        for choice in chunk["choices"]
        for entry in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert "".join(content) == "ab STOP"


def test_sampling_fields_reach_the_engine(server: RunningServer) -> None:
    sent = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": -1.0,
        "frequency_penalty": 0.5,
        "min_tokens": 2,
        "seed": 11,
    }
    server.chat(**sent, logit_bias={"70": -100, "71": 3.5}, stop_token_ids=[80], max_tokens=None)
    params = server.engine.requests[0].params
    assert {key: getattr(params, key) for key in sent} == sent
    assert params.logit_bias == ((70, -100.0), (71, 3.5))
    assert params.stop_token_ids == (EOS, IM_END, 80)
    assert params.max_tokens == 128 - len(PROMPT_IDS)
    assert params.top_logprobs is None


def test_ignore_eos_leaves_only_the_clients_stop_tokens(server: RunningServer) -> None:
    server.engine.script = [*ids_of("a"), EOS, *ids_of("b")]
    body = server.chat(ignore_eos=True, max_tokens=3).json()
    assert server.engine.requests[0].params.stop_token_ids == ()
    assert body["choices"][0]["message"]["content"] == "ab"
    shown = server.chat(ignore_eos=True, max_tokens=3, skip_special_tokens=False).json()
    assert shown["choices"][0]["message"]["content"] == "a</s>b"


def test_special_tokens_in_a_message_are_text(server: RunningServer) -> None:
    server.chat(messages=[{"role": "user", "content": "<|im_end|>"}], max_tokens=1)
    prompt_ids = server.engine.requests[0].prompt_ids
    assert prompt_ids.count(IM_END) == 1
    assert prompt_ids[: 1 + len("user\n<|im_end|>")] == (IM_START, *ids_of("user\n<|im_end|>"))


def test_earlier_answers_come_back_as_they_were_sent(server: RunningServer) -> None:
    answer = server.chat().json()["choices"][0]["message"]
    extra = {"tool_calls": None, "function_call": None, "audio": None}
    turns = [{"role": "user", "content": "a"}, {**answer, **extra}, {"role": "user", "content": "b"}]
    assert server.chat(messages=turns).status_code == 200


def test_continue_final_message_goes_on_with_it(server: RunningServer) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "So"}]
    server.engine.script = ids_of(" it")
    body = server.chat(messages=turns, continue_final_message=True, max_tokens=3).json()
    assert server.engine.requests[0].prompt_ids[-2:] == tuple(ids_of("So"))
    assert body["choices"][0]["message"]["content"] == " it"


@pytest.mark.parametrize("text", ["<", "e", "im_end", ">", "\n", "", "  ", "<|im_end|>", "</think>"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_a_continued_prompt_ends_with_the_text(path: str, text: str, server: RunningServer) -> None:
    turns = [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": text}]
    body = {"model": "fake", "messages": turns, "continue_final_message": True}
    response = server.http.post(path, json=body)
    assert response.status_code == 200, response.text
    found = response.json()["tokens"] if path == "/tokenize" else server.engine.requests[0].prompt_ids
    begun = [IM_START, *ids_of("user\n<|im_end|>"), IM_END, IM_START, *ids_of(f"assistant\n{text}")]
    assert list(found) == begun


def test_a_message_with_calls_cannot_be_continued(server: RunningServer) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [call]}]
    error = server.chat(messages=turns, continue_final_message=True).json()["error"]
    assert (error["param"], "tool_calls" in error["message"]) == ("continue_final_message", True)


PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url", "image_url": {"url": PIXEL}}, "image_url.url"),
        ({"type": "image_url", "image_url": PIXEL}, "image_url.url"),
        ({"type": "image", "image": PIXEL}, "image"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/count_tokens", "/tokenize"])
def test_a_model_of_text_refuses_images_before_it_looks_at_them(
    path: str, part: dict[str, Any], param: str, server: RunningServer
) -> None:
    field = "conversation" if path == "/v1/count_tokens" else "messages"
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]
    response = server.http.post(path, json={"model": "fake", field: messages})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == f"{field}[0].content[1].{param}"
    assert "model fake takes only text" in error["message"]
    assert server.engine.requests == []
