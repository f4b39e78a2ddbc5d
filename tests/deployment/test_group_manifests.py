"""The manifests of a group of hosts agree with each other, with the image and with vinfer."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment.files import (
    KUBERNETES,
    command_config,
    image_environment,
    objects,
    one,
    pod_template_of,
    rendered,
    tool,
)

from vinfer.hosts.membership import COORDINATOR_PORT, find_membership
from vinfer.launch.group.leader import group_membership
from vinfer.server.http.auth import PUBLIC_PATHS

GROUP = KUBERNETES / "base" / "group"
NAME = "vinfer-group"


@pytest.fixture(scope="module")
def group() -> dict[str, Any]:
    found: dict[str, Any] = one(objects(GROUP), "LeaderWorkerSet", NAME)
    return found


@pytest.fixture(scope="module")
def container(group: dict[str, Any]) -> dict[str, Any]:
    [only] = pod_template_of(group)["spec"]["containers"]
    return dict(only)


def config(container: dict[str, Any]) -> Any:
    return command_config(container["args"], GROUP / "group.yaml", image_environment())


def test_each_pod_finds_its_place(group: dict[str, Any], container: dict[str, Any]) -> None:
    size = group["spec"]["leaderWorkerTemplate"]["size"]
    found = [
        group_membership(
            config(container),
            {
                "LWS_LEADER_ADDRESS": "vinfer-group-0.vinfer-group.ns",
                "LWS_GROUP_SIZE": str(size),
                "LWS_WORKER_INDEX": str(index),
            },
        )
        for index in range(size)
    ]
    assert [member.process_id for member in found if member is not None] == list(range(size))
    assert {member.num_processes for member in found if member is not None} == {size}


def test_a_member_that_ends_takes_its_group_with_it(group: dict[str, Any]) -> None:
    """Vinfer counts on it: nobody can join a group again."""
    assert group["spec"]["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    # All start together; a leader that is not ready before its followers would wait for ever.
    assert group["spec"]["startupPolicy"] == "LeaderCreated"


def test_ports_and_probes(container: dict[str, Any]) -> None:
    server = config(container).server
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "http": server.port,
        "coordinator": COORDINATOR_PORT,
        "stream": server.distributed.stream_port,
    }
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[name]["httpGet"]["path"] in PUBLIC_PATHS
        assert container[name]["httpGet"]["port"] == "http"


def test_secrets_are_where_the_config_says_and_not_for_everyone(
    group: dict[str, Any], container: dict[str, Any]
) -> None:
    server = config(container).server
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod_template_of(group)["spec"]["volumes"]}
    for file in (server.api_keys_file, server.distributed.secret_file):
        volume = volumes[mounts[str(file.parent)]]
        assert volume["secret"]["defaultMode"] & 0o007 == 0


def test_the_pods_get_more_time_than_the_drain_takes(
    group: dict[str, Any], container: dict[str, Any]
) -> None:
    server = config(container).server
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = before + server.drain_delay_seconds + server.drain_timeout_seconds
    assert pod_template_of(group)["spec"]["terminationGracePeriodSeconds"] >= drain + 5


def test_clients_reach_leaders_only_and_members_each_other(group: dict[str, Any]) -> None:
    labels = pod_template_of(group)["metadata"]["labels"]
    service = one(objects(GROUP), "Service", "vinfer-group-leaders")
    assert service["spec"]["selector"] == {**labels, "leaderworkerset.sigs.k8s.io/worker-index": "0"}
    policy = one(objects(GROUP), "NetworkPolicy", NAME)["spec"]
    members = {"podSelector": {"matchLabels": labels}}
    assert policy["podSelector"] == members["podSelector"]
    clients, own = policy["ingress"]
    assert clients["ports"] == [{"protocol": "TCP", "port": "http"}]
    assert members not in clients["from"]
    assert own == {"from": [members]}
    to_members, dns = policy["egress"]
    assert to_members == {"to": [members]}
    assert {port["port"] for port in dns["ports"]} == {53}
    # Those of single pods must not take these pods for theirs.
    other = one(objects(KUBERNETES / "base" / "serve"), "Service")["spec"]["selector"]
    assert not other.items() <= labels.items()


def test_kubernetes_accepts_the_pods(group: dict[str, Any], tmp_path: Path) -> None:
    """The validator skips a kind that it does not know, so it is shown a Pod."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x"},
        "spec": pod_template_of(group)["spec"],
    }
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))
    command = [tool("kubernetes-validate"), "--strict", "-k", "1.34", tmp_path / "pod.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_config_rolls_the_pods() -> None:
    """Kustomize renames the ConfigMap, and its name in the LeaderWorkerSet too."""
    found = rendered(GROUP)
    [config_map] = [o for o in found if o["kind"] == "ConfigMap"]
    assert config_map["metadata"]["name"].startswith(f"{NAME}-")
    volumes = pod_template_of(one(found, "LeaderWorkerSet", NAME))["spec"]["volumes"]
    assert {"name": "config", "configMap": {"name": config_map["metadata"]["name"]}} in volumes


def test_without_the_launcher_s_variables_nothing_is_served(container: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="LWS_LEADER_ADDRESS, LWS_GROUP_SIZE, LWS_WORKER_INDEX is not set"):
        find_membership(config(container).server.distributed, {})
