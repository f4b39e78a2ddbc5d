"""Cases of the fields that decide what an answer shows, where it ends and which form it has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from expected import Expected
from routes import Route
from sampling_cases import DRAWN, GREEDY
from tiny.checkpoints import NUM_TOKENS
from tiny_server import EOS_ID, MODEL, OTHER, OTHER_MAX_TOKENS, Talk, in_pieces

Case = Callable[[Route], None]

LOGPROB_ERROR = 1e-4


def check_model(route: Route) -> None:
    """Another name is another model: its own defaults apply, and the answer carries its name."""
    for model, fields in (
        (MODEL, {"max_tokens": 6, "temperature": 0}),
        (OTHER, {"max_tokens": OTHER_MAX_TOKENS, "temperature": 0}),
    ):
        sent = {**fields, "model": model} if model == MODEL else {"model": model}
        document = route.talk.post(route.path, route.body(sent))
        assert document["model"] == model
        assert route.answer(document["choices"][0]).ids == route.expected.answer(route.prompt, fields).ids


def check_stop(route: Route) -> None:
    """The text ends before the first of the strings, wherever the tokens end."""
    fields = {**DRAWN, **letters(route.talk)}
    whole = route.expected.answer(route.prompt, fields).text
    stop = whole[-2:]
    assert whole.index(stop) > 0
    (answer,) = route.ask(**fields, stop=["never", stop])
    assert (answer.text, answer.finish_reason) == (whole[: whole.index(stop)], "stop")
    (answer,) = route.ask(**fields, stop=stop)
    assert (answer.text, answer.finish_reason) == (whole[: whole.index(stop)], "stop")


def check_include_stop(route: Route) -> None:
    """The text ends with the first of the strings."""
    fields = {**DRAWN, **letters(route.talk)}
    whole = route.expected.answer(route.prompt, fields).text
    stop = whole[-2:]
    for is_included, end in ((True, whole.index(stop) + 2), (False, whole.index(stop))):
        (answer,) = route.ask(**fields, stop=stop, include_stop_str_in_output=is_included)
        assert (answer.text, answer.finish_reason) == (whole[:end], "stop")


def check_token_ids(route: Route) -> None:
    """The ids of the prompt and of the answer, with the end token."""
    answer = route.expected.answer(route.prompt, DRAWN)
    document = route.talk.post(route.path, route.body({**DRAWN, "return_token_ids": True}))
    (choice,) = document["choices"]
    end = [EOS_ID] if answer.finish_reason == "stop" else []
    assert choice["token_ids"] == [*answer.ids, *end]
    assert (document if route.is_chat else choice)["prompt_token_ids"] == route.prompt


def letters(talk: Talk) -> dict[str, Any]:
    """Return a bias that leaves only letters: a token is one byte, and most bytes are not valid UTF-8."""
    kept = set(talk.ids("abcdefghijklmnopqrstuvwxyz"))
    return {"logit_bias": {str(i): -100.0 for i in range(NUM_TOKENS) if i not in kept}}


def check_logprobs(route: Route) -> None:
    """They come from the model's own distribution, before penalties, bias and temperature."""
    fields = {**DRAWN, "temperature": 0.7, "top_k": 20, "presence_penalty": 1.0, "logit_bias": {"40": 3.0}}
    document = route.talk.post(route.path, route.body({**fields, "logprobs": True if route.is_chat else 3}))
    logprobs = document["choices"][0]["logprobs"]
    ids = route.tokens(logprobs)
    assert ids == route.expected.answer(route.prompt, fields).ids
    exact = expected_logprobs(route.expected, route.prompt, ids)
    if route.is_chat:
        own = [entry["logprob"] for entry in logprobs["content"]]
        assert [entry["top_logprobs"] for entry in logprobs["content"]] == [[]] * len(ids)
    else:
        own = logprobs["token_logprobs"]
        check_top(route.talk, logprobs["top_logprobs"], exact, 3)
        for token, top, row in zip(ids, logprobs["top_logprobs"], exact, strict=True):
            # The top three and the token itself.
            shown = {int(best) for best in row.argsort()[::-1][:3]} | {token}
            assert {route.talk.id_of_label(label) for label in top} == {
                token_id if token_id < NUM_TOKENS else None for token_id in shown
            }
    np.testing.assert_allclose(own, exact[np.arange(len(ids)), ids], atol=LOGPROB_ERROR)
    without = route.body(fields)
    del without["logprobs"]
    assert route.talk.post(route.path, without)["choices"][0]["logprobs"] is None


def check_top_logprobs(route: Route) -> None:
    for num in (1, 20):
        fields = {**GREEDY, "max_tokens": 4}
        document = route.talk.post(route.path, route.body({**fields, "top_logprobs": num}))
        logprobs = document["choices"][0]["logprobs"]
        ids = route.tokens(logprobs)
        tops = [
            {entry["token"]: entry["logprob"] for entry in entry["top_logprobs"]}
            for entry in logprobs["content"]
        ]
        assert [len(entry["top_logprobs"]) for entry in logprobs["content"]] == [num] * 4
        check_top(route.talk, tops, expected_logprobs(route.expected, route.prompt, ids), num)


def expected_logprobs(expected: Expected, prompt: list[int], ids: list[int]) -> Any:
    """Return float64 [len(ids), vocab], the logprobs at each token of an answer."""
    return expected.logprobs([*prompt, *ids])[len(prompt) - 1 : -1]


def check_top(talk: Talk, tops: list[dict[str, float]], exact: Any, num: int) -> None:
    """Compare the top tokens and their logprobs; ids that the tokenizer lacks share one spelling."""
    for top, row in zip(tops, exact, strict=True):
        best = [int(token) for token in row.argsort()[::-1][:num]]
        found = {talk.id_of_label(label): logprob for label, logprob in top.items()}
        for token in best:
            if token < NUM_TOKENS:
                assert abs(found[token] - row[token]) < LOGPROB_ERROR


def check_stream(route: Route) -> None:
    """The same tokens and text arrive in several events, in order, each with its piece of the text."""
    fields = {**DRAWN, "max_tokens": 30}
    expected = route.expected.answer(route.prompt, fields)

    def texts(events: list[Any]) -> list[str]:
        choices = [choice for event in events for choice in event["choices"]]
        found = [
            choice["delta"].get("content", "") if route.is_chat else choice["text"] for choice in choices
        ]
        return [text for text in found if text]

    events = in_pieces(lambda: route.talk.events(route.path, route.body(fields)), texts)
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(texts(events)) == expected.text
    tokens = [route.tokens(choice["logprobs"]) for choice in choices if choice["logprobs"]]
    assert list(itertools.chain.from_iterable(tokens)) == expected.ids
    assert choices[-1]["finish_reason"] == expected.finish_reason
    (answer,) = route.ask(**fields, stream=False)
    assert answer == expected


def check_include_usage(route: Route) -> None:
    """One more event, without choices, counts everything; the others have null."""
    fields = {**GREEDY, "max_tokens": 6}
    *others, last = route.talk.events(
        route.path, route.body({**fields, "stream_options": {"include_usage": True}})
    )
    assert last["choices"] == []
    counts = {key: last["usage"][key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
    prompt_len = len(route.prompt)
    assert counts == {
        "prompt_tokens": prompt_len,
        "completion_tokens": 6,
        "total_tokens": prompt_len + 6,
    }
    assert [event["usage"] for event in others] == [None] * len(others)
    plain = route.talk.events(route.path, route.body(fields))
    assert all("usage" not in event and event["choices"] for event in plain)


def check_continuous_usage(route: Route) -> None:
    """Every event counts the tokens of the stream so far."""
    options = {"stream_options": {"continuous_usage_stats": True}}
    events = route.talk.events(route.path, route.body({**DRAWN, "max_tokens": 30, **options}))
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert all(event["choices"] for event in events)
    assert counts == sorted(counts)
    assert counts[-1] == 30
    assert len(set(counts)) > 2


def check_include_obfuscation(route: Route) -> None:
    """Chunks are never padded."""
    for include in (True, False):
        options = {"stream_options": {"include_obfuscation": include}}
        events = route.talk.events(route.path, route.body({**DRAWN, **options}))
        assert "obfuscation" not in str(events)
        choices = [choice for event in events for choice in event["choices"]]
        texts = [
            choice["delta"].get("content", "") if route.is_chat else choice["text"] for choice in choices
        ]
        assert "".join(texts) == route.expected.answer(route.prompt, DRAWN).text


def constrained(fields: dict[str, Any], texts: Collection[str], **sampling: Any) -> Case:
    """Return the case of a form: at each token the model takes the likeliest one that the form allows."""

    def check(route: Route) -> None:
        asked = {**GREEDY, "max_tokens": 40, **sampling}
        expected = route.expected.answer(route.prompt, asked, texts=texts)
        assert expected.finish_reason == "stop"
        assert expected.text in texts
        (answer,) = route.ask(**asked, **fields)
        assert (answer.ids, answer.text, answer.finish_reason) == (expected.ids, expected.text, "stop")

    return check


SCHEMA = {
    "type": "object",
    "properties": {"b": {"enum": ["x", "yz"]}, "a": {"type": "boolean"}},
    "required": ["b", "a"],
    "additionalProperties": False,
}
OF_SCHEMA = [f'{{"b": "{b}", "a": {a}}}' for b in ("x", "yz") for a in ("true", "false")]


def json_schema(**fields: Any) -> dict[str, Any]:
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "form", "schema": SCHEMA, **fields},
        }
    }


def check_response_format_type(route: Route) -> None:
    """`json_object` makes an object of what would be endless braces; `text` constrains nothing."""
    braces = {"logit_bias": {str(route.talk.ids("}")[0]): 100.0}}
    constrained({"response_format": {"type": "json_object"}}, ["{}"], **braces)(route)
    (answer,) = route.ask(**GREEDY, **braces, response_format={"type": "text"})
    assert (answer.text, answer.finish_reason) == ("}" * 10, "length")


def check_nested_schema(route: Route) -> None:
    """llama.cpp's place of a schema is refused, and null says nothing."""
    constrained({"response_format": {**json_schema()["response_format"], "schema": None}}, OF_SCHEMA)(route)
    nested = {"type": "json_object", "schema": SCHEMA}
    assert route.refusal(response_format=nested) == "response_format.schema"


def check_schema_name(route: Route) -> None:
    """It does not affect the answer, but must be a valid name."""
    constrained(json_schema(name="another-name_1"), OF_SCHEMA)(route)
    assert route.refusal(**json_schema(name="no name")) == "response_format.json_schema.name"


def check_schema_description(route: Route) -> None:
    constrained(json_schema(description="of people"), OF_SCHEMA)(route)
    assert route.refusal(**json_schema(description=3)) == "response_format.json_schema.description"


def check_schema_strict(route: Route) -> None:
    """The schema is enforced whatever the value."""
    for strict in (True, False):
        constrained(json_schema(strict=strict), OF_SCHEMA)(route)
    assert route.refusal(**json_schema(strict="yes")) == "response_format.json_schema.strict"


def structured(**form: Any) -> dict[str, Any]:
    return {"structured_outputs": form}


def check_priority(route: Route) -> None:
    """It changes no answer; the scheduler's tests check that it decides the order of waiting requests."""
    for priority in (-(2**31) + 1, 2**31 - 1):
        assert route.ask(**DRAWN, priority=priority) == [route.expected.answer(route.prompt, DRAWN)]
    assert route.refusal(**DRAWN, priority=2**31) == "priority"


def check_cache_salt(route: Route) -> None:
    """It changes no answer; an equal prompt finds what was computed only under the same salt."""
    for salt, is_known in (("pepper", False), ("pepper", True), ("salt", False)):
        body = route.body({**DRAWN, "cache_salt": f"{salt} of {route.path}"})
        document = route.talk.post(route.path, body)
        assert route.answer(document["choices"][0]) == route.expected.answer(route.prompt, DRAWN)
        usage = document["usage"]
        # The last token is always computed.
        num_known = usage["prompt_tokens"] - 1 if is_known else 0
        assert usage["prompt_tokens_details"]["cached_tokens"] == num_known
    assert route.refusal(**DRAWN, cache_salt="") == "cache_salt"


def check_cache_prompt(route: Route) -> None:
    """It changes no answer; false computes the whole prompt."""
    for value, is_known in ((True, False), (True, True), (False, False)):
        body = route.body({**DRAWN, "cache_salt": f"cached at {route.path}", "cache_prompt": value})
        document = route.talk.post(route.path, body)
        assert route.answer(document["choices"][0]) == route.expected.answer(route.prompt, DRAWN)
        usage = document["usage"]
        num_known = usage["prompt_tokens"] - 1 if is_known else 0
        assert usage["prompt_tokens_details"]["cached_tokens"] == num_known
    assert route.refusal(**DRAWN, cache_prompt="no") == "cache_prompt"


ANSWER_CASES: dict[str, Case] = {
    "priority": check_priority,
    "cache_salt": check_cache_salt,
    "cache_prompt": check_cache_prompt,
    "model": check_model,
    "stop": check_stop,
    "logprobs": check_logprobs,
    "stream": check_stream,
    "include_stop_str_in_output": check_include_stop,
    "return_token_ids": check_token_ids,
    "stream_options.include_obfuscation": check_include_obfuscation,
    "stream_options.include_usage": check_include_usage,
    "stream_options.continuous_usage_stats": check_continuous_usage,
    "response_format.type": check_response_format_type,
    "response_format.schema": check_nested_schema,
    "response_format.json_schema.name": check_schema_name,
    "response_format.json_schema.description": check_schema_description,
    "response_format.json_schema.schema": constrained(json_schema(), OF_SCHEMA),
    "response_format.json_schema.strict": check_schema_strict,
    "structured_outputs.regex": constrained(
        structured(regex="[ab]{2}c?d"), [f"{a}{b}{c}d" for a in "ab" for b in "ab" for c in ("", "c")]
    ),
    "structured_outputs.choice": constrained(structured(choice=["north", "south"]), ["north", "south"]),
    "structured_outputs.grammar": constrained(
        structured(grammar='start: ("k" | "l") MORE\nMORE: "mm" | "n"'), ["kmm", "kn", "lmm", "ln"]
    ),
    "structured_outputs.json": constrained(structured(json=SCHEMA), OF_SCHEMA),
}
