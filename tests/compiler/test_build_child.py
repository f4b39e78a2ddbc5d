"""The build process: a failure becomes one clear error in the parent and leaves nothing half-built."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

from tiny.bundles import model_config
from tiny.checkpoints import checkpoint

from vinfer import child_process
from vinfer.checkpoint.source import resolve_source
from vinfer.compiler.child import run_build
from vinfer.compiler.plan import BuildPlan, plan_build
from vinfer.config import ModelConfig
from vinfer.errors import BuildError, CheckpointError
from vinfer.launch.bundles import find_or_build
from vinfer.launch.devices import Target

TESTS = Path(__file__).parents[1]
PATIENCE_SECONDS = 60

pytestmark = pytest.mark.bundles()


def copy_checkpoint(directory: Path, **config_changes: Any) -> Path:
    """Copy the smallest checkpoint, with changed values in its config.json."""
    directory.mkdir()
    for file in checkpoint("llama-nine-heads").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    config = json.loads((directory / "config.json").read_text()) | config_changes
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def without_a_tensor(directory: Path) -> Path:
    from safetensors.numpy import load_file, save_file

    copy_checkpoint(directory)
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors")
    return directory


def of_another_model(directory: Path) -> Path:
    return copy_checkpoint(directory, intermediate_size=200)


def plan_for(source: Path) -> BuildPlan:
    model = model_config("llama").model_copy(update={"source": str(source)})
    return plan_build(model, resolve_source(str(source)), where="models[0]", platform="cpu", num_devices=1)


def run(source: Path, directory: Path, progress: Callable[[str, int, int], None] = lambda *_: None) -> None:
    """Run the real build child over a checkpoint that the parent has not checked."""
    (directory / "scratch").mkdir()
    run_build(
        plan_for(source),
        revision=None,
        directory=directory / "scratch",
        log_path=directory / "build.log",
        progress=progress,
    )


BROKEN: list[tuple[Callable[[Path], Path], str]] = [
    (without_a_tensor, r"lacks 1 of \d+ tensors, first model.layers.0.mlp.up_proj.weight"),
    (of_another_model, r"mlp.gate_proj.weight has shape \[192, 144\]; its config requires \[200, 144\]"),
]


@pytest.mark.parametrize(("breaking", "message"), BROKEN)
def test_a_broken_checkpoint_is_refused_before_a_child_starts(
    breaking: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    model = model_config("llama").model_copy(update={"source": str(breaking(tmp_path / "broken"))})
    phases: list[str] = []
    with pytest.raises(CheckpointError, match=message):
        find_or_build(
            model,
            where="models[0]",
            target=Target(platform="cpu", num_devices=1),
            bundles_dir=tmp_path / "bundles",
            progress=lambda _, phase, *__: phases.append(phase),
        )
    assert set(phases) <= {"finding checkpoint"}
    assert [path.name for path in (tmp_path / "bundles").iterdir() if path.is_dir()] == []


def test_the_childs_error_comes_through(tmp_path: Path) -> None:
    """The error has the child's class and message, without its traceback."""
    with pytest.raises(CheckpointError, match=BROKEN[0][1]) as raised:
        run(without_a_tensor(tmp_path / "broken"), tmp_path)
    assert "Traceback" not in raised.value.message


NOISY_SITE = """
import atexit, os, subprocess, sys

print("a banner at start-up")

class Talker:
    def find_spec(self, name, *_):
        if name == "vinfer.compiler.export.bundle":
            print('{"done": true}')
            os.write(1, b"half a line")
            subprocess.run(["echo", "a program"])

sys.meta_path.insert(0, Talker())
atexit.register(lambda: os.write(1, b"goodbye\\n"))
"""


def test_what_libraries_print_does_not_disturb_the_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOISY_SITE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    phases: list[str] = []
    with pytest.raises(CheckpointError, match="lacks 1 of"):
        run(without_a_tensor(tmp_path / "broken"), tmp_path, lambda phase, *_: phases.append(phase))
    assert phases == ["reading checkpoint"]
    log = (tmp_path / "build.log").read_text()
    assert [said for said in ("a banner", '{"done"', "half a line", "a program") if said not in log] == []


def test_a_child_that_cannot_start_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_python = tmp_path / "python"
    broken_python.write_text("#!/bin/sh\nexit 3\n")
    broken_python.chmod(0o755)
    monkeypatch.setattr(child_process, "PYTHON", (str(broken_python),))
    with pytest.raises(BuildError, match=r"ended with exit code 3: see .*build\.log"):
        run(checkpoint("llama-nine-heads"), tmp_path)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def build_children(pid: int) -> list[int]:
    return [
        child
        for child in children(pid)
        if b"vinfer.compiler" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
    ]


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds children through /proc")


BUILDING_PARENT = """
import sys
from pathlib import Path
from vinfer.config import ModelConfig
from vinfer.launch.bundles import find_or_build
from vinfer.launch.devices import Target

def say(_, phase, *__):
    if phase != "finding checkpoint":
        print(phase, flush=True)

find_or_build(
    ModelConfig.model_validate_json(sys.argv[1]), where="models[0]",
    target=Target(platform="cpu", num_devices=1), bundles_dir=Path(sys.argv[2]), progress=say,
)
"""


def start_parent(script: str, model: ModelConfig, bundles: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, model.model_dump_json(), str(bundles)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_proc
def test_a_killed_child_leaves_no_half_bundle(tmp_path: Path) -> None:
    """The child is killed during its work, as by the kernel when memory runs out."""
    model = model_config("llama").model_copy(update={"source": str(checkpoint("llama-nine-heads"))})
    with start_parent(BUILDING_PARENT, model, tmp_path) as parent:
        assert parent.stdout is not None
        assert [parent.stdout.readline() for _ in range(2)] == ["reading checkpoint\n", "importing easydel\n"]
        [scratch] = [path for path in tmp_path.iterdir() if path.is_dir()]
        (scratch / "weights").mkdir()
        [child] = build_children(parent.pid)
        os.kill(child, signal.SIGKILL)
        _, said = parent.communicate(timeout=PATIENCE_SECONDS)
    assert parent.returncode == 1
    last_line = said.splitlines()[-1]
    assert last_line.startswith("vinfer.errors.BuildError: the build of ")
    assert "ended with signal 9 (out of memory?): see " in last_line
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@needs_proc
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    """A killed server leaves behind no build, no lock and no bundle."""
    model = model_config("llama").model_copy(update={"source": str(checkpoint("llama-nine-heads"))})
    with start_parent(BUILDING_PARENT, model, tmp_path / "bundles") as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "reading checkpoint\n"
        [child] = build_children(parent.pid)
        parent.kill()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_running(child):
        assert time.monotonic() < deadline, "the build goes on without its parent"
        time.sleep(0.05)
    assert not list((tmp_path / "bundles").glob("*/manifest.json"))


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


COUNTING_PARENT = (
    """
import sys
from vinfer.bundle.directory import write_manifest
from vinfer.bundle.manifest import FORMAT_VERSION, Manifest, ModelCard
from vinfer.compiler.plan import build_versions
import vinfer.launch.bundles

def run_build(plan, *, directory, **_):
    print("building", flush=True)
    sys.stdin.readline()
    card = ModelCard(
        source="", architecture="", task="", num_parameters=0, bos_token_id=None, eos_token_ids=(),
        pad_token_id=None, vocab_size=0, sampling_defaults={},
    )
    write_manifest(directory, Manifest(
        format_version=FORMAT_VERSION, key=plan.key, created=0, versions=build_versions(), platform="cpu",
        mesh=plan.mesh, dtype=plan.dtype, num_slots=1, max_model_len=1, model=card, weights=(),
        page_size=32, kv_windows=(None,), kv=(),
        state=(), programs=(), files={},
    ))

vinfer.launch.bundles.run_build = run_build
"""
    + BUILDING_PARENT
)


def test_two_processes_build_one_key_once(tmp_path: Path) -> None:
    """The second process waits, says so, and finds the bundle."""
    model = model_config("llama").model_copy(update={"source": str(checkpoint("llama-nine-heads"))})
    with start_parent(COUNTING_PARENT, model, tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "building\n"
        with start_parent(COUNTING_PARENT, model, tmp_path) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "waiting for another build\n"
            assert first.communicate("\n", timeout=PATIENCE_SECONDS)[0] == ""
            assert second.communicate("\n", timeout=PATIENCE_SECONDS)[0] == ""
    assert [first.returncode, second.returncode] == [0, 0]
    assert len(list(tmp_path.glob("*/manifest.json"))) == 1


SERVING_PARENT = """
import sys
from pathlib import Path
from tiny.bundles import model_config
from tiny.engines import Question, ask, load_engine
from vinfer.compiler.child import run_build
from vinfer.compiler.plan import plan_build
from vinfer.checkpoint.checkpoint import open_checkpoint
from vinfer.checkpoint.source import resolve_source
from vinfer.errors import CheckpointError

model = model_config("llama")
source = resolve_source(model.source)
open_checkpoint(source)
plan = plan_build(model, source, where="models[0]", platform="cpu", num_devices=1)
broken, scratch = Path(sys.argv[2]), Path(sys.argv[3])
try:
    refused = plan_build(
        model, resolve_source(str(broken)), where="models[0]", platform="cpu", num_devices=1
    )
    run_build(refused, revision=None, directory=scratch, log_path=scratch / "log", progress=lambda *_: None)
except CheckpointError:
    pass
engine = load_engine(Path(sys.argv[1]), model)
[answer] = ask(engine, [Question((1, 2, 3))])
assert len(answer.token_ids) == 64
engine.stop()
banned = ("easydel", "eformer", "ejkernel", "flax", "transformers", "torch")
print([name for name in banned if name in sys.modules])
"""


@pytest.mark.bundles("llama")
def test_a_process_that_builds_and_serves_has_none_of_the_build_in_it(
    tmp_path: Path, bundle_of: Callable[[str], Path]
) -> None:
    broken = without_a_tensor(tmp_path / "broken")
    process = subprocess.run(
        [sys.executable, "-c", SERVING_PARENT, str(bundle_of("llama")), str(broken), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == "[]\n"


REFUSED_MESHES = [
    ("precompile", "llama", 3, "models[0].mesh.tp is 3; the model has 8 attention heads and 4 KV heads"),
    (
        "serve",
        "llama-nine-heads",
        2,
        "models[0].mesh.tp is 2; the model has 9 attention heads and 3 KV heads",
    ),
]


@pytest.mark.parametrize(("command", "name", "tp", "words"), REFUSED_MESHES)
def test_an_illegal_mesh_ends_the_command_with_a_sentence(
    command: str, name: str, tp: int, words: str, tmp_path: Path
) -> None:
    config = {
        "cache_dir": str(tmp_path / "cache"),
        "server": {"port": 0},
        "models": [{"name": "m", "source": str(checkpoint(name)), "max_model_len": 512, "mesh": {"tp": tp}}],
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    process = subprocess.run(
        [Path(sys.executable).with_name("vinfer"), command, path, "--devices", "cpu:4"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert process.returncode == 2
    assert words in process.stderr
    assert "the nearest legal mesh is" in process.stderr
    assert "Traceback" not in process.stderr
