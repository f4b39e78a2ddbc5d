"""What scripts/fuzz makes of schemathesis's event logs: figures, and what it does not let pass."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from fuzzing.page import failures, page
from fuzzing.tally import tally

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
