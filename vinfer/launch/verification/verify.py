"""`vinfer verify`: compares each model's bundle, found or built as by the server, with transformers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from vinfer.bundle.progress import ModelProgress
from vinfer.checkpoint.source import ResolvedSource, resolve_source
from vinfer.config import Config
from vinfer.errors import CheckpointError, ConfigError, ParityError
from vinfer.launch.bundles import FoundBundle, find_or_build
from vinfer.launch.devices import WantedDevices, local_devices
from vinfer.launch.engine_start import start_engine
from vinfer.launch.parity import measure_bundle, record
from vinfer.parity.measure import Certificate
from vinfer.parity.reference_process import require_packages
from vinfer.parity.thresholds import shortfalls


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """Options of the command line that are not in the config.

    Attributes:
        only: name of the one model to verify; None for all.
        source, revision: what the bundle was built from, if the source in its manifest cannot be found here.
    """

    only: str | None = None
    prompts_file: Path | None = None
    max_error: float | None = None
    source: str | None = None
    revision: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Verification:
    """One model's bundle and the figures found."""

    name: str
    directory: Path
    certificate: Certificate

    @property
    def shortfalls(self) -> list[str]:
        """Descriptions of the figures that do not pass."""
        report = self.certificate.report
        return shortfalls(report.figures, report.thresholds)


def verify(
    config: Config,
    options: VerifyOptions,
    *,
    wanted: WantedDevices | None,
    code_cache: Path,
    progress: ModelProgress,
) -> list[Verification]:
    """Measure the bundles of a config's models and write the figures into their manifests.

    Raises:
        VinferError: as when the server starts.
        ReferenceUnavailableError: nothing can be compared here.
    """
    _check_options(config, options)
    positions = _positions(config, options)
    require_packages()
    target = local_devices(wanted)
    found = []
    for position in positions:
        model = config.models[position]
        bundle = find_or_build(
            model,
            where=f"models[{position}]",
            target=target,
            bundles_dir=config.bundles_dir,
            progress=progress,
        )
        source = _checkpoint_source(bundle, options)
        roots = bundle.code_roots(code_cache)
        engine = start_engine(bundle, model, target, code_roots=roots, progress=progress)
        try:
            certificate = measure_bundle(
                bundle,
                engine,
                source,
                name=model.name,
                progress=progress,
                prompts_file=options.prompts_file,
                max_error=options.max_error,
            )
        finally:
            engine.stop()
        record(bundle, certificate.report)
        found.append(Verification(model.name, bundle.directory, certificate))
    return found


def as_json(found: list[Verification]) -> dict[str, Any]:
    """Return the findings as plain data: `passed`, and per model its figures and those of each prompt."""
    return {
        "passed": not any(verification.shortfalls for verification in found),
        "models": [
            {
                "name": verification.name,
                "bundle": str(verification.directory),
                "parity": verification.certificate.report.model_dump(),
                "shortfalls": verification.shortfalls,
                "prompts": [dataclasses.asdict(prompt) for prompt in verification.certificate.prompts],
            }
            for verification in found
        ],
    }


def require_passed(found: list[Verification]) -> None:
    """Raise if any model failed.

    Raises:
        ParityError: a model failed; the message names each one and the figures that do not pass.
    """
    failed = [f"{v.name}: {'; '.join(v.shortfalls)}" for v in found if v.shortfalls]
    if failed:
        raise ParityError("the tokens do not match transformers: " + ". ".join(failed))


def _check_options(config: Config, options: VerifyOptions) -> None:
    """Refuse options that are clearly wrong before minutes of building and loading."""
    names = [model.name for model in config.models]
    if options.only is not None and options.only not in names:
        raise ConfigError(f"--model is {options.only}; the config has {', '.join(names)}")
    if options.source is not None and options.only is None and len(names) > 1:
        raise ConfigError(f"--source is for one model; the config has {len(names)}: add --model NAME")
    if options.revision is not None and options.source is None:
        raise ConfigError("--revision needs --source: for a config, set models[].revision instead")
    if options.prompts_file is not None and not options.prompts_file.is_file():
        raise ConfigError(f"--prompts {options.prompts_file} is not a file")
    if options.max_error is not None and not math.isfinite(options.max_error):
        raise ConfigError(f"--max-error is {options.max_error}: give a number, such as 1e-4")


def _positions(config: Config, options: VerifyOptions) -> list[int]:
    return [place for place, model in enumerate(config.models) if options.only in (None, model.name)]


def _checkpoint_source(bundle: FoundBundle, options: VerifyOptions) -> ResolvedSource:
    """Return the source that the bundle was built from."""
    if options.source is not None:
        source = resolve_source(options.source, revision=options.revision)
        if source.kind == "bundle":
            raise ConfigError(
                f"--source {options.source} is a bundle: give the checkpoint that the bundle was built from"
            )
        return source
    if bundle.source.kind != "bundle":
        return bundle.source
    built_from = bundle.manifest.model.source
    try:
        return resolve_source(built_from)
    except CheckpointError as error:
        raise CheckpointError(
            f"bundle {bundle.directory} was built from {built_from}, which cannot be found: "
            f"{error.message}; give the checkpoint with --source"
        ) from None
