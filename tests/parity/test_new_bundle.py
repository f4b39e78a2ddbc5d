"""The check after a build: it only measures new bundles, and serves them whatever the result."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from vinfer.bundle.certificate import ParityFigures, ParityReport
from vinfer.bundle.directory import read_manifest, write_manifest
from vinfer.bundle.manifest import FORMAT_VERSION, Manifest, ModelCard
from vinfer.checkpoint.source import ResolvedSource
from vinfer.compiler.plan import build_versions
from vinfer.config import Config, ModelConfig
from vinfer.errors import ReferenceUnavailableError
from vinfer.launch import loader, parity, precompile
from vinfer.launch.bundles import FoundBundle
from vinfer.launch.progress.clock import PhaseClock
from vinfer.launch.progress.times import PhaseTimes, Work
from vinfer.parity.measure import Certificate
from vinfer.parity.thresholds import default_thresholds
from vinfer.server.model_table import ModelTable

MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    key="0" * 64,
    created=1_700_000_000,
    versions={},
    platform="cpu",
    mesh={"dp": 1, "fsdp": 1, "ep": 1, "tp": 1, "sp": 1},
    dtype="float32",
    num_slots=1,
    max_model_len=64,
    model=ModelCard(
        source="tiny",
        architecture="llama",
        task="text",
        num_parameters=1,
        bos_token_id=None,
        eos_token_ids=(),
        pad_token_id=None,
        vocab_size=16,
        sampling_defaults={},
    ),
    weights=(),
    page_size=32,
    kv_windows=(None,),
    kv=(),
    state=(),
    programs=(),
    files={},
)


def report(verdict: str, num_wrong_tokens: int) -> ParityReport:
    return ParityReport(
        verdict=verdict,
        measured=1_700_000_001,
        versions={},
        dtype="float32",
        reference_dtype="float32",
        figures=ParityFigures(
            num_prompts=1,
            num_tokens=64,
            largest_error=1e-6,
            mean_error=1e-7,
            top1_agreement=1.0,
            mean_kl=0.0,
            largest_kl=0.0,
            num_wrong_tokens=num_wrong_tokens,
        ),
        thresholds=default_thresholds("float32", is_mixture=False),
    )


PASSED, FAILED = report("passed", 0), report("failed", 3)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_manifest(bundle, MANIFEST)
    return bundle


def check(
    directory: Path, monkeypatch: pytest.MonkeyPatch, outcome: ParityReport | Exception, **settings: Any
) -> tuple[ParityReport | None, int]:
    """Return what is known about the bundle's parity afterward, and how often it was measured."""
    measured: list[Path] = []

    def measure(directory: Path, *_: Any, **__: Any) -> Certificate:
        measured.append(directory)
        if isinstance(outcome, Exception):
            raise outcome
        return Certificate(outcome, ())

    monkeypatch.setattr(parity, "measure_bundle", measure)
    is_new = settings.pop("is_new", True)
    source = ResolvedSource("tiny", "hf", directory, {})
    bundle = FoundBundle(directory, source, read_manifest(directory), is_new=is_new)
    model = ModelConfig.model_validate({"name": "tiny", "source": "tiny", **settings})
    engine: Any = None
    found = parity.check_new_bundle(bundle, model, engine, lambda *_: None)
    return found, len(measured)


def test_a_new_bundle_is_measured_and_its_manifest_says_so(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vinfer"):
        assert check(directory, monkeypatch, PASSED) == (PASSED, 1)
    assert read_manifest(directory).parity == PASSED
    assert "tiny matches transformers" in caplog.text


def test_a_bundle_that_was_there_keeps_its_word(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(directory, monkeypatch, PASSED, is_new=False) == (None, 0)
    write_manifest(directory, MANIFEST.model_copy(update={"parity": FAILED}))
    assert check(directory, monkeypatch, PASSED, is_new=False) == (FAILED, 0)


def test_it_can_be_switched_off(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(directory, monkeypatch, PASSED, verify="off") == (None, 0)


def test_a_failed_check_warns_and_does_not_refuse(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert check(directory, monkeypatch, FAILED) == (FAILED, 1)
    assert read_manifest(directory).parity == FAILED
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "TINY" not in record.getMessage()
    assert "THE TOKENS OF tiny DO NOT MATCH TRANSFORMERS" in record.getMessage()
    assert "the number of wrong tokens is 3; at most 0 is allowed" in record.getMessage()


def test_what_cannot_be_checked_is_one_line_that_says_why(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vinfer"):
        outcome = check(directory, monkeypatch, ReferenceUnavailableError("torch is not installed"))
    assert outcome == (None, 1)
    assert read_manifest(directory).parity is None
    assert [record.getMessage() for record in caplog.records] == [
        "tiny is not verified: torch is not installed"
    ]


def test_a_bundle_that_cannot_be_written_to_only_warns(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(parity, "record_parity", refuse)
    assert check(directory, monkeypatch, PASSED) == (PASSED, 1)
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "Read-only file system" in record.getMessage()


class StillEngine:
    """An engine that receives no requests."""

    is_alive = True

    def __init__(self) -> None:
        self.is_stopped = False

    def stop(self) -> None:
        self.is_stopped = True


@pytest.fixture
def built(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle for this process that precompile and the loader treat as newly built."""
    write_manifest(directory, MANIFEST.model_copy(update={"versions": build_versions()}))
    source = ResolvedSource("tiny", "hf", directory, {})
    for module in (precompile, loader):
        monkeypatch.setattr(
            module,
            "find_or_build",
            lambda *_, **__: FoundBundle(directory, source, read_manifest(directory), is_new=True),
        )
        monkeypatch.setattr(module, "start_engine", lambda *_, **__: StillEngine())
        # This bundle has no programs.
        monkeypatch.setattr(module, "bundle_work", lambda *_: Work("cpu", 1, 1, 1))
    monkeypatch.setattr(parity, "measure_bundle", lambda *_, **__: Certificate(FAILED, ()))
    return directory


CONFIG = Config.model_validate({"models": [{"name": "tiny", "source": "tiny"}]})


def test_precompile_measures_what_it_built(built: Path, tmp_path: Path) -> None:
    """The bundle's lock must be released before the figures are written."""
    clock = PhaseClock(PhaseTimes(tmp_path), lambda _: None)
    directories = precompile.precompile(CONFIG, wanted=None, output=None, clock=clock)
    assert directories == [built]
    assert read_manifest(built).parity == FAILED


def test_the_server_shows_what_it_measured(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[ParityReport | None] = []

    def serve(*_: Any, parity: ParityReport | None, **__: Any) -> Any:
        served.append(parity)
        return type("Served", (), {"name": "tiny", "engine": StillEngine()})()

    monkeypatch.setattr(loader, "served_model", serve)
    table = ModelTable(["tiny"])
    config = CONFIG.model_copy(update={"cache_dir": tmp_path})
    loader.Loader(config, table, wanted=None, code_cache=tmp_path / "code", show=lambda _: None).run()
    assert table.failure is None
    assert served == [FAILED]
    assert read_manifest(built).parity == FAILED
