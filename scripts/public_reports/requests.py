"""Reports about single requests: values of fields, fields of other servers, and HTTP."""

from __future__ import annotations

import json

from public_reports.report import Report
from public_reports.server import ANSWER, MODEL, QUESTION, Server, answered, choice, events, refused

_BODY = json.dumps({"model": MODEL, "temperature": 0, "max_tokens": 24, "messages": QUESTION}).encode()
_H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
_HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def no_limit(server: Server) -> str:
    streamed = server.chat(max_tokens=-1, stream=True)
    assert events(streamed)[-1]["choices"][0]["finish_reason"] == "stop"
    return f"200, the limit is all the room: x-vinfer-max-tokens {streamed.headers['x-vinfer-max-tokens']}"


def no_limit_by_another_name(server: Server) -> str:
    response = server.complete(prompt="The capital of France is", max_tokens=None, n_predict=-1, stop=["."])
    assert choice(response)["finish_reason"] == "stop"
    return "200, as max_tokens: -1"


def null_max_tokens(server: Server) -> str:
    assert answered(server.complete(max_tokens=None))["usage"]["completion_tokens"] > 0
    return "200, null is left out"


def echo(server: Server) -> str:
    text = choice(server.complete(echo=True))["text"]
    assert text.startswith("Hello")
    return f"200: {text!r}"


def repeat_penalty(server: Server) -> str:
    assert answered(server.complete(repeat_penalty=1.2, top_k=100, temperature=1.5, top_p=1.0))
    return "200, repeat_penalty is repetition_penalty"


def samplers_that_are_off(server: Server) -> str:
    off = {"mirostat": 0, "mirostat_tau": 5, "mirostat_eta": 0.1, "dry_multiplier": 0, "dry_base": 1.75}
    off |= {"dry_allowed_length": 2, "dry_sequence_breakers": ["\n"], "dry_range": 0, "early_stopping": False}
    off |= {
        "dynamic_temperature": False,
        "xtc_probability": 0,
        "xtc_threshold": 0.1,
        "dynatemp_range": 0,
        "typical_p": 1,
        "min_keep": 0,
    }
    assert choice(server.chat(**off))["message"]["content"] == ANSWER
    return "200, the same answer; " + refused(server.chat(mirostat=2, mirostat_tau=5), "mirostat")


def logprobs_alone(server: Server) -> str:
    tokens = choice(server.chat(logprobs=True))["logprobs"]["content"]
    assert all(token["top_logprobs"] == [] for token in tokens)
    assert choice(server.chat(top_logprobs=0))["logprobs"] is None
    return "200, a logprob for each token and no alternatives"


def partial_characters(server: Server) -> str:
    tokens = choice(server.chat(messages=[{"role": "user", "content": "😊 😊 😊"}], logprobs=True))
    said = tokens["message"]["content"].encode()
    listed = bytes(byte for token in tokens["logprobs"]["content"] for byte in token["bytes"])
    assert listed.startswith(said), (listed, said)
    return "200, the bytes of all tokens are those of the text"


def bytes_that_are_no_text(server: Server) -> str:
    listed = choice(server.complete(prompt="“quote” 世界 🌍", logprobs=20, echo=True, max_tokens=1))[
        "logprobs"
    ]
    # The token itself comes on top if it is none of the most likely.
    assert all(20 <= len(top) <= 21 for top in listed["top_logprobs"][1:]), listed["top_logprobs"]
    return "200, 20 alternatives for each token: those that are no text are written as bytes"


def default_temperature(server: Server) -> str:
    defaults = answered(server.request("GET", "/v1/capabilities"))["models"][0]["sampling_defaults"]
    assert defaults["temperature"] == 0.7, defaults
    seeded = [choice(server.chat(temperature=None, seed=seed))["message"]["content"] for seed in (1, 2)]
    assert seeded[0] != seeded[1], seeded
    return "the temperature of the config applies: 0.7 here"


def template_variables(server: Server) -> str:
    return refused(server.chat(chat_template_kwargs={"enable_thinking": False}), "is not read by")


def stop_strings(server: Server) -> str:
    whole = choice(server.chat(stop=["of Fr"], max_tokens=60))
    streamed = events(server.chat(stop=["of Fr"], max_tokens=60, stream=True))
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in streamed)
    assert whole["message"]["content"] == text == "The capital "
    return "'The capital ', whole and streamed; the stop string spans two tokens"


def without_content_type(server: Server) -> str:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = server.request("POST", "/v1/chat/completions", content=_BODY, headers=headers)
    assert response.status_code == 415
    assert "send application/json" in response.text
    return "415, and the message says what to send"


def upgrade(server: Server) -> str:
    answer = server.raw(_HEAD + _H2C, _BODY)
    assert answer.startswith(b"HTTP/1.1 200 OK"), answer[:200]
    assert ANSWER.encode() in answer
    return "200 over HTTP/1.1: the upgrade is not taken, and the body is read"


def wrong_base_url(server: Server) -> str:
    response = server.request("POST", "/chat/completions", json={})
    assert response.status_code == 404
    assert "did you mean POST /v1/chat/completions" in response.text
    return "404, which names the route that was meant"


def probes_of_agents(server: Server) -> str:
    assert server.request("HEAD", "/").status_code == 200
    assert answered(server.message("/v1/messages?beta=true"))["role"] == "assistant"
    return "200 for HEAD / and for ?beta=true"


def embeddings(server: Server) -> str:
    one = answered(server.post("/v1/embeddings", input="ABCDEF"))["data"]
    many = answered(server.post("/v1/embeddings", input=["ABCDEF", "hello"]))["data"]
    assert len(one) == 1
    assert [len(item["embedding"]) for item in many] == [576, 576]
    return "200, a vector for each input"


def long_input(server: Server) -> str:
    return refused(server.post("/v1/embeddings", input="Lorem ipsum " * 5000), "max_model_len")


def content_as_object(server: Server) -> str:
    part = {"type": "text", "text": {"value": "Hola", "annotations": []}}
    return refused(
        server.chat(messages=[{"role": "user", "content": [part]}]), "content[0].text is an object"
    )


REPORTS = (
    Report(
        "lmstudio-ai/lmstudio-js#320",
        "clients of LM Studio stream with `max_tokens: -1`",
        "the request of the report",
        no_limit,
        "mended",
        "was a 400; tests/server/fields/test_foreign_fields.py",
    ),
    Report(
        "lmstudio-ai/lmstudio-bug-tracker#1829",
        "answers end early, also with -1 for no limit",
        "-1 under llama.cpp's name, `n_predict`",
        no_limit_by_another_name,
        "mended",
        "was a 400; the same test",
    ),
    Report("vllm-project/vllm#19862", "500 for `max_tokens: null`", "the same", null_max_tokens),
    Report("vllm-project/vllm#3145", "500 for `echo: true`", "the same", echo),
    Report(
        "containers/ramalama#752",
        "the server dies of `repeat_penalty` and others",
        "the same",
        repeat_penalty,
    ),
    Report(
        "SillyTavern/SillyTavern#2048",
        "clients send the settings of all samplers, also of those that are off",
        "settings of six samplers that are off",
        samplers_that_are_off,
        "mended",
        "was a 400; tests/server/fields/test_request_fields.py",
    ),
    Report(
        "vllm-project/vllm#4795",
        "`logprobs: true` without `top_logprobs` fails",
        "the same, and `top_logprobs: 0` alone",
        logprobs_alone,
        "mended",
        "the second was a 400; tests/server/fields/test_words_of_refusals.py",
    ),
    Report("ollama/ollama#13497", "logprobs of parts of characters are U+FFFD", "emoji", partial_characters),
    Report(
        "vllm-project/vllm#16540",
        "400 for many logprobs, because several tokens are no text",
        "20 logprobs of a prompt with curly quotes and emoji",
        bytes_that_are_no_text,
    ),
    Report(
        "ollama/ollama#17744",
        "the model's own temperature is ignored on /v1",
        "a request without temperature",
        default_temperature,
    ),
    Report(
        "ollama/ollama#16240",
        "`chat_template_kwargs` is accepted and never read",
        "a variable that the template does not read",
        template_variables,
    ),
    Report(
        "vllm-project/vllm#3672",
        "stop strings over several tokens are not cut off, or only at tokens",
        "a stop string in the middle of tokens",
        stop_strings,
    ),
    Report(
        "meta-models/meta-oss-cookbook#2",
        "curl without `Content-Type` gets a validation error",
        "the same",
        without_content_type,
    ),
    Report(
        "askimo-ai/askimo#593",
        "Java's HTTP client asks for HTTP/2, and vLLM fails",
        "a POST with `Upgrade: h2c`",
        upgrade,
    ),
    Report("abetlen/llama-cpp-python#1032", "404 without the /v1", "the same", wrong_base_url),
    Report(
        "ollama/ollama#13949",
        "Claude Code's `HEAD /` and `?beta=true`",
        "the same",
        probes_of_agents,
    ),
    Report("ggml-org/llama.cpp#14204", "500 for embeddings of a string", "a string, and a list", embeddings),
    Report(
        "ggml-org/llama.cpp#7277",
        "an input that is too long is returned instead of a vector",
        "25,000 tokens",
        long_input,
    ),
    Report("janhq/jan#4837", "500 for `text` as an object", "the same", content_as_object),
)
