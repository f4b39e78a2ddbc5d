"""The compose file and the systemd unit agree with the image, with vinfer and with the files beside them."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from deployment.files import DEPLOY, DOCKERFILE, ROOT, command_config, image_environment, read, tool
from docs.pages import page, table

from vinfer.config import Config, ServerConfig
from vinfer.errors import VinferError

UNIT = DEPLOY / "systemd" / "vinfer.service"
# Folders of secrets, which an administrator makes.
SECRETS = {"./secrets/vinfer", "./secrets/prometheus"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return read(DEPLOY / "compose.yaml")["services"]


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Return the source of each mount by its path in the container, with the defaults of variables."""
    plain = [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume) for volume in service["volumes"]]
    return {target: source for source, target, *_ in (volume.split(":") for volume in plain)}


def served(services: dict[str, Any]) -> Config:
    vinfer = services["vinfer"]
    return command_config(vinfer["command"], None, {**image_environment(), **vinfer["environment"]})


def test_the_schema_of_compose_accepts_the_files() -> None:
    files = sorted(DEPLOY.glob("compose*.yaml"))
    assert len(files) == 2
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_stops_vinfer_after_its_drain(services: dict[str, Any]) -> None:
    server = served(services).server
    grace = int(services["vinfer"]["stop_grace_period"].removesuffix("s"))
    assert grace >= server.drain_delay_seconds + server.drain_timeout_seconds + 5


def test_compose_mounts_what_exists(services: dict[str, Any]) -> None:
    volumes = read(DEPLOY / "compose.yaml")["volumes"].keys()
    for service in services.values():
        for source in mounts(service).values():
            assert source in volumes | SECRETS or (DEPLOY / source).is_file(), source
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_compose_serves_what_it_builds(services: dict[str, Any]) -> None:
    build, vinfer = services["precompile"], services["vinfer"]
    config = (DEPLOY / mounts(build)[build["command"][1]]).resolve()
    command_config(build["command"], config, image_environment())
    output = build["command"][build["command"].index("--output") + 1]
    assert vinfer["command"][:2] == ["serve", output]
    folder = str(Path(output).parent)
    assert mounts(build)[folder] == mounts(vinfer)[folder]
    # A new volume takes the owner of the directory in the image.
    assert re.search(rf"install -d -o vinfer .* {folder}$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    assert mounts(vinfer)[image_environment()["VINFER_CACHE_DIR"]] == "cache"
    assert mounts(vinfer)[str(served(services).server.api_keys_file.parent)] in SECRETS
    assert served(services).log_format == "json"
    for service in (build, vinfer):
        assert f" AS {service['build']['target']}\n" in DOCKERFILE


def test_compose_gives_vinfer_no_rights(services: dict[str, Any]) -> None:
    vinfer = services["vinfer"]
    assert (vinfer["read_only"], vinfer["tmpfs"], vinfer["cap_drop"]) == (True, ["/tmp"], ["ALL"])
    for service in services.values():
        # Published to this machine alone: vinfer speaks plain HTTP.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_compose_for_gpus_adds_to_services_that_exist(services: dict[str, Any]) -> None:
    added = read(DEPLOY / "compose.gpu.yaml")["services"]
    assert added.keys() == {"precompile", "vinfer"} <= services.keys()
    for service in added.values():
        assert all(f"ARG {name}=" in DOCKERFILE for name in service["build"]["args"])


def test_prometheus_finds_its_files_and_its_target(services: dict[str, Any]) -> None:
    found = mounts(services["prometheus"])
    config = read(DEPLOY / "compose" / "prometheus.yml")
    assert {f"/etc/prometheus/{name}" for name in config["rule_files"]} <= found.keys()
    [job] = config["scrape_configs"]
    assert found[str(Path(job["authorization"]["credentials_file"]).parent)] in SECRETS
    [target] = job["static_configs"]
    assert target["targets"] == [f"vinfer:{served(services).server.port}"]
    assert ServerConfig().metrics


def test_grafana_finds_its_dashboard_and_its_source(services: dict[str, Any]) -> None:
    found = mounts(services["grafana"])
    [provider] = read(DEPLOY / "compose" / "dashboards.yml")["providers"]
    assert any(Path(path).parent == Path(provider["options"]["path"]) for path in found)
    [source] = read(DEPLOY / "compose" / "datasources.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"


class _Unit(configparser.RawConfigParser):
    """A unit file: its keys may come several times, and their case counts."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.fixture(scope="module")
def unit() -> _Unit:
    parser = _Unit(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.read(UNIT)
    return parser


def test_the_unit_runs_a_command_that_exists(unit: _Unit) -> None:
    program, *args = unit["Service"]["ExecStart"].split()
    assert program.endswith("/bin/vinfer")
    variables = dict(re.findall(r"^Environment=(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    config = command_config(args, ROOT / "configs" / "smollm2.yaml", variables)
    assert str(config.cache_dir) == f"/var/cache/{unit['Service']['CacheDirectory']}" == variables["HOME"]


def test_the_unit_waits_for_the_drain(unit: _Unit) -> None:
    server = ServerConfig()
    drain = server.drain_delay_seconds + server.drain_timeout_seconds
    assert int(unit["Service"]["TimeoutStopSec"]) >= drain + 5
    # Children would not survive a SIGTERM of their own, and the drain needs none of them.
    assert unit["Service"]["KillMode"] == "mixed"
    assert unit["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_the_unit_gives_up_on_what_no_restart_mends(unit: _Unit) -> None:
    final = {int(code) for code in unit["Service"]["RestartPreventExitStatus"].split()}
    known = {kind.exit_code for kind in VinferError.__subclasses__()}
    assert final <= known
    assert 1 not in final
    documented = {
        code
        for row in table(page("docs/operations.md"), "exit code")
        for code in row["exit code"].split(", ")
    }
    assert {*unit["Service"]["SuccessExitStatus"].split()} <= documented


def test_the_unit_lets_vinfer_use_accelerators_and_compile(unit: _Unit) -> None:
    # ProtectClock implies a DeviceAllow, and any DeviceAllow closes the other devices.
    closing = {"PrivateDevices", "ProtectClock", "DeviceAllow", "DevicePolicy", "MemoryDenyWriteExecute"}
    assert not closing & unit["Service"].keys()


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    # On this machine there is neither the program nor the user.
    text = UNIT.read_text().replace("/opt/vinfer/bin/vinfer", "/bin/true")
    text = re.sub(r"^(User|Group)=vinfer$", r"\1=root", text, flags=re.MULTILINE)
    (tmp_path / "vinfer.service").write_text(text)
    command = [tool("systemd-analyze"), "verify", tmp_path / "vinfer.service"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "vinfer.service" in line]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.parametrize("name", ["Dockerfile", "deploy/Dockerfile.baked"])
def test_hadolint_accepts_the_dockerfile(name: str) -> None:
    done = subprocess.run([tool("hadolint"), ROOT / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_baked_image_begins_with_the_run_image() -> None:
    text = (DEPLOY / "Dockerfile.baked").read_text()
    assert "\nARG BASE=vinfer:latest\nFROM ${BASE}\n" in text
    owner = re.search(r"^USER (\d+:\d+)$", DOCKERFILE, re.MULTILINE)[1]
    assert f"COPY --chown={owner} " in text
