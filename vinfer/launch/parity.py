"""A loaded bundle against transformers, and the figures into its manifest.

Runs on the loader thread, with an engine that nobody else uses yet. Decides what becomes of the check that a
build makes: where it fails or cannot be made the model is served all the same, and says so.
"""

from __future__ import annotations

import logging
from pathlib import Path

import vinfer
from vinfer.bundle.certificate import ParityReport
from vinfer.bundle.directory import record_parity
from vinfer.bundle.manifest import Manifest
from vinfer.checkpoint.checkpoint import Checkpoint, num_parameters, open_checkpoint
from vinfer.checkpoint.source import ResolvedSource
from vinfer.config import ModelConfig
from vinfer.engine.request import EngineClient
from vinfer.errors import BundleError, CheckpointError, ReferenceUnavailableError
from vinfer.launch.bundles import FoundBundle, Progress
from vinfer.parity.measure import Certificate, certify
from vinfer.parity.prompts import answer_len, built_in_prompts, read_prompts
from vinfer.parity.reference_process import reference_process, require_memory, require_packages
from vinfer.parity.thresholds import default_thresholds, shortfalls
from vinfer.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def measure_bundle(
    directory: Path,
    manifest: Manifest,
    engine: EngineClient,
    source: ResolvedSource,
    *,
    name: str,
    progress: Progress,
    prompts_file: Path | None = None,
    max_error: float | None = None,
) -> Certificate:
    """Compare the engine over a bundle with transformers over its source.

    Args:
        source: what the bundle was built from; no bundle.
        name: of the model, for progress.
        prompts_file: in place of the built-in prompts.
        max_error: in place of the threshold of the dtype.

    Raises:
        CheckpointError: the source is not what vinfer serves, or another model than the bundle's.
        ConfigError: the prompts.
        EngineError: the engine failed.
        ReferenceUnavailableError: torch is missing, memory is short, or transformers failed.
    """
    require_packages()
    tokenizer = Tokenizer.load(directory / "tokenizer")

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=True)

    num_token_ids, max_model_len = tokenizer.vocab_size, manifest.max_model_len
    if prompts_file is None:
        prompts = built_in_prompts(manifest, encode, num_token_ids=num_token_ids)
    else:
        prompts = read_prompts(prompts_file, encode, max_model_len=max_model_len, num_token_ids=num_token_ids)
    lengths = [len(prompt.token_ids) for prompt in prompts]
    checkpoint = open_checkpoint(source)
    _require_same_model(checkpoint, manifest, source)
    require_memory(
        checkpoint,
        max_sequence_len=max(length + answer_len(max_model_len, length) for length in lengths),
    )
    progress(name, "loading transformers", 0, 1)
    with reference_process(source) as reference:
        return certify(
            engine,
            reference,
            prompts,
            num_token_ids=num_token_ids,
            dtype=manifest.dtype,
            thresholds=default_thresholds(
                manifest.dtype, is_mixture=checkpoint.facts.is_mixture, max_error=max_error
            ),
            versions={"vinfer": vinfer.__version__, **reference.versions},
            progress=lambda done, total: progress(name, "comparing with transformers", done, total),
        )


def _require_same_model(checkpoint: Checkpoint, manifest: Manifest, source: ResolvedSource) -> None:
    """Refuse a source whose comparison would call a right bundle wrong."""
    built = (manifest.model.architecture, manifest.model.num_parameters)
    found = (checkpoint.model_type, num_parameters(checkpoint))
    if found != built:
        raise CheckpointError(
            f"{source.spec} is {found[0]} of {found[1]} parameters, but the bundle was built from "
            f"{built[0]} of {built[1]}: name its checkpoint by --source"
        )


def record(directory: Path, manifest: Manifest, report: ParityReport) -> None:
    """Write a report into the bundle's manifest; a bundle that cannot be written to only warns."""
    try:
        record_parity(directory, manifest.key, report)
    except (OSError, BundleError) as error:
        logger.warning("the figures are not in the manifest of %s: %s", directory, error)


def check_new_bundle(
    bundle: FoundBundle, manifest: Manifest, model: ModelConfig, engine: EngineClient, progress: Progress
) -> ParityReport | None:
    """Compare a bundle that was built just now; return what is known of its parity.

    Raises:
        EngineError: the engine failed.
    """
    if not bundle.is_new or model.verify == "off":
        return manifest.parity
    try:
        certificate = measure_bundle(
            bundle.directory, manifest, engine, bundle.source, name=model.name, progress=progress
        )
    except (CheckpointError, ReferenceUnavailableError) as error:
        logger.info("%s is not verified: %s", model.name, error.message)
        return None
    report = certificate.report
    missed = shortfalls(report.figures, report.thresholds)
    if missed:
        logger.warning(
            "THE TOKENS OF %s ARE NOT THOSE OF TRANSFORMERS: %s; served all the same, /v1/models says so",
            model.name,
            "; ".join(missed),
        )
    else:
        logger.info("%s answers as transformers does: %s", model.name, figures_words(report))
    record(bundle.directory, manifest, report)
    return report


def figures_words(report: ParityReport) -> str:
    """Say a report's figures in one line."""
    figures = report.figures
    return (
        f"largest error {figures.largest_error:.1e} of the logit scale, top-1 agreement "
        f"{figures.top1_agreement:.4f}, mean KL divergence {figures.mean_kl:.1e}, "
        f"{figures.num_wrong_tokens} of {figures.num_tokens} tokens wrong"
    )
