"""`vinfer verify` as a user runs it, on a real bundle: correct, spoiled, and where it cannot run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference is transformers with torch")

from safetensors.numpy import load_file, save_file
from starlette.testclient import TestClient
from tiny.bundles import build, model_config
from tiny.checkpoints import CACHE, checkpoint

from vinfer.bundle.directory import read_manifest, write_manifest
from vinfer.bundle.verification import hash_files
from vinfer.config import ServerConfig
from vinfer.launch.loader import served_model
from vinfer.server.app import create_app
from vinfer.server.model_table import ModelTable

BUNDLE = "llama-linear-rope"
pytestmark = pytest.mark.bundles(BUNDLE)
# Makes package discovery miss torch, as on a machine without it.
NO_TORCH = """
import importlib.util

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(build(BUNDLE), tmp_path_factory.mktemp("bundles") / "tiny"))


def verify(
    *arguments: str | Path, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vinfer", "verify", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "VINFER_XLA_CACHE": str(CACHE / "test-code"), **(environ or {})},
    )


@pytest.fixture(scope="module")
def verified(bundle: Path) -> dict[str, Any]:
    """The `--json` output for the correct bundle, whose manifest has the figures afterward."""
    before = read_manifest(bundle)
    assert before.parity is None
    run = verify(bundle, "--json")
    assert run.returncode == 0, run.stderr
    after = read_manifest(bundle)
    assert after == before.model_copy(update={"parity": after.parity})
    document: dict[str, Any] = json.loads(run.stdout)
    return document


def test_a_right_bundle_passes(verified: dict[str, Any], bundle: Path) -> None:
    assert verified["passed"] is True
    [model] = verified["models"]
    assert list(model) == ["name", "bundle", "parity", "shortfalls", "prompts"]
    assert (model["name"], model["bundle"], model["shortfalls"]) == ("tiny", str(bundle), [])
    for prompt in model["prompts"]:
        assert list(prompt) == [
            "name",
            "prompt_len",
            "num_tokens",
            "logit_scale",
            "largest_error",
            "mean_error",
            "top1_agreement",
            "mean_kl",
            "largest_kl",
            "wrong_steps",
        ]
    assert [prompt["prompt_len"] for prompt in model["prompts"]] == [1, 31, 33, 95, 192, 192]
    assert {prompt["num_tokens"] for prompt in model["prompts"]} == {64}


def test_the_manifest_and_the_models_route_carry_the_figures(verified: dict[str, Any], bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.parity is not None
    said = verified["models"][0]["parity"]
    assert manifest.parity.model_dump() == said
    assert said["verdict"] == "passed"
    assert said["dtype"] == said["reference_dtype"] == "float32"
    assert set(said["versions"]) == {"vinfer", "transformers", "torch"}
    assert 0 < said["figures"]["largest_error"] <= said["thresholds"]["max_error"] == 1e-5
    assert said["figures"]["num_tokens"] == 6 * 64
    assert said["figures"]["num_wrong_tokens"] == said["thresholds"]["max_wrong_tokens"] == 0

    engine: Any = type("Engine", (), {"is_alive": True, "max_model_len": 512})()
    table = ModelTable(["tiny"])
    table.serve(
        served_model(bundle, manifest, model_config(BUNDLE), engine, position=0, parity=manifest.parity)
    )
    client = TestClient(
        create_app(ServerConfig(), table, compile_count=lambda: 0), base_url="http://localhost"
    )
    [shown] = client.get("/v1/models").json()["data"]
    assert shown["parity_verdict"] == "passed"
    assert shown["parity"] == said


def test_a_spoiled_bundle_fails(verified: dict[str, Any], bundle: Path, tmp_path: Path) -> None:
    """One number of one norm is larger by a hundredth; the hashes match the changed files."""
    spoiled = Path(shutil.copytree(bundle, tmp_path / "spoiled"))
    manifest = read_manifest(spoiled)
    spec = next(spec for spec in manifest.weights if "norm" in spec.name)
    weights = load_file(spoiled / "weights" / spec.file)
    weights[spec.name] = weights[spec.name] * np.where(np.arange(spec.shape[0]) == 3, 1.01, 1).astype(
        np.float32
    )
    save_file(weights, spoiled / "weights" / spec.file)
    write_manifest(spoiled, manifest.model_copy(update={"files": hash_files(spoiled)}))
    run = verify(spoiled)
    assert run.returncode == 8, run.stderr
    assert "spoiled: the largest error is" in run.stderr.splitlines()[-1]
    assert "33 random" in run.stdout
    assert "failed: the largest error is" in run.stdout
    parity = read_manifest(spoiled).parity
    assert parity is not None
    assert parity.verdict == "failed"
    assert parity.figures.largest_error > 3e-5


def test_another_models_checkpoint_is_refused_and_the_figures_stay(
    verified: dict[str, Any], bundle: Path
) -> None:
    before = read_manifest(bundle)
    run = verify(bundle, "--source", checkpoint("qwen2"))
    assert run.returncode == 3
    assert " is qwen2 with " in run.stderr
    assert "but the bundle was built from llama with " in run.stderr
    assert read_manifest(bundle) == before
    run = verify(bundle, "--source", bundle)
    assert run.returncode == 2
    assert f"--source {bundle} is a bundle" in run.stderr


def test_without_torch_it_says_what_to_install(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_TORCH)
    run = verify(bundle, environ={"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path[:1], os.getcwd()])})
    assert run.returncode == 9
    assert run.stderr.splitlines()[-1] == (
        "vinfer: error: the check against transformers needs torch, which is not installed: "
        "pip install torch (its CPU build is enough)"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "other"], "--model is other; the config has tiny"),
        (["--revision", "main"], "--revision needs --source"),
        (["--prompts", "/nowhere"], "--prompts /nowhere is not a file"),
        (["--max-error", "inf"], "--max-error is inf: give a number"),
    ],
)
def test_flags_that_do_not_fit(bundle: Path, arguments: list[str], message: str) -> None:
    run = verify(bundle, *arguments)
    assert run.returncode == 2
    assert message in run.stderr
