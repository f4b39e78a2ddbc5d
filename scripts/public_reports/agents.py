"""Reports about agents and streams: Claude Code, Codex, and what a stream contains."""

from __future__ import annotations

import json
from typing import Any

from public_reports.report import Report
from public_reports.server import QUESTION, Server, answered, choice, events

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
TOOL = {"name": "Read", "description": "Read a file.", "input_schema": SCHEMA}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a"}}


def _conversation(*before_call: dict[str, Any], result: Any) -> list[dict[str, Any]]:
    outcome = {"type": "tool_result", "tool_use_id": "toolu_1", "content": result}
    return [
        {"role": "user", "content": "Read a."},
        {"role": "assistant", "content": [*before_call, CALL]},
        {"role": "user", "content": [outcome]},
    ]


def system_later(server: Server) -> str:
    registry = "Available agent types for the Agent tool: reviewer"
    turns = [*QUESTION, {"role": "system", "content": registry}]
    counted = [
        answered(server.post("/v1/messages/count_tokens", messages=sent))["input_tokens"]
        for sent in (QUESTION, turns)
    ]
    assert counted[1] > counted[0] + 5
    assert answered(server.message(messages=turns, system="Be brief."))["role"] == "assistant"
    return f"200, and the prompt has it in its place: {counted[0]} and {counted[1]} tokens"


def nested_result(server: Server) -> str:
    turns = _conversation(result=[{"type": "text", "text": '{"nested": {"x": [1, null]}}'}])
    counted = answered(server.post("/v1/messages/count_tokens?beta=true", messages=turns, tools=[TOOL]))
    usage = answered(server.message("/v1/messages?beta=true", messages=turns, tools=[TOOL]))["usage"]
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert counted["input_tokens"] == prompt
    return f"200: {prompt} tokens, as the prompt has"


def thinking_back(server: Server) -> str:
    thought = {"type": "thinking", "thinking": "Let me read it.", "signature": ""}
    turns = _conversation(thought, {"type": "text", "text": "Reading."}, result="text")
    assert answered(server.message(messages=turns, tools=[TOOL]))["stop_reason"]
    turns = _conversation({"type": "redacted_thinking", "data": "abc"}, result="text")
    assert answered(server.message(messages=turns, tools=[TOOL]))["stop_reason"]
    return "200, also without a signature"


def stop_reason(server: Server) -> str:
    asked = {"tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 100}
    streamed = events(server.message(**asked, stream=True))
    blocks = [event["content_block"]["type"] for event in streamed if event["type"] == "content_block_start"]
    assert set(blocks) == {"tool_use"}, blocks
    (end,) = [event["delta"] for event in streamed if event["type"] == "message_delta"]
    assert end["stop_reason"] == answered(server.message(**asked))["stop_reason"] == "tool_use"
    return "tool_use, whole and streamed, and no empty text block"


def shape_of_claude_code(server: Server) -> str:
    cached = {"type": "ephemeral", "ttl": "1h"}
    body = {
        "system": [{"type": "text", "text": "You are an agent.", "cache_control": cached}],
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "user_1"},
        "max_tokens": 32000,
        "stop_sequences": ["."],
    }
    assert answered(server.message("/v1/messages?beta=true", **body))["stop_reason"] == "stop_sequence"
    words = server.message(**body, output_config={"effort": "low"}).json()["error"]["message"]
    assert "is not read by the chat template" in words
    return f"200 without an effort; with one, a 400: {words}"


def shape_of_codex(server: Server) -> str:
    shell = {
        "type": "function",
        "name": "shell",
        "description": "Run.",
        "strict": False,
        "parameters": SCHEMA,
    }
    body = {
        "instructions": "You are Codex.",
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "client_metadata": {"installation": "1"},
        "include": ["reasoning.encrypted_content"],
        "parallel_tool_calls": False,
        "prompt_cache_key": "x",
        "reasoning": None,
        "store": False,
        "tool_choice": "auto",
        "tools": [shell],
    }
    end = events(server.respond(**body, stream=True, max_output_tokens=None))[-1]
    assert end["type"] in ("response.completed", "response.incomplete")
    return f"200, and the stream ends with {end['type']}"


def missing_annotations(server: Server) -> str:
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}
    items = [{"role": "user", "content": "hi"}, said, {"role": "user", "content": "and now?"}]
    assert answered(server.respond(input=items))["output"]
    return "200"


def usage_of_responses(server: Server) -> str:
    usage = answered(server.respond())["usage"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    return f"all five fields: {json.dumps(usage)}"


def finish_reasons(server: Server) -> str:
    streamed = events(server.chat(stream=True, n=2))
    told = [(event["choices"][0]["index"], event["choices"][0]["finish_reason"]) for event in streamed]
    assert sorted(reason for reason in told if reason[1] is not None) == [(0, "stop"), (1, "stop")]
    assert not [reason for _, reason in told if reason == ""]
    return "null until the last chunk of each choice, which has it once"


def usage_in_streams(server: Server) -> str:
    plain = events(server.chat(stream=True))
    assert not [event for event in plain if event.get("usage")]
    *rest, last = events(server.chat(stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 8
    assert not [event for event in rest if event.get("usage")]
    return "once, in a last chunk without choices"


def usage_in_every_chunk(server: Server) -> str:
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [
        event["usage"]["completion_tokens"]
        for event in events(server.chat(stream=True, stream_options=options))
    ]
    assert counts == sorted(counts)
    return f"in every chunk: {counts}"


def line_separators(server: Server) -> str:
    prompt = "a\u2028b\u2029c\u0085d"
    response = server.complete(prompt=prompt, echo=True, max_tokens=1, stream=True)
    lines = [line for line in response.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines), lines
    text = "".join(event["choices"][0]["text"] for event in events(response))
    assert text.startswith(prompt)
    return "each event is one line, also for str.splitlines"


def empty_last_message(server: Server) -> str:
    turns = [*QUESTION, {"role": "assistant", "content": ""}]
    assert choice(server.chat(messages=turns))["message"]["role"] == "assistant"
    return "200, a new answer"


REPORTS = (
    Report(
        "vllm-project/vllm#48874",
        "Claude Code sends a system message after the user's, which is refused or misplaced",
        "the same, whole and counted",
        system_later,
    ),
    Report(
        "BerriAI/litellm#14236",
        "500 from `count_tokens?beta=true` for blocks in a tool's result",
        "the same, and the request that it counts",
        nested_result,
    ),
    Report(
        "anthropics/claude-code#7678",
        "422 as soon as the history has thinking",
        "thinking without a signature, and redacted thinking",
        thinking_back,
    ),
    Report(
        "BerriAI/litellm#34692",
        "a streamed tool call ends with `end_turn`, after an empty text block",
        "a required call, whole and streamed",
        stop_reason,
    ),
    Report(
        "ARahim3/mlx-dspark#25",
        "what Claude Code 2.1 sends: adaptive thinking, `output_config.effort`, `context_management`",
        "the captured fields",
        shape_of_claude_code,
        "left",
        "an effort that the model's template does not read is refused by name, as on every route",
    ),
    Report(
        "webai-at-home/webai-at-home#214",
        "the twelve fields that Codex sends to /v1/responses",
        "all of them, streamed",
        shape_of_codex,
        "mended",
        "client_metadata was a 400; tests/server/fields/test_request_fields.py",
    ),
    Report(
        "langchain-ai/langchain#32557",
        "400 for an answer sent back without `annotations`",
        "the same",
        missing_annotations,
    ),
    Report(
        "ggml-org/llama.cpp#22659", "`output_tokens_details` is missing", "a response", usage_of_responses
    ),
    Report(
        "sgl-project/sglang#8417",
        "two finish reasons, or one for `n` choices",
        "two choices, streamed",
        finish_reasons,
    ),
    Report("sgl-project/sglang#3912", "`finish_reason` is an empty text", "the same", finish_reasons),
    Report("vllm-project/vllm#7262", "usage in every chunk, unasked", "with and without", usage_in_streams),
    Report(
        "ai-dynamo/dynamo#11708", "`continuous_usage_stats` has no effect", "the same", usage_in_every_chunk
    ),
    Report(
        "Soju06/codex-lb#1010",
        "U+2028 in a text cuts its event in two for clients that split lines as Python does",
        "three such characters, echoed in a stream",
        line_separators,
        "mended",
        "were sent as they are; tests/server/generate/test_line_ends.py",
    ),
    Report(
        "abdulmominsakib/localmind#11",
        "apps send an empty answer at the end of a conversation",
        "the same",
        empty_last_message,
    ),
)
