"""`--devices`: what it may say, and what is answered where it asks for what is not here."""

from __future__ import annotations

import pytest

from vinfer.errors import ConfigError, DeviceError
from vinfer.launch import device_kinds
from vinfer.launch.device_kinds import KINDS, described_devices, missing_packages
from vinfer.launch.devices import WantedDevices, local_devices, target_devices


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("tpu:8", WantedDevices("tpu", 8)),
        ("gpu:1", WantedDevices("cuda", 1)),
        ("tpu-v5e:4", WantedDevices("tpu", 4, "v5e")),
        ("gpu-h100:2", WantedDevices("cuda", 2, "h100")),
        ("cpu:4", WantedDevices("cpu", 4)),
    ],
)
def test_devices_are_a_platform_or_a_kind_and_a_count(text: str, wanted: WantedDevices) -> None:
    assert target_devices(text) == wanted
    assert target_devices(str(wanted)) == wanted


@pytest.mark.parametrize(
    "text", ["", "tpu", "tpu:", "tpu:0", "tpu:-1", "tpu:x", "npu:1", "tpu-v5e", ":4", "tpu:²"]
)
def test_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--devices is .*such as tpu:8; .* such as tpu-v5e:4"):
        target_devices(text)


@pytest.mark.parametrize("text", ["tpu-v9:1", "cuda-v5e:1", "cpu-zen5:1", "tpu-:1"])
def test_an_unknown_kind_is_answered_with_those_that_are_known(text: str) -> None:
    with pytest.raises(ConfigError, match=r"the kinds of devices are tpu-v5e, tpu-v6e, .*cuda-h100"):
        target_devices(text)


def test_a_kind_that_is_not_here_is_an_error() -> None:
    with pytest.raises(DeviceError, match="asks for tpu-v5e:1, JAX found cpu on this machine"):
        local_devices(WantedDevices("tpu", 1, "v5e"))


def test_a_count_without_a_topology_is_answered_with_those_that_have_one() -> None:
    with pytest.raises(ConfigError, match="asks for 3 of v5e; code can be compiled for 1, 4, 8"):
        described_devices("v5e", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_compiler_is_answered_with_what_to_install(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_kinds.importlib.util, "find_spec", lambda _: None)
    packages = missing_packages(KINDS[kind].platform)
    assert all(package.startswith(("libtpu==", "jax-cuda12-", "nvidia-cuda-nvcc")) for package in packages)
    with pytest.raises(DeviceError, match=r"run pip install .*, or leave out the kind") as error:
        described_devices(kind, 1)
    assert " ".join(packages) in str(error.value)
