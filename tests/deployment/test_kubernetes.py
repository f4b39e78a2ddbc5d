"""Manifests agree with each other, with the image and with vinfer: flags, keys, ports, paths, times."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from deployment.custom_resources import CUSTOM_RESOURCES
from deployment.files import (
    DEPLOY,
    DOCKERFILE,
    KUBERNETES,
    POOL,
    command_config,
    image_environment,
    objects,
    one,
    parse,
    pods,
    read,
    rendered,
    tool,
)
from docs.pages import page, table

from vinfer.config import Config
from vinfer.errors import ConfigError
from vinfer.launch.devices import target_devices
from vinfer.server.http.auth import PUBLIC_PATHS

SERVE = KUBERNETES / "base" / "serve"
PRECOMPILE = KUBERNETES / "base" / "precompile"
GROUP = KUBERNETES / "base" / "group"
KUSTOMIZATIONS = sorted(path.parent for path in DEPLOY.rglob("kustomization.yaml"))
# What `kubectl apply -k` is given.
APPLIED = [d for d in KUSTOMIZATIONS if "components" not in d.parts]
YAML_FILES = sorted(path for ending in ("yaml", "yml") for path in DEPLOY.rglob(f"*.{ending}"))


def container(workload: dict[str, Any]) -> dict[str, Any]:
    [found] = workload["spec"]["template"]["spec"]["containers"]
    return found


def environment(found: dict[str, Any]) -> dict[str, str]:
    return {**image_environment(), **{e["name"]: e.get("value", "") for e in found.get("env", ())}}


def served(found: dict[str, Any], file: Path = SERVE / "serve.yaml") -> Config:
    assert found["args"][1] == f"/etc/vinfer/{file.name}"
    return command_config(found["args"], file, environment(found))


@pytest.fixture(scope="module")
def deployment() -> dict[str, Any]:
    return one(objects(SERVE), "Deployment")


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.relative_to(DEPLOY).as_posix())
def test_every_file_is_yaml(path: Path) -> None:
    assert parse(path.read_text())


def test_a_key_that_comes_twice_is_found() -> None:
    with pytest.raises(yaml.YAMLError, match="twice"):
        parse("a: 1\na: 2\n")


@pytest.mark.parametrize("directory", KUSTOMIZATIONS, ids=lambda d: d.relative_to(DEPLOY).as_posix())
def test_a_kustomization_names_all_files_beside_it(directory: Path) -> None:
    content = read(directory / "kustomization.yaml")
    named = [*content.get("resources", ()), *content.get("components", ())]
    named += [name for generator in content.get("configMapGenerator", ()) for name in generator["files"]]
    named += content.get("configurations", ())
    assert all((directory / name).exists() for name in named), named
    beside = {path.name for path in directory.iterdir() if path.is_file()}
    assert beside - {"kustomization.yaml"} == {name for name in named if "/" not in name}


@pytest.mark.parametrize("directory", APPLIED, ids=lambda d: d.relative_to(DEPLOY).as_posix())
def test_kustomize_builds_it(directory: Path) -> None:
    assert rendered(directory)


@pytest.mark.parametrize("directory", APPLIED, ids=lambda d: d.relative_to(DEPLOY).as_posix())
def test_kubernetes_accepts_it(directory: Path, tmp_path: Path) -> None:
    """Strict: a field that Kubernetes does not know is an error. It skips kinds that it does not know."""
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(rendered(directory)))
    command = [tool("kubernetes-validate"), "--strict", "-k", "1.34", tmp_path / "all.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", CUSTOM_RESOURCES)
def test_custom_resources_have_the_fields_of_their_schema(kind: str) -> None:
    found = [o for d in KUSTOMIZATIONS for o in objects(d) if o["kind"] == kind]
    assert len(found) == 1
    api_version, schema = CUSTOM_RESOURCES[kind]
    assert found[0]["apiVersion"] == api_version
    jsonschema.validate(found[0]["spec"], schema)


def test_a_misspelt_field_of_a_custom_resource_is_found() -> None:
    pool = one(objects(POOL), "InferencePool")["spec"]
    with pytest.raises(jsonschema.ValidationError, match="targetPort"):
        jsonschema.validate({**pool, "targetPort": 8000}, CUSTOM_RESOURCES["InferencePool"][1])


def test_the_pods_get_more_time_than_the_drain_takes(deployment: dict[str, Any]) -> None:
    spec = deployment["spec"]["template"]["spec"]
    server = served(container(deployment)).server
    before = container(deployment)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = before + server.drain_delay_seconds + server.drain_timeout_seconds
    assert spec["terminationGracePeriodSeconds"] >= drain + 5


def test_the_page_tells_the_times_of_the_manifests(deployment: dict[str, Any]) -> None:
    server = served(container(deployment)).server
    steps = [
        container(deployment)["lifecycle"]["preStop"]["sleep"]["seconds"],
        server.drain_delay_seconds,
        server.drain_timeout_seconds,
    ]
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    rows = table(page("docs/deployment-kubernetes.md"), "step")
    assert [int(row["seconds"]) for row in rows] == [*steps, grace - sum(steps)]


def test_the_pods_serve_until_their_probe_has_failed(deployment: dict[str, Any]) -> None:
    probe = container(deployment)["readinessProbe"]
    delay = served(container(deployment)).server.drain_delay_seconds
    assert delay >= probe["periodSeconds"] * probe["failureThreshold"]


@pytest.mark.parametrize("name", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_a_probe_asks_a_route_without_a_key(deployment: dict[str, Any], name: str) -> None:
    asked = container(deployment)[name]["httpGet"]
    assert asked["path"] in PUBLIC_PATHS
    # While models load, only readiness may fail.
    assert asked["path"] == ("/readiness" if name == "readinessProbe" else "/liveness")
    assert asked["port"] in {port["name"] for port in container(deployment)["ports"]}


def test_all_ports_are_the_port_of_the_image(deployment: dict[str, Any]) -> None:
    port = served(container(deployment)).server.port
    assert container(deployment)["ports"] == [{"name": "http", "containerPort": port}]
    assert f"\nEXPOSE {port}\n" in DOCKERFILE
    [exposed] = one(objects(SERVE), "Service")["spec"]["ports"]
    assert (exposed["port"], exposed["targetPort"]) == (port, "http")
    [rule] = one(objects(SERVE), "NetworkPolicy")["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "http"}]
    assert one(objects(POOL), "InferencePool")["spec"]["targetPorts"] == [{"number": port}]


def test_selectors_find_the_pods(deployment: dict[str, Any]) -> None:
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    found = [*objects(SERVE), *objects(POOL)]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        one(found, "Service")["spec"]["selector"],
        one(found, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        one(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(found, "InferencePool")["spec"]["selector"]["matchLabels"],
        one(objects(DEPLOY / "monitoring"), "PodMonitor")["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    # The job and the router serve nothing: nobody may send to them or count them.
    others = [template for name, template in pods([*objects(PRECOMPILE), *found]) if name != "vinfer"]
    assert len(others) == 2
    for template in others:
        assert not any(s.items() <= template["metadata"]["labels"].items() for s in selectors)


@pytest.mark.parametrize("directory", [SERVE, PRECOMPILE, POOL, GROUP], ids=lambda d: d.name)
def test_a_pod_has_no_rights_that_it_does_not_need(directory: Path) -> None:
    for _, template in pods(objects(directory)):
        spec = template["spec"]
        [only] = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= only["resources"].keys()
        assert {mount["name"] for mount in only["volumeMounts"]} == {v["name"] for v in spec["volumes"]}


@pytest.mark.parametrize("directory", [SERVE, PRECOMPILE, GROUP], ids=lambda d: d.name)
def test_a_pod_runs_as_the_user_of_the_image_and_writes_where_vinfer_does(directory: Path) -> None:
    user, group = map(int, re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE).groups())
    [(_, template)] = pods(objects(directory))
    security = template["spec"]["securityContext"]
    assert {security["runAsUser"], security["runAsGroup"], security["fsGroup"]} == {user} == {group}
    assert not template["spec"]["automountServiceAccountToken"]
    [only] = template["spec"]["containers"]
    writable = {m["mountPath"] for m in only["volumeMounts"] if not m.get("readOnly")}
    variables = image_environment()
    assert {variables["HOME"], variables["VINFER_CACHE_DIR"], "/tmp"} <= writable
    assert variables["VINFER_XLA_CACHE"].startswith(variables["VINFER_CACHE_DIR"] + "/")


def test_the_job_builds_what_the_pods_serve(deployment: dict[str, Any]) -> None:
    job = one(objects(PRECOMPILE), "Job", "vinfer-precompile")
    build = served(container(job), PRECOMPILE / "build.yaml")
    output = container(job)["args"][container(job)["args"].index("--output") + 1]
    [model] = served(container(deployment)).models
    assert (model.source, model.name) == (output, build.models[0].name)
    for workload in (job, deployment):
        [claim] = [v for v in workload["spec"]["template"]["spec"]["volumes"] if v["name"] == "bundles"]
        assert claim["persistentVolumeClaim"]["claimName"] == "vinfer-bundles"
        [mount] = [m for m in container(workload)["volumeMounts"] if m["name"] == "bundles"]
        assert output.startswith(mount["mountPath"] + "/")
    one(objects(PRECOMPILE), "PersistentVolumeClaim", "vinfer-bundles")
    # The stages of the Dockerfile: only the build image has EasyDeL.
    assert (container(job)["image"], container(deployment)["image"]) == ("vinfer-build", "vinfer")


def test_the_keys_are_where_the_config_says_and_not_for_everyone(deployment: dict[str, Any]) -> None:
    file = served(container(deployment)).server.api_keys_file
    [mount] = [m for m in container(deployment)["volumeMounts"] if m["name"] == "keys"]
    assert str(file.parent) == mount["mountPath"]
    [volume] = [v for v in deployment["spec"]["template"]["spec"]["volumes"] if v["name"] == "keys"]
    assert volume["secret"]["defaultMode"] & 0o007 == 0


def test_the_router_reads_the_metrics_of_the_pods() -> None:
    config = read(POOL / "config.yaml")
    parameters = {plugin["type"]: plugin.get("parameters", {}) for plugin in config["plugins"]}
    [engine] = parameters["core-metrics-extractor"]["engineConfigs"]
    read_metrics = {value for key, value in engine.items() if key.endswith("Spec")}
    assert set(parameters["metrics-data-source"]["families"]) == read_metrics
    referred = {p["pluginRef"] for profile in config["schedulingProfiles"] for p in profile["plugins"]}
    assert referred <= parameters.keys()
    picker = one(objects(POOL), "InferencePool")["spec"]["endpointPickerRef"]
    service = one(objects(POOL), "Service", picker["name"])
    assert [port["port"] for port in service["spec"]["ports"]] == [picker["port"]["number"]]
    deployment = one(objects(POOL), "Deployment", "vinfer-epp")
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    generators = read(POOL / "kustomization.yaml")["configMapGenerator"]
    assert {"name": "vinfer-epp", "files": ["config.yaml"]} in generators
    assert "--config-file=/config/config.yaml" in container(deployment)["args"]


def test_the_gpu_overlay_gives_the_pods_and_the_job_a_gpu() -> None:
    for part in ("serve", "precompile"):
        found = rendered(KUBERNETES / "overlays" / "gpu" / part)
        [(_, template)] = pods(found)
        [only] = template["spec"]["containers"]
        assert only["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert only["image"].endswith(":cuda12")


def test_the_tpu_overlay_compiles_for_the_chips_that_the_pods_get() -> None:
    [(_, serve)] = pods(rendered(KUBERNETES / "overlays" / "tpu" / "serve"))
    [(_, job)] = pods(rendered(KUBERNETES / "overlays" / "tpu" / "precompile"))
    [only] = job["spec"]["containers"]
    command_config(only["args"], PRECOMPILE / "build.yaml", image_environment())
    wanted = target_devices(only["args"][only["args"].index("--devices") + 1])
    assert wanted.platform == "tpu"
    assert str(wanted.count) == serve["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert "google.com/tpu" not in only["resources"]["limits"]
    x, y = serve["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert int(x) * int(y) == wanted.count


def test_the_overlay_of_replicas_has_no_key_and_lets_in_only_the_router() -> None:
    found = rendered(KUBERNETES / "overlays" / "replicas")
    deployment = one(found, "Deployment")
    config = served(container(deployment))
    assert config.server.api_keys_file is None
    assert "--insecure" in container(deployment)["args"]
    assert not any(volume["name"] == "keys" for volume in deployment["spec"]["template"]["spec"]["volumes"])
    assert deployment["spec"]["template"]["metadata"]["labels"]["llm-d.ai/engine-type"] == "vinfer"
    [rule] = one(found, "NetworkPolicy")["spec"]["ingress"]
    router = one(found, "Deployment", "vinfer-epp")["spec"]["template"]["metadata"]["labels"]
    assert {"podSelector": {"matchLabels": router}} in rule["from"]


def test_keda_alone_sets_the_number_of_replicas() -> None:
    found = rendered(KUBERNETES / "overlays" / "replicas")
    scaled = one(found, "ScaledObject")["spec"]
    assert "replicas" not in one(found, "Deployment", scaled["scaleTargetRef"]["name"])["spec"]
    assert scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
    [trigger] = scaled["triggers"]
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    # A share of the slots of one replica: above 1, requests wait before another one is started.
    assert 0 < float(trigger["metadata"]["threshold"]) < 1


def test_a_baked_bundle_needs_no_volume(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").symlink_to(SERVE / "kustomization.yaml")
    patches = read(KUBERNETES / "components" / "baked" / "kustomization.yaml")["patches"]
    content = {**read(SERVE / "kustomization.yaml"), "patches": patches}
    (tmp_path / "kustomization.yaml").unlink()
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
    for name in [*content["resources"], "serve.yaml"]:
        (tmp_path / name).write_text((SERVE / name).read_text())
    deployment = one(rendered(tmp_path), "Deployment")
    assert "bundles" not in {m["name"] for m in container(deployment)["volumeMounts"]}
    assert "bundles" not in {v["name"] for v in deployment["spec"]["template"]["spec"]["volumes"]}


def test_a_wrong_flag_key_or_variable_is_found() -> None:
    file = SERVE / "serve.yaml"
    with pytest.raises(Exception, match="No such option"):
        command_config(["serve", "x", "--unsafe"], file, {})
    with pytest.raises(ConfigError, match="nope"):
        command_config(["serve", "x", "--set", "server.nope=1"], file, {})
    with pytest.raises(ConfigError, match="nope"):
        command_config(["serve", "x"], file, {"VINFER_SERVER__NOPE": "1"})
    with pytest.raises(ValueError, match="VINFER_LOG_FORMAT"):
        command_config(["serve", "x"], file, {"VINFER_LOG_FORMAT": "json"})
