"""Alerts, recorded figures, the dashboard and KEDA use series that the server has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment.files import MONITORING, POOL, expressions, metric_types, metrics_in, read, tool
from docs.pages import page, table

ALERTS = [rule for group in read(MONITORING / "alerts.yml")["groups"] for rule in group["rules"]]
RECORDED = {
    rule["record"] for group in read(MONITORING / "recording.yml")["groups"] for rule in group["rules"]
}
EXPRESSIONS = expressions()


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_series_exist_and_are_of_the_right_type(place: str) -> None:
    expression = EXPRESSIONS[place]
    types = metric_types()
    used = metrics_in(expression)
    assert used
    assert used <= types.keys() | RECORDED
    for function, name in re.findall(r"\b(rate|increase|changes) ?\(([\w:]+)", expression):
        assert types[name] == ("gauge" if function == "changes" else "counter"), name
    for quantile in re.findall(r"histogram_quantile\((.*)\)", expression):
        assert all(name.endswith("_bucket") for name in metrics_in(quantile))
        assert re.search(r"\bby \([^)]*\ble\b", quantile)


def test_outcomes_exist() -> None:
    used = set(re.findall(r'outcome="(\w+)"', " ".join(EXPRESSIONS.values())))
    assert used
    assert used <= {row["outcome"].strip("`") for row in table(page("docs/operations.md"), "outcome")}


def test_the_router_reads_series_that_exist() -> None:
    used = re.findall(r'"(vinfer:\w+)"', (POOL / "config.yaml").read_text())
    assert len(used) == 6
    assert set(used) <= metric_types().keys()


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("a:b", {"a:b"}),
        ('sum by (job, le) (rate(a:b_total{x="c", y=~"d.+"}[5m])) > 0.5', {"a:b_total"}),
        ("a unless on (job) b", {"a", "b"}),
        ("a / on (x) group_left () (b > 0)", {"a", "b"}),
        ("histogram_quantile(0.95, rate(h_bucket[5m]))", {"h_bucket"}),
    ],
)
def test_names_are_read_from_expressions(expression: str, names: set[str]) -> None:
    assert metrics_in(expression) == names


def test_every_alert_has_a_line_in_the_runbook() -> None:
    rows = table(page("docs/operations.md"), "alert")
    documented = {
        row["alert"].strip("`"): (row["severity"], row["do first"].replace("`", "")) for row in rows
    }
    assert documented == {
        rule["alert"]: (rule["labels"]["severity"], rule["annotations"]["runbook"].replace("`", ""))
        for rule in ALERTS
    }


def test_every_alert_says_what_is_wrong_and_who_is_called() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "runbook"}


def test_every_recorded_series_is_used() -> None:
    used = set().union(*map(metrics_in, EXPRESSIONS.values()))
    assert used >= RECORDED


def test_promtool_accepts_the_rules() -> None:
    command = [tool("promtool"), "check", "rules", *sorted(MONITORING.glob("*.yml"))]
    subprocess.run(command, check=True, capture_output=True)


def test_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    content = read(Path(__file__).with_name("alert-tests.yaml"))
    content["rule_files"] = [str(MONITORING / name) for name in content["rule_files"]]
    tested = {case["alertname"] for group in content["tests"] for case in group["alert_rule_test"]}
    assert tested == {rule["alert"] for rule in ALERTS}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", tmp_path / "tests.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return read(MONITORING / "dashboard.json")


def test_panels_have_a_place_and_a_number_of_their_own(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    cells = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_panels_take_their_source_from_the_variable(dashboard: dict[str, Any]) -> None:
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "job", "model"}
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
            for target in panel["targets"]:
                assert set(re.findall(r"\$([a-z]\w*)", target["expr"])) <= variables
