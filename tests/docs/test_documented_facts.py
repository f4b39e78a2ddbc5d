"""The documents name every route, metric, exit code, family and package, and none that does not exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence

import pytest
from docs.pages import ROOT, Page, all_pages, page, table
from tiny.families import FAMILY_MODELS
from tiny.vision_models import VISION_MODELS

from vinfer.checkpoint.families import FAMILIES
from vinfer.errors import VinferError
from vinfer.server.admin.app import ADMIN_ROUTES
from vinfer.server.metrics import ServerMetrics
from vinfer.server.model_table import ModelTable
from vinfer.server.route_table import ROUTES

CLIENTS = (
    *("openai", "openai-node", "anthropic", "anthropic-node", "openai-agents", "ai", "litellm"),
    *("llm", "langchain-openai", "pydantic-ai-slim", "instructor", "llm-comply", "lm-eval"),
    *("openapi-spec-validator", "datamodel-code-generator", "openapi-python-client"),
    *("openapi-generator-cli", "openapi-typescript"),
)
# Packages of node -> what the table calls them.
OF_NODE = {
    "openai": "openai-node",
    "@anthropic-ai/sdk": "anthropic-node",
    "ai": "ai",
    "openapi-typescript": "openapi-typescript",
}


def _metrics() -> set[str]:
    exposition = ServerMetrics(ModelTable(["m"]), lambda: 0).render().decode()
    return {line.split()[2] for line in exposition.splitlines() if line.startswith("# TYPE")}


def unknown_metrics(pages: Sequence[Page], metrics: Iterable[str]) -> list[str]:
    """Complain about metrics that the server does not have; `vinfer:mm_*` stands for several."""
    known = {
        name
        for metric in metrics
        for name in (metric, f"{metric}_bucket", f"{metric}_sum", f"{metric}_count")
    }
    complaints = []
    for found in pages:
        for number, line in enumerate(found.text.splitlines(), 1):
            for name, star in re.findall(r"(vinfer:[a-z]\w*)(\*?)", line):
                if not any(metric.startswith(name) if star else metric == name for metric in known):
                    complaints.append(f"{found.name}:{number}: {name}{star}")
    return complaints


def unknown_routes(pages: Sequence[Page]) -> list[str]:
    """Complain about inline code such as `GET /v1/models` that is no route."""
    known = {
        (method, path.replace(":path", ""))
        for method, path in (*ROUTES, *((method, path) for method, path, _ in ADMIN_ROUTES))
    }
    return [
        f"{code.place}: {method} {path}"
        for found in pages
        for code in found.inline_code
        for method, path in re.findall(r"^(GET|POST) (/\S*)$", code.text)
        if (method, path) not in known
    ]


def packages_not_named(text: str, packages: Iterable[str]) -> list[str]:
    """Return the packages (`server/http`) that a text names neither by path nor in the row of their parent.

    Inline code names one: `vinfer/server/http`, `server/http`, or `http/` in the row of `vinfer/server`.
    """
    named = set()
    for line in text.splitlines():
        codes = [code.rstrip("/").removeprefix("vinfer/") for code in re.findall(r"`([\w/]+)`", line)]
        named |= {*codes, *(f"{codes[0]}/{code}" for code in codes[1:])}
    return sorted(set(packages) - named)


def _packages() -> list[str]:
    package = ROOT / "vinfer"
    return [file.parent.relative_to(package).as_posix() for file in package.rglob("*/__init__.py")]


def _subclasses(base: type[VinferError]) -> Iterator[type[VinferError]]:
    yield base
    for child in base.__subclasses__():
        yield from _subclasses(child)


def _numbers(cell: str) -> set[int]:
    return {int(number) for number in re.findall(r"\d+", cell)}


def test_the_api_page_names_every_route() -> None:
    api = page("docs/api.md")
    first = " ".join(row["route"] for row in table(api, "route"))
    for method, path in ROUTES:
        path = path.replace(":path", "")
        assert f"{method} {path}`" in first or f"`{path}`" in first


def test_routes_in_the_text_exist() -> None:
    # The page for those who come from another server names its routes too.
    assert unknown_routes([found for found in all_pages() if found.name != "docs/migration.md"]) == []


def test_operations_names_every_admin_route() -> None:
    documented = {code.text for code in page("docs/operations.md").inline_code}
    assert {f"{method} {path}" for method, path, _ in ADMIN_ROUTES} - documented == set()


def test_operations_names_every_metric() -> None:
    documented = {code.text for code in page("docs/operations.md").inline_code}
    assert len(_metrics()) > 15
    assert _metrics() - documented == set()


def test_metrics_in_the_text_exist() -> None:
    assert unknown_metrics(all_pages(), _metrics()) == []


def test_operations_explains_every_exit_code() -> None:
    rows = table(page("docs/operations.md"), "exit code")
    documented = {number for row in rows for number in _numbers(row["exit code"])}
    assert documented == {0, 130, 143, *(error.exit_code for error in _subclasses(VinferError))}


@pytest.mark.parametrize("name", ["docs/api.md", "docs/operations.md"])
def test_every_status_is_explained(name: str) -> None:
    rows = table(page(name), "status")
    documented = {number for row in rows for number in _numbers(row["status"])}
    # None of the others, such as those of configuration, reaches a client.
    assert documented == {error.status for error in _subclasses(VinferError)}


def test_models_names_every_family() -> None:
    rows = table(page("docs/models.md"), "kind")
    assert set(re.findall(r"`(\w+)`", " ".join(row["`model_type`"] for row in rows))) == set(FAMILIES)


def test_every_family_was_proven() -> None:
    """`scripts/parity` writes the matrix: a family that is not in it, or wrong there, is not supported."""
    rows = table(page("docs/reports/models.md"), "family")
    assert {row["family"] for row in rows} == set(FAMILIES)
    assert {row["checkpoint"] for row in rows} == {*FAMILY_MODELS, *VISION_MODELS}
    assert {row[""] for row in rows} == {"right"}


def locked_versions() -> dict[str, str]:
    """Return the version of every client and generator that `scripts/clients` runs."""
    locked: dict[str, str] = {}
    for name in ("clients", "generators"):
        lock = (ROOT / "requirements" / f"{name}.txt").read_text()
        locked |= dict(re.findall(r"^([\w-]+)==(\S+)", lock, re.MULTILINE))
    for folder in ("node", "node_generators"):
        lock = (ROOT / "scripts" / "client_runs" / folder / "package-lock.json").read_text()
        for place, package in json.loads(lock)["packages"].items():
            name = place.removeprefix("node_modules/")
            if name in OF_NODE:
                locked[OF_NODE[name]] = package["version"]
    return locked


def test_every_client_was_run_in_its_locked_version() -> None:
    """`scripts/clients` writes the table: after a new lock it has to run again."""
    rows = table(page("docs/reports/clients.md"), "client")
    locked = locked_versions()
    ran = {(row["client"], row["version"]) for row in rows if row["client"] != "the server"}
    assert ran == {(client, locked[client]) for client in CLIENTS}
    # Some tests of this suite are for other models; the remark says so.
    others = [row for row in rows if row["client"] == "llm-comply" and row["result"] == "not run"]
    assert all(row["remark"] for row in others)
    assert {row["result"] for row in rows if row not in others} == {"passed"}


def test_architecture_names_every_package() -> None:
    assert len(_packages()) > 20
    assert packages_not_named(page("ARCHITECTURE.md").text, _packages()) == []


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_first_pages_are_short(name: str) -> None:
    assert len(page(name).text.splitlines()) <= 150


def test_unknown_metrics_and_routes_are_found() -> None:
    bad = Page("docs/bad.md", "`vinfer:a_total`, `vinfer:h_bucket`, vinfer:a, `vinfer:a_*`, `vinfer:b_*`\n")
    assert unknown_metrics([bad], ["vinfer:a_total", "vinfer:h"]) == [
        "docs/bad.md:1: vinfer:a",
        "docs/bad.md:1: vinfer:b_*",
    ]
    bad = Page("docs/bad.md", "`GET /v1/models`, `POST /v1/models`, `GET /v1/models/{id}`, `GET /modells`\n")
    assert unknown_routes([bad]) == ["docs/bad.md:1: POST /v1/models", "docs/bad.md:1: GET /modells"]


def test_packages_that_are_not_named_are_found() -> None:
    text = "| `vinfer/server` | run | `http/`, `app.py` |\n| `server/fields` | |\nand server/routes\n"
    packages = ["server", "server/http", "server/fields", "server/routes", "engine"]
    assert packages_not_named(text, packages) == ["engine", "server/routes"]
