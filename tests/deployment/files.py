"""Read the files in deploy/: YAML documents, kustomizations, commands of vinfer and names of metrics."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import vinfer.cli
from vinfer.config import Config, load_bundle_config, load_config
from vinfer.server.metrics import ServerMetrics
from vinfer.server.model_table import ModelTable

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
MONITORING = DEPLOY / "monitoring"
DOCKERFILE = (ROOT / "Dockerfile").read_text()

# Variables of vinfer that stand for no key with a block, such as VINFER_SERVER__PORT.
READ_VARIABLES = {"VINFER_CACHE_DIR", "VINFER_LOG_LEVEL", "VINFER_XLA_CACHE"}

POOL = KUBERNETES / "components" / "pool"


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise yaml.constructor.ConstructorError(None, None, f"{twice} twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse(text: str) -> list[Any]:
    return [document for document in yaml.load_all(text, _StrictLoader) if document is not None]


def read(path: Path) -> Any:
    """Return the only document of a file."""
    [document] = parse(path.read_text())
    return document


def objects(directory: Path) -> list[dict[str, Any]]:
    """Return the objects that a kustomization lists, as they are in its files."""
    return [
        found
        for name in read(directory / "kustomization.yaml").get("resources", ())
        if (path := directory / name).is_file()
        for found in parse(path.read_text())
    ]


def pod_template_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pod template of a LeaderWorkerSet."""
    template: dict[str, Any] = group["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    return template


def one(found: Sequence[Mapping[str, Any]], kind: str, name: str = "vinfer") -> Any:
    [match] = [o for o in found if o["kind"] == kind and o["metadata"]["name"] == name]
    return match


def tool(name: str) -> str:
    """Return the path of a program, or skip the test."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def rendered(directory: Path) -> list[dict[str, Any]]:
    """Return what kustomize makes of a directory."""
    command = [tool("kubectl"), "kustomize", directory]
    return parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def pods(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the pod template of each workload."""
    for workload in found:
        if workload["kind"] in ("Deployment", "Job"):
            yield workload["metadata"]["name"], workload["spec"]["template"]
        if workload["kind"] == "LeaderWorkerSet":
            yield workload["metadata"]["name"], pod_template_of(workload)


def command_config(args: Sequence[str], file: Path | None, environ: Mapping[str, str]) -> Config:
    """Parse a command of vinfer as its own parser does, and load its config.

    Args:
        args: such as `serve`, `/etc/vinfer/serve.yaml`.
        file: the YAML file that is mounted there; None if the argument is a bundle directory.
        environ: variables of the image and of the container.

    Raises:
        NoSuchOption: an unknown flag. (typer may bring a click of its own.)
        ConfigError: an unknown key.
        ValueError: a variable that vinfer does not read.
    """
    commands: Any = typer.main.get_command(vinfer.cli.app)
    context = commands.commands[args[0]].make_context(args[0], list(args[1:]))
    overrides = context.params.get("overrides") or ()
    ours = {name: value for name, value in environ.items() if name.startswith("VINFER_")}
    # vinfer ignores other names without a word.
    if unknown := {name for name in ours if "__" not in name} - READ_VARIABLES:
        raise ValueError(f"vinfer reads no {', '.join(sorted(unknown))}")
    if file is None:
        return load_bundle_config(Path(args[1]), overrides=overrides, environ=ours)
    return load_config(file, overrides=overrides, environ=ours)


def image_environment() -> dict[str, str]:
    """Return the variables that the images set."""
    base = DOCKERFILE.partition(" AS base\n")[2].replace("\\\n", " ")
    return dict(re.findall(r"(\w+)=(\S+)", re.search(r"^ENV .*$", base, re.MULTILINE)[0]))


def metric_types() -> dict[str, str]:
    """Return the type of each series that the server can show, by name."""
    exposition = ServerMetrics(ModelTable(["m"]), lambda: 0).render().decode()
    series = {"up": "gauge"}
    for line in exposition.splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            if kind == "histogram":
                series |= {f"{name}_{part}": "counter" for part in ("bucket", "sum", "count")}
            else:
                series[name] = kind
    return series


_WORDS = {"by", "on", "or", "and", "unless", "ignoring", "group_left", "group_right", "le", "bool", "offset"}


def metrics_in(expression: str) -> set[str]:
    """Return the names of the series in a PromQL expression."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|on|ignoring|group_left|group_right) *\([^)]*\)", " ", bare)
    names = re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?!\w)(?! *\()", bare)
    return set(names) - _WORDS


def expressions() -> dict[str, str]:
    """Return every PromQL expression of deploy/ by its place, with plain names for Grafana's variables."""
    found: dict[str, str] = {}
    for name in ("alerts.yml", "recording.yml"):
        for group in read(MONITORING / name)["groups"]:
            found |= {
                f"{name}: {rule.get('alert') or rule['record']}": rule["expr"] for rule in group["rules"]
            }
    dashboard = read(MONITORING / "dashboard.json")
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            found[f"dashboard: {panel['title']} {panel['id']}{target['refId']}"] = target["expr"]
    for variable in dashboard["templating"]["list"]:
        if match := re.fullmatch(r"label_values\((.+), \w+\)", str(variable.get("definition"))):
            found[f"dashboard: ${variable['name']}"] = match[1]
    for annotation in dashboard["annotations"]["list"]:
        found[f"dashboard: {annotation['name']}"] = annotation["expr"]
    [trigger] = one(objects(KUBERNETES / "components" / "keda"), "ScaledObject")["spec"]["triggers"]
    found["keda"] = trigger["metadata"]["query"]
    return {place: text.replace("$__rate_interval", "5m") for place, text in found.items()}
