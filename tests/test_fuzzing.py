"""What scripts/fuzz makes of schemathesis's event logs: figures, and what it does not let pass."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from fuzzing.document import MAX_ALTERNATIVES, for_schemathesis
from fuzzing.page import failures, page
from fuzzing.tally import tally
from jsonschema import Draft202012Validator

from vinfer.config import ServerConfig
from vinfer.server.document.openapi import openapi_document
from vinfer.server.model_table import ModelTable
from vinfer.server.route_table import ROUTES

if TYPE_CHECKING:
    from fuzzing.tally import Tally

ROUTE = "POST /v1/completions"
REFUSED_DATA = "positive_data_acceptance"


def case(status: int, *, message: str = "", failed_check: str | None = None) -> dict[str, Any]:
    content = json.dumps({"error": {"message": message}} if message else {}).encode()
    answer = {"status_code": status, "content": {"$base64": base64.b64encode(content).decode()}}
    checks = [{"name": "not_a_server_error", "status": "success"}]
    if failed_check:
        checks.append({"name": failed_check, "status": "failure"})
    return {"answer": answer, "checks": checks}


def tallied(folder: Path, *cases: dict[str, Any]) -> Tally:
    recorder = {
        "label": ROUTE,
        "interactions": {
            str(i): {"request": {"body": None}, "response": each["answer"]} for i, each in enumerate(cases)
        },
        "checks": {str(i): each["checks"] for i, each in enumerate(cases)},
    }
    log = folder / "events.ndjson"
    lines = [{"EngineStarted": {}}, {"ScenarioFinished": {"recorder": recorder}}]
    log.write_text("\n".join(map(json.dumps, lines)))
    return tally([log])


EXPLAINED = case(
    400, message="best_of is 2 and n is 3: best_of must be at least n", failed_check=REFUSED_DATA
)


def test_figures(tmp_path: Path) -> None:
    result = tallied(tmp_path, case(200), case(200), EXPLAINED, case(400, message="n is 9"))
    assert result.num_cases == 4
    assert result.success_fraction == 0.5
    assert failures(result, [], min_cases=4) == []
    text = page(result, version="4.0", seed=1, minutes=2)
    assert f"| `{ROUTE}` | 4 | 2 | 2 | 0 | 1 |" in text
    assert (
        "| 1 | one field is compared with another | best_of is N and n is N: best_of must be at least n |"
        in text
    )


@pytest.mark.parametrize(
    ("cases", "what"),
    [
        ([case(500)], "1 cases with 500"),
        ([case(503)], "1 cases with 503"),
        ([case(400, message="n is 5.0; must be an integer", failed_check=REFUSED_DATA)], "n is N.N; must be"),
        ([case(200, failed_check="response_schema_conformance")], "response_schema_conformance"),
        # No reason of ours excuses another check.
        ([case(400, message="best_of is 2", failed_check="negative_data_rejection")], "best_of is N"),
        ([EXPLAINED] * 3, "25.0% of the cases reach a 2xx"),
    ],
)
def test_what_does_not_pass(tmp_path: Path, cases: list[dict[str, Any]], what: str) -> None:
    result = tallied(tmp_path, case(200), *cases)
    (found,) = failures(result, [], min_cases=1)
    assert what in found


def test_too_few_cases_and_a_server_that_suffered(tmp_path: Path) -> None:
    found = failures(tallied(tmp_path, case(200)), ["vinfer:num_requests_running 1.0"], min_cases=2)
    assert found == ["after the run: vinfer:num_requests_running 1.0", "1 cases; must be at least 2"]


def written_parts(value: Any) -> list[dict[str, Any]]:
    """Return every object in a document."""
    if isinstance(value, list):
        return [part for inner in value for part in written_parts(inner)]
    if not isinstance(value, dict):
        return []
    return [value, *(part for inner in value.values() for part in written_parts(inner))]


def test_schemathesis_gets_rules_that_it_can_read() -> None:
    """It has no conditions, and gives up on too many combinations of alternatives."""
    document = for_schemathesis(openapi_document(ServerConfig(), ModelTable(["fake"]), ROUTES))
    schemas = document["components"]["schemas"]
    for schema in written_parts(schemas):
        assert "if" not in schema.keys() - schema.get("properties", {}).keys()
    rules = schemas["ChatFields"]["allOf"]
    assert len(rules) == 2
    assert len(rules[0]["anyOf"]) * len(rules[1]["anyOf"]) <= MAX_ALTERNATIVES
    assert "best_of" in schemas["ChatFields"]["properties"]


@pytest.mark.parametrize(
    ("body", "is_valid"),
    [
        ({}, True),
        ({"stream": True, "stream_options": {"include_usage": True}, "logprobs": True}, True),
        ({"stream_options": {"include_usage": True}}, False),
        ({"top_logprobs": 1}, False),
        ({"logprobs": True, "stream": True, "top_logprobs": 1}, True),
        ({"best_of": 1}, True),
        ({"best_of": 2}, False),
        ({"unknown": 1}, False),
    ],
)
def test_the_rewritten_document_has_the_same_rules(body: dict[str, Any], is_valid: bool) -> None:
    document = openapi_document(ServerConfig(), ModelTable(["fake"]), ROUTES)
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], **body}
    for each in (document, for_schemathesis(document)):
        schema = {"$ref": "#/components/schemas/ChatFields", "components": each["components"]}
        assert Draft202012Validator(schema).is_valid(body) == is_valid
