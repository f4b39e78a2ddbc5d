"""The reference child: what it refuses, and the messages when it cannot run. No bundle, no engine."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny.checkpoints import checkpoint

from vinfer.checkpoint.checkpoint import open_checkpoint
from vinfer.checkpoint.source import ResolvedSource, resolve_source
from vinfer.errors import CheckpointError, ReferenceUnavailableError
from vinfer.parity import reference_process
from vinfer.parity.reference_process import require_memory, require_packages

pytest.importorskip("torch", reason="the reference is transformers with torch")


@pytest.fixture(scope="module")
def source() -> ResolvedSource:
    return resolve_source(str(checkpoint("llama-linear-rope")))


@pytest.fixture
def copied(source: ResolvedSource, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source.path, tmp_path / "checkpoint"))


def test_the_child_refuses_code_before_anything_is_imported(copied: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (copied / "payload.py").write_text(f"open({str(canary)!r}, 'w')")
    source = resolve_source(str(copied))
    config = json.loads((copied / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "payload.Model"}
    (copied / "config.json").write_text(json.dumps(config))
    with (
        pytest.raises(CheckpointError, match=r"config.json: `auto_map`.*never runs"),
        reference_process.reference_process(source),
    ):
        pytest.fail("it was loaded")
    assert not canary.exists()


def test_logits_are_those_of_transformers_and_a_child_that_dies_is_reported(source: ResolvedSource) -> None:
    import torch
    from tiny.checkpoints import reference

    prompt, answer = (3, 1, 4, 1, 5), (9, 2, 6)
    with reference_process.reference_process(source) as run:
        found = run(prompt, answer)
        assert set(run.versions) == {"transformers", "torch"}
        with pytest.raises(ReferenceUnavailableError, match="the reference failed: IndexError"):
            run((10**6,), answer)
        with pytest.raises(ReferenceUnavailableError, match=r"the reference ended with exit code 9"):
            run(prompt, answer)
    with torch.no_grad():
        expected = reference("llama-linear-rope")(torch.tensor([[*prompt, *answer]])).logits[0, 4:7].numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_code_of_a_native_family_never_runs_in_the_child(copied: Path, tmp_path: Path) -> None:
    """Neither does padding outside of the vocabulary stop torch."""
    canary = tmp_path / "canary"
    (copied / "payload.py").write_text(f"open({str(canary)!r}, 'w').close()")
    config = json.loads((copied / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "payload.LlamaConfig",
        "AutoModelForCausalLM": "payload.LlamaForCausalLM",
    }
    config["pad_token_id"] = config["vocab_size"]
    (copied / "config.json").write_text(json.dumps(config))
    with reference_process.reference_process(resolve_source(str(copied))) as run:
        assert run((3, 1, 4), (1, 5)).shape == (2, config["vocab_size"])
    assert not canary.exists()


@pytest.mark.parametrize(
    ("missing", "command"), [("torch", r"pip install torch"), ("transformers", r"vinfer\[build\]")]
)
def test_a_missing_package_is_named_with_its_command(
    missing: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name)
    )
    with pytest.raises(ReferenceUnavailableError, match=rf"{missing}, which is not installed: .*{command}"):
        require_packages()


def test_too_little_memory_is_refused_with_both_numbers(
    source: ResolvedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_checkpoint(source)
    monkeypatch.setattr(reference_process, "available_memory_bytes", lambda: 3 << 28)
    with pytest.raises(ReferenceUnavailableError, match=r"1\.0 GiB of memory.*0\.8 GiB are available"):
        require_memory(opened, max_sequence_len=256)
    # The attention scores of 8 heads: three times 8 GiB.
    with pytest.raises(ReferenceUnavailableError, match=r"needs 25\.0 GiB"):
        require_memory(opened, max_sequence_len=16384)
    monkeypatch.setattr(reference_process, "available_memory_bytes", lambda: 2 << 30)
    require_memory(opened, max_sequence_len=256)
    monkeypatch.setattr(reference_process, "available_memory_bytes", lambda: None)
    require_memory(opened, max_sequence_len=16384)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("2000", 2000 - 1500 + 300),
        ("1000000", 5 * 1024),
        ("max", 5 * 1024),
        (None, 5 * 1024),
    ],
)
def test_a_containers_limit_counts(
    limit: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   5 kB\n")
    monkeypatch.setattr(reference_process, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(reference_process, "_CGROUP", tmp_path)
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("1500\n")
        (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    assert reference_process.available_memory_bytes() == expected


def test_where_nothing_is_known_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_process, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(reference_process, "_CGROUP", tmp_path)
    assert reference_process.available_memory_bytes() is None
