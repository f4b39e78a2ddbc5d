"""Reports about constrained answers: schemas, grammars, and where they are sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema

from public_reports.report import Report
from public_reports.server import Server, choice, refused

CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER
TEXT = {"type": "string"}
TEAM = {"type": "object", "properties": {"team_name": TEXT}, "required": ["team_name"]}
ZOD_EMAIL = (
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
)


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return an object that has just these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


def form(schema: Any, **more: Any) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True, **more},
    }


def enforced(schema: dict[str, Any], max_tokens: int = 60) -> Callable[[Server], str]:
    """Return a check that an answer satisfies a schema."""

    def check(server: Server) -> str:
        first = choice(server.chat(response_format=form(schema), max_tokens=max_tokens))
        assert first["finish_reason"] == "stop", first
        jsonschema.validate(json.loads(first["message"]["content"]), schema)
        return f"200: {first['message']['content']}"

    return check


def not_enforceable(schema: Any, *words: str) -> Callable[[Server], str]:
    return lambda server: refused(server.chat(response_format=form(schema)), *words)


def formats(server: Server) -> str:
    names = ("uuid", "date", "date-time", "ipv4", "time")
    for name in names:
        schema = closed({"a": {**TEXT, "format": name}})
        text = choice(server.chat(response_format=form(schema), max_tokens=100))["message"]["content"]
        jsonschema.validate(json.loads(text), schema, format_checker=CHECKER)
    return f"200 for {', '.join(names)}"


def free_formats(server: Server) -> str:
    digits = closed({"a": {**TEXT, "pattern": r"^\d{4,4}-\d{2}$"}, "b": {**TEXT, "format": "password"}})
    return enforced(digits)(server)


def grammar_elsewhere(server: Server) -> str:
    return refused(server.chat(grammar="root ::= 'yes'"), "use response_format or structured_outputs.grammar")


def broken_grammar(server: Server) -> str:
    first = refused(server.chat(structured_outputs={"grammar": "route :="}), "cannot be enforced")
    assert choice(server.chat())["finish_reason"] == "stop"
    return first


def broken_grammar_streamed(server: Server) -> str:
    return refused(
        server.chat(structured_outputs={"grammar": "answer := !!"}, stream=True), "cannot be enforced"
    )


def schema_beside(server: Server) -> str:
    return refused(
        server.chat(response_format={"type": "json_object"}, json_schema=TEAM),
        "use response_format or structured_outputs.json",
    )


def schema_inside(server: Server) -> str:
    response = server.chat(response_format={"type": "json_object", "schema": TEAM})
    return refused(response, "use type json_schema, and json_schema.schema")


def misspelled(server: Server) -> str:
    schema = {"type": "object", "properties": {"tags": {"type": "array", "items": TEXT, "min_items": 1}}}
    return refused(server.chat(response_format=form(schema)), "did you mean minItems?")


def every_keyword(server: Server) -> str:
    """Send each keyword that the report names: it is enforced, or refused by name."""
    limited = {"type": "number", "exclusiveMinimum": 2, "maximum": 9, "multipleOf": 0.5}
    for schema in (
        closed({"a": limited}),
        closed({"a": {"type": "integer", "minimum": 3, "exclusiveMaximum": 5}}),
        closed({"a": {"const": "x"}}),
        closed(
            {
                "a": {
                    "type": "array",
                    "prefixItems": [TEXT, {"type": "integer"}],
                    "items": False,
                    "minItems": 2,
                }
            }
        ),
        {"type": "object", "patternProperties": {"^x$": {"type": "integer"}}, "additionalProperties": False},
        {"allOf": [closed({"a": {"type": "boolean"}})]},
    ):
        enforced(schema, max_tokens=40)(server)
    for name, value in (("not", {"type": "null"}), ("uniqueItems", True)):
        refused(server.chat(response_format=form(closed({"a": {name: value}}))), name)
    return "200 and enforced; `not` and `uniqueItems` are a 400 that names them"


PATTERNED = {
    **closed({"score": {"type": "integer", "multipleOf": 5}, "tags": {"type": "array", "items": TEXT}}),
    "patternProperties": {"^score$": {"type": "integer"}},
}
ONE_OF = closed(
    {"action": {"type": "string", "enum": ["go_to", "drop"]}},
    oneOf=[{"properties": {"action": {"const": "go_to"}}}, {"properties": {"action": {"const": "drop"}}}],
)

REPORTS = (
    Report(
        "ggml-org/llama.cpp#24097",
        "`json_schema` is accepted and not enforced",
        "a schema",
        enforced(closed({"city": TEXT, "is_capital": {"type": "boolean"}})),
    ),
    Report(
        "ggml-org/llama.cpp#19051",
        "a pattern that the grammar cannot have is dropped",
        r"the report's `\!`, which a regular expression may have",
        enforced(closed({"a": {**TEXT, "pattern": r"^hello there indeed\!$"}})),
    ),
    Report(
        "ggml-org/llama.cpp#23463",
        "500 for a schema instead of a 4xx",
        "a pattern with an open group",
        not_enforceable(closed({"a": {**TEXT, "pattern": "^(abc$"}}), "unclosed group"),
    ),
    Report(
        "sgl-project/sglang#4574",
        "an invalid schema ends the server",
        "a property whose schema is a string",
        not_enforceable({"type": "object", "properties": {"foo": "bar"}}, "must be an object or boolean"),
    ),
    Report(
        "vllm-project/vllm#17248",
        "an invalid schema ends the API server",
        "a type that JSON does not have",
        not_enforceable({"type": "strin"}, "strin is not a type of JSON"),
    ),
    Report(
        "huggingface/text-generation-inference#2280",
        "a schema of unknown keywords ends the server",
        '`{"abc": "def"}`, which allows any JSON',
        enforced({"abc": "def"}),
    ),
    Report("sgl-project/sglang#1776", "formats end the scheduler", "five formats", formats),
    Report(
        "z-lab/paroquant#31",
        "400 for the format `uri`, by the same library",
        "the same",
        enforced(closed({"a": {**TEXT, "format": "uri", "maxLength": 40}})),
    ),
    Report(
        "NousResearch/hermes-agent#18530",
        r"clients take `pattern` and `format` out, because servers fail on `\d{4,4}` and others",
        r"`\d{4,4}`, and a format that any text has",
        free_formats,
        "mended",
        "the format was a 400; tests/server/constrain/test_annotations.py",
    ),
    Report(
        "ggml-org/llama.cpp#11544", "`grammar` is ignored", "a grammar at the top level", grammar_elsewhere
    ),
    Report("ggml-org/llama.cpp#4492", "a broken grammar ends the server", "the same", broken_grammar),
    Report(
        "ggml-org/llama.cpp#7391",
        "no message for a broken grammar in a stream",
        "the same",
        broken_grammar_streamed,
    ),
    Report(
        "ggml-org/llama.cpp#7149",
        "`json_schema` beside `response_format` is not enforced",
        "the same",
        schema_beside,
    ),
    Report(
        "abetlen/llama-cpp-python#1122",
        "the schema is in `response_format.schema`",
        "the same",
        schema_inside,
        "mended",
        "the 400 said to leave it out; tests/server/fields/test_words_of_refusals.py",
    ),
    Report(
        "kekzl/imp#1567",
        "thirteen keywords are accepted and dropped",
        "each of them",
        every_keyword,
    ),
    Report(
        "dottxt-ai/outlines-core#261",
        "keywords are dropped depending on what is beside them",
        "`min_items`, which no validator knows",
        misspelled,
        "mended",
        "was a 200; tests/server/constrain/test_schema_checks.py",
    ),
    Report(
        "vllm-project/vllm#30730",
        "`patternProperties` beside `properties`: white space without end, by the same library",
        "the report's schema",
        enforced(PATTERNED, max_tokens=80),
    ),
    Report(
        "ggml-org/llama.cpp#7703",
        "`oneOf` beside `properties` is not enforced",
        "the same",
        not_enforceable(ONE_OF, "two branches of a oneOf"),
    ),
)
