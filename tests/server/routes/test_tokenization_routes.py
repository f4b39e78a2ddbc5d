"""`/tokenize`, `/detokenize`, `/tokenizer_info`: the ids are those that the generating routes see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import (
    BOS,
    EOS,
    FIRST_BYTE,
    IM_END,
    IM_START,
    SPECIALS,
    TEMPLATE,
    VOCAB_SIZE,
    FakeEngine,
    ids_of,
    served_model,
)
from running_server import RunningServer, Start, run
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import processors

from vinfer.config import ServerConfig
from vinfer.server.fields import tokenization
from vinfer.server.fields.tokenization import TOKENIZE_MESSAGES
from vinfer.server.fields.treatment import Treatment
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer

HI = {"role": "user", "content": "hi"}
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [HI]},
    {"messages": [HI], "add_generation_prompt": False},
    {"messages": [{"role": "user", "content": "a <|im_end|> b</s>"}]},
    {"messages": [HI, {"role": "assistant", "content": "So"}], "continue_final_message": True},
]


def tokenize(server: RunningServer, **fields: Any) -> httpx.Response:
    return server.http.post("/tokenize", json={"model": "fake", **fields})


def detokenize(server: RunningServer, **fields: Any) -> httpx.Response:
    return server.http.post("/detokenize", json={"model": "fake", **fields})


def test_text(server: RunningServer) -> None:
    response = tokenize(server, prompt="Grüße", return_token_strs=True)
    assert response.status_code == 200
    assert response.json() == {
        "count": 7,
        "max_model_len": 128,
        "tokens": ids_of("Grüße"),
        "token_strs": ["G", "r", "Ã", "¼", "Ã", "Ł", "e"],
    }
    assert tokenize(server, prompt="").json()["tokens"] == []
    assert tokenize(server, prompt="a").json()["token_strs"] is None
    assert tokenize(server, prompt="a", messages=None, return_token_strs=None).status_code == 200
    assert server.engine.requests == []


@pytest.mark.parametrize("prompt", ["ab", "<s>ab</s>", "日本 <|im_start|>"])
def test_text_has_the_ids_that_completions_see(server: RunningServer, prompt: str) -> None:
    server.complete(prompt=prompt)
    assert tuple(tokenize(server, prompt=prompt).json()["tokens"]) == server.engine.requests[0].prompt_ids


@pytest.mark.parametrize("fields", CONVERSATIONS)
def test_conversation_has_the_ids_that_chat_sees(server: RunningServer, fields: dict[str, Any]) -> None:
    server.chat(**fields)
    body = tokenize(server, **fields).json()
    assert tuple(body["tokens"]) == server.engine.requests[0].prompt_ids
    assert body["count"] == len(body["tokens"])


def test_special_tokens_in_a_message_are_text(server: RunningServer) -> None:
    token_ids = tokenize(server, messages=[{"role": "user", "content": "</s>"}]).json()["tokens"]
    assert token_ids == [
        *(IM_START, *ids_of("user\n</s>"), IM_END),
        *(IM_START, *ids_of("assistant\n")),
    ]


def test_add_special_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The tokenizer's post-processor begins each text with BOS, as Llama's does."""
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    fast = FastTokenizer.from_str(tokenizer._fast.to_str())
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    fast.save(str(directory / "tokenizer.json"))
    (directory / "special_tokens.json").write_text('{"bos_token": "<s>"}')
    engine, models = FakeEngine(), ModelTable(["fake"])
    models.serve(served_model(engine, Tokenizer.load(directory)))
    with run(ServerConfig(port=0), models, engine) as server:
        assert tokenize(server, prompt="a").json()["tokens"] == [BOS, *ids_of("a")]
        assert tokenize(server, prompt="a", add_special_tokens=True).json()["tokens"] == [BOS, *ids_of("a")]
        assert tokenize(server, prompt="a", add_special_tokens=False).json()["tokens"] == ids_of("a")
        # In a conversation the template writes the special tokens.
        assert tokenize(server, messages=[HI]).json()["tokens"][0] == IM_START


def test_detokenize(server: RunningServer) -> None:
    response = detokenize(server, tokens=[BOS, *ids_of("日本"), EOS])
    assert response.status_code == 200
    assert response.json() == {"prompt": "<s>日本</s>"}
    assert detokenize(server, tokens=[]).json() == {"prompt": ""}
    assert detokenize(server, tokens=ids_of("日")[:2]).json() == {"prompt": "\ufffd"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a", "messages": [HI]}, "prompt"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": "a", "mood": "good"}, "mood"),
        ({"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ({"prompt": "a", "return_token_strs": "yes"}, "return_token_strs"),
        ({"prompt": "a", "model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [HI], "continue_final_message": True}, "continue_final_message"),
        ({"messages": [HI], "add_generation_prompt": "no"}, "add_generation_prompt"),
        ({"messages": [HI], "return_token_strs": 1}, "return_token_strs"),
        ({"messages": [HI], "temperature": 1}, "temperature"),
    ],
)
def test_bad_tokenize_field(server: RunningServer, fields: dict[str, Any], param: str) -> None:
    response = tokenize(server, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


@pytest.mark.parametrize(
    "field",
    sorted(k for k, rule in TOKENIZE_MESSAGES.rules.items() if rule.treatment is Treatment.REFUSED),
)
def test_refused_tokenize_field(server: RunningServer, field: str) -> None:
    error = tokenize(server, messages=[HI], **{field: {"some": "thing"}}).json()["error"]
    assert error["param"] == field
    assert TOKENIZE_MESSAGES.rules[field].reason in error["message"]
    for neutral in (None, *TOKENIZE_MESSAGES.rules[field].neutral):
        assert tokenize(server, messages=[HI], **{field: neutral}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "tokens"),
        ({"tokens": "a"}, "tokens"),
        ({"tokens": [4, "a"]}, "tokens[1]"),
        ({"tokens": [True]}, "tokens[0]"),
        ({"tokens": [4.5]}, "tokens[0]"),
        ({"tokens": [-1]}, "tokens[0]"),
        ({"tokens": [4, VOCAB_SIZE]}, "tokens[1]"),
        ({"tokens": [10**30]}, "tokens[0]"),
        ({"tokens": [4], "skip_special_tokens": True}, "skip_special_tokens"),
    ],
)
def test_bad_detokenize_field(server: RunningServer, fields: dict[str, Any], param: str) -> None:
    response = detokenize(server, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_limits(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    num_chars, num_tokens = tokenization.MAX_PROMPT_CHARS, tokenization.MAX_TOKENS
    with start() as server:
        fits = tokenize(server, prompt="a" * num_chars)
        assert fits.json()["count"] == num_chars
        error = tokenize(server, prompt="a" * (num_chars + 1)).json()["error"]
        assert error["param"] == "prompt"
        assert str(num_chars) in error["message"]
        text = detokenize(server, tokens=[FIRST_BYTE + 97] * num_tokens).json()["prompt"]
        assert text == "a" * num_tokens
        error = detokenize(server, tokens=[4] * (num_tokens + 1)).json()["error"]
        assert error["param"] == "tokens"
        assert str(num_tokens) in error["message"]
        assert tokenize(server, prompt="a" * (4 << 20)).status_code == 413


def test_a_model_without_template_has_no_conversations(tokenizer: Tokenizer) -> None:
    engine, models = FakeEngine(), ModelTable(["fake"])
    models.serve(served_model(engine, tokenizer, chat_template=None))
    with run(ServerConfig(port=0), models, engine) as server:
        response = tokenize(server, messages=[HI])
        assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")
        assert server.http.get("/tokenizer_info").json()["chat_template"] is None


def test_tokenizer_info(server: RunningServer) -> None:
    response = server.http.get("/tokenizer_info")
    assert response.status_code == 200
    body = response.json()
    added = body.pop("added_tokens_decoder")
    assert body == {
        "model": "fake",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 128,
        "vocab_size": VOCAB_SIZE,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": None,
        "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "chat_template": TEMPLATE,
    }
    assert [(key, token["content"], token["special"]) for key, token in added.items()] == [
        (str(i), token, True) for i, token in enumerate(SPECIALS)
    ]


def test_model_may_be_left_out_where_there_is_one(server: RunningServer) -> None:
    assert server.http.post("/tokenize", json={"prompt": "a"}).json()["tokens"] == ids_of("a")
    assert server.http.post("/detokenize", json={"tokens": ids_of("a")}).json() == {"prompt": "a"}
    for response in (
        server.http.post("/tokenize", json={"prompt": "a", "model": "other"}),
        server.http.get("/tokenizer_info", params={"model": "other"}),
    ):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


def test_model_must_be_named_where_there_are_several(tokenizer: Tokenizer) -> None:
    engine, models = FakeEngine(), ModelTable(["one", "two"])
    models.serve(served_model(engine, tokenizer, name="one"))
    with run(ServerConfig(port=0), models, engine) as server:
        for response in (
            server.http.post("/tokenize", json={"prompt": "a"}),
            server.http.post("/detokenize", json={"tokens": [4]}),
            server.http.get("/tokenizer_info"),
        ):
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, "model")
            assert "one, two" in error["message"]
        assert server.http.get("/tokenizer_info", params={"model": "one"}).json()["model"] == "one"
        assert server.http.get("/tokenizer_info", params={"model": "two"}).status_code == 503
