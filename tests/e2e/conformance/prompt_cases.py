"""Cases of the fields that make up a prompt, on every route that takes one: its exact ids are known."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from answer_cases import LOGPROB_ERROR, check_top, check_top_logprobs, expected_logprobs
from image_cases import MESSAGE_IMAGE_CASES
from routes import MESSAGES, PROMPT, Route
from sampling_cases import DRAWN, GREEDY
from tiny_server import BOS_ID, MAX_MODEL_LEN, MODEL, Answer

Case = Callable[[Route], None]

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLED = {"role": "assistant", "content": "so", "tool_calls": [CALL]}

# For each form of a body: its route, and the field that contains the conversation.
CONVERSATIONS = {
    "ChatFields": ("/v1/chat/completions", "messages"),
    "CountMessages": ("/v1/count_tokens", "conversation"),
    "TokenizeMessages": ("/tokenize", "messages"),
}


def check_prompt(route: Route, text: str, **fields: Any) -> None:
    """Check that a conversation becomes exactly this prompt, by its ids, their count, or its answer."""
    path, _ = CONVERSATIONS[route.form]
    ids = route.talk.ids(text)
    body = {"model": MODEL, **fields}
    if route.form == "CountMessages":
        assert route.talk.post(path, body) == {"model": MODEL, "count": len(ids)}
    elif route.form == "TokenizeMessages":
        tokenized = route.talk.post(path, body)
        assert (tokenized["tokens"], tokenized["count"]) == (ids, len(ids))
        assert tokenized["max_model_len"] == MAX_MODEL_LEN
    else:
        document = route.talk.post(path, {**body, **GREEDY, "max_tokens": 3, "logprobs": True})
        assert document["usage"]["prompt_tokens"] == len(ids)
        (choice,) = document["choices"]
        assert route.answer(choice).ids == route.expected.answer(ids, {**GREEDY, "max_tokens": 3}).ids


def shown(messages: list[dict[str, Any]], text: str) -> Case:
    """Return the case of a part of a message that the template shows."""

    def check(route: Route) -> None:
        _, field = CONVERSATIONS[route.form]
        check_prompt(route, f"{text}|assistant: ", **{field: messages})

    return check


def check_part_type(route: Route) -> None:
    """A text part is text, and images have their own cases; an error for any other kind names its path."""
    path, field = CONVERSATIONS[route.form]
    shown([{"role": "user", "content": [{"type": "text", "text": "one part"}]}], "user: one part")(route)
    audio = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    body = {"model": MODEL, field: [{"role": "user", "content": [{"type": "text", "text": "a"}, audio]}]}
    assert route.talk.refusal(path, body)["param"] == f"{field}[0].content[1].type"


def check_role(route: Route) -> None:
    roles = ("system", "developer", "user", "assistant")
    text = "|".join(f"{role}: {role}s" for role in roles)
    shown([{"role": role, "content": f"{role}s"} for role in roles], text)(route)


CALLED_TEXT = 'user: hi|assistant: so c1 function add{"a": 1}'
MESSAGE_CASES: Mapping[str, Case] = {
    "role": check_role,
    "content.type": check_part_type,
    "content.text": shown(
        [
            {"role": "user", "content": "Gruß <s>"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
        "user: Gruß <s>|user: a\nb",
    ),
    "name": shown([{**USER, "name": "bob"}], "user: hi name=bob"),
    "tool_calls.id": shown(
        [USER, {**CALLED, "tool_calls": [{**CALL, "id": "x"}]}], CALLED_TEXT.replace("c1", "x")
    ),
    "tool_calls.type": shown(
        [USER, {**CALLED, "tool_calls": [{"id": "c1", "function": CALL["function"]}]}], CALLED_TEXT
    ),
    "tool_calls.function.name": shown([USER, CALLED], CALLED_TEXT),
    "tool_calls.function.arguments": shown([USER, CALLED], CALLED_TEXT),
    "tool_call_id": shown(
        [USER, CALLED, {"role": "tool", "content": "3", "tool_call_id": "c1"}],
        f"{CALLED_TEXT}|tool: 3 tool_call_id=c1",
    ),
    "reasoning_content": shown(
        [USER, {"role": "assistant", "content": "ho", "reasoning_content": "hm"}],
        "user: hi|assistant: ho reasoning_content=hm",
    ),
    **MESSAGE_IMAGE_CASES,
}


def check_add_generation_prompt(route: Route) -> None:
    text = f"user: {PROMPT}|"
    check_prompt(route, text, messages=MESSAGES, add_generation_prompt=False)
    check_prompt(route, f"{text}assistant: ", messages=MESSAGES, add_generation_prompt=True)


def check_continue_final_message(route: Route) -> None:
    messages = [USER, {"role": "assistant", "content": "The sky"}]
    check_prompt(route, "user: hi|assistant: The sky", messages=messages, continue_final_message=True)
    check_prompt(route, "user: hi|assistant: The sky|assistant: ", messages=messages)


def check_max_completion_tokens(route: Route) -> None:
    (answer,) = route.ask(temperature=0, max_completion_tokens=4)
    assert answer == route.expected.answer(route.prompt, {"temperature": 0, "max_tokens": 4})
    assert len(answer.ids) == 4
    assert route.refusal(max_completion_tokens=0) == "max_completion_tokens"


def check_include_reasoning(route: Route) -> None:
    """This model does not reason; the server's tests have one that does."""
    for include in (True, False):
        answers = route.ask(**GREEDY, include_reasoning=include)
        assert answers == [route.expected.answer(route.prompt, GREEDY)]
    assert route.refusal(**GREEDY, include_reasoning="no") == "include_reasoning"


def check_modalities(route: Route) -> None:
    """Only text is supported."""
    assert route.ask(**GREEDY, modalities=["text"]) == [route.expected.answer(route.prompt, GREEDY)]
    assert route.refusal(**GREEDY, modalities=["audio"]) == "modalities[0]"


def check_completion_prompt(route: Route) -> None:
    """A text begins with BOS, and token ids are used unchanged; a list of either gets one answer each."""
    text, ids = "A horse", route.talk.ids("a kingdom")
    prompts = {
        "text": (text, [[BOS_ID, *route.talk.ids(text)]]),
        "ids": (ids, [ids]),
        "lists": ([text, ids, ids[:4]], [[BOS_ID, *route.talk.ids(text)], ids, ids[:4]]),
    }
    for sent, expected in prompts.values():
        answers = route.ask(**GREEDY, prompt=sent)
        assert answers == [route.expected.answer(prompt, GREEDY) for prompt in expected]


def check_best_of(route: Route) -> None:
    """The two of three answers with the highest mean logprob per token, the best one first."""
    drawn = [route.expected.answer(route.prompt, DRAWN, choice=choice) for choice in range(3)]

    def mean_logprob(answer: Answer) -> float:
        ids = [*answer.ids, *([BOS_ID + 1] if answer.finish_reason == "stop" else [])]
        exact = expected_logprobs(route.expected, route.prompt, ids)
        return float(exact[np.arange(len(ids)), ids].mean())

    assert route.ask(**DRAWN, n=2, best_of=3) == sorted(drawn, key=mean_logprob, reverse=True)[:2]
    assert route.refusal(**DRAWN, n=2, best_of=1) == "best_of"


def check_echo(route: Route) -> None:
    """The prompt precedes the answer, and each of its tokens except the first has its own logprob."""
    document = route.talk.post(route.path, route.body({**GREEDY, "echo": True, "logprobs": 2}))
    (choice,) = document["choices"]
    answer = route.expected.answer(route.prompt, GREEDY)
    assert choice["text"] == PROMPT + answer.text
    logprobs = choice["logprobs"]
    ids = [*route.prompt, *answer.ids]
    assert route.tokens(logprobs) == ids
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    exact = expected_logprobs(route.expected, ids[:1], ids[1:])
    own = exact[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(logprobs["token_logprobs"][1:], own, atol=LOGPROB_ERROR)
    check_top(route.talk, logprobs["top_logprobs"][1:], exact, 2)
    (choice,) = route.talk.post(route.path, route.body({"echo": True, "max_tokens": 0}))["choices"]
    assert (choice["text"], route.tokens(choice["logprobs"])) == (PROMPT, route.prompt)


def check_count_text(route: Route) -> None:
    """A text is counted by itself, without BOS."""
    count = route.talk.post("/v1/count_tokens", {"model": MODEL, "conversation": "Gruß"})["count"]
    assert count == len(route.talk.ids("Gruß")) == 5


def check_tokenized_prompt(route: Route) -> None:
    """As in a completion, a special token that is spelled out is special."""
    tokenized = route.talk.post("/tokenize", {"model": MODEL, "prompt": "hé</s>"})
    ids = [BOS_ID, *route.talk.ids("hé"), BOS_ID + 1]
    assert (tokenized["tokens"], tokenized["count"]) == (ids, 5)


def check_add_special_tokens(route: Route) -> None:
    body = {"model": MODEL, "prompt": "hi", "add_special_tokens": False}
    assert route.talk.post("/tokenize", body)["tokens"] == route.talk.ids("hi")
    body["add_special_tokens"] = True
    assert route.talk.post("/tokenize", body)["tokens"] == [BOS_ID, *route.talk.ids("hi")]


def check_return_token_strs(route: Route) -> None:
    """They are spelled as in the vocabulary."""
    body: dict[str, Any] = {"prompt": "a b"}
    spelled = ["<s>", "a", "Ġ", "b"]
    if route.form == "TokenizeMessages":
        body = {"messages": [{"role": "user", "content": "b"}], "add_generation_prompt": False}
        spelled = list("user:Ġb|")
    assert route.talk.post("/tokenize", {"model": MODEL, **body})["token_strs"] is None
    assert (
        route.talk.post("/tokenize", {"model": MODEL, **body, "return_token_strs": True})["token_strs"]
        == spelled
    )


def check_tokens(route: Route) -> None:
    """Special tokens are shown; an error for an id beyond the tokenizer's names its path."""
    ids = [BOS_ID, *route.talk.ids("Gru\u00df \U0001f600")]
    body = {"model": MODEL, "tokens": ids}
    assert route.talk.post("/detokenize", body) == {"prompt": "<s>Gru\u00df \U0001f600"}
    assert route.talk.refusal("/detokenize", {"model": MODEL, "tokens": [1, 258]})["param"] == "tokens[1]"


def check_named_model(path: str, **fields: Any) -> Case:
    """Return the case of `model` on a route without answers: a served name is accepted, another refused."""

    def check(route: Route) -> None:
        assert route.talk.post(path, {"model": MODEL, **fields})
        response = route.talk.http.post(path, json={"model": "none", **fields})
        assert response.status_code == 404
        assert response.json()["error"]["param"] == "model"

    return check


def conversation(field: str) -> dict[str, Case]:
    return {f"{field}.{path}": case for path, case in MESSAGE_CASES.items()}


def embedded(route: Route, **fields: Any) -> list[Any]:
    body = {"model": MODEL, "input": PROMPT, **fields}
    return [item["embedding"] for item in route.talk.post("/v1/embeddings", body)["data"]]


def check_vector(vector: Any, expected: Any) -> None:
    assert len(vector) == len(expected)
    assert np.abs(np.asarray(vector) - expected).max() <= 1e-5


def check_input(route: Route) -> None:
    whole, ids = [BOS_ID, *route.talk.ids(PROMPT)], route.talk.ids("an other")
    for sent, prompts in ((PROMPT, [whole]), (ids, [ids]), ([PROMPT, ids], [whole, ids])):
        for vector, prompt in zip(embedded(route, input=sent), prompts, strict=True):
            check_vector(vector, route.expected.embedding(prompt))


def check_encoding_format(route: Route) -> None:
    (numbers,) = embedded(route, encoding_format="float")
    (text,) = embedded(route, encoding_format="base64")
    assert np.frombuffer(base64.b64decode(text, validate=True), "<f4").tolist() == numbers


def check_dimensions(route: Route) -> None:
    first = route.expected.embedding([BOS_ID, *route.talk.ids(PROMPT)])[:5]
    check_vector(embedded(route, dimensions=5)[0], first / np.linalg.norm(first))


def check_truncate(route: Route) -> None:
    """The last tokens are kept, and the beginning-of-sequence token if there is one."""
    ids = route.talk.ids(PROMPT)
    (vector,) = embedded(route, truncate_prompt_tokens=5)
    check_vector(vector, route.expected.embedding([BOS_ID, *ids[-4:]]))
    (vector,) = embedded(route, input=ids, truncate_prompt_tokens=5)
    check_vector(vector, route.expected.embedding(ids[-5:]))
    (vector,) = embedded(route, input=ids * 100, truncate_prompt_tokens=-1)
    check_vector(vector, route.expected.embedding((ids * 100)[-MAX_MODEL_LEN:]))


PROMPT_CASES: dict[str, dict[str, Case]] = {
    "ChatFields": {
        **conversation("messages"),
        "max_completion_tokens": check_max_completion_tokens,
        "top_logprobs": check_top_logprobs,
        "modalities": check_modalities,
        "include_reasoning": check_include_reasoning,
        "add_generation_prompt": check_add_generation_prompt,
        "continue_final_message": check_continue_final_message,
    },
    "CompletionFields": {
        "prompt": check_completion_prompt,
        "best_of": check_best_of,
        "echo": check_echo,
    },
    "EmbeddingFields": {
        "model": check_named_model("/v1/embeddings", input="a"),
        "input": check_input,
        "encoding_format": check_encoding_format,
        "dimensions": check_dimensions,
        "truncate_prompt_tokens": check_truncate,
    },
    "CountText": {
        "model": check_named_model("/v1/count_tokens", conversation="a"),
        "conversation": check_count_text,
    },
    "CountMessages": {
        "model": check_named_model("/v1/count_tokens", conversation=MESSAGES),
        **conversation("conversation"),
    },
    "TokenizeText": {
        "model": check_named_model("/tokenize", prompt="a"),
        "prompt": check_tokenized_prompt,
        "add_special_tokens": check_add_special_tokens,
        "return_token_strs": check_return_token_strs,
    },
    "TokenizeMessages": {
        "model": check_named_model("/tokenize", messages=MESSAGES),
        **conversation("messages"),
        "return_token_strs": check_return_token_strs,
        "add_generation_prompt": check_add_generation_prompt,
        "continue_final_message": check_continue_final_message,
    },
    "DetokenizeFields": {
        "model": check_named_model("/detokenize", tokens=[4]),
        "tokens": check_tokens,
    },
}
