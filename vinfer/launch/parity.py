"""Compares a loaded bundle with transformers and writes the figures into its manifest.

Runs on the loader thread, with an engine that nothing else uses yet. Decides the outcome of the check after
a build: if it fails or cannot run, the model is still served, and the log and the manifest say so.
"""

from __future__ import annotations

import logging
from pathlib import Path

from vinfer.bundle.certificate import ParityReport
from vinfer.bundle.directory import record_parity
from vinfer.bundle.manifest import Manifest
from vinfer.bundle.progress import ModelProgress
from vinfer.checkpoint.checkpoint import Checkpoint, num_parameters, open_checkpoint
from vinfer.checkpoint.source import ResolvedSource
from vinfer.config import ModelConfig
from vinfer.engine.request import EngineClient
from vinfer.errors import BundleError, CheckpointError, ReferenceUnavailableError
from vinfer.launch.bundles import FoundBundle
from vinfer.parity.measure import Certificate, certify
from vinfer.parity.prompts import answer_len, built_in_prompts, read_prompts
from vinfer.parity.reference_process import reference_process, require_memory, require_packages
from vinfer.parity.thresholds import default_thresholds, shortfalls
from vinfer.text.tokenizer import Tokenizer
from vinfer.version import __version__

logger = logging.getLogger(__name__)


def measure_bundle(
    bundle: FoundBundle,
    engine: EngineClient,
    source: ResolvedSource,
    *,
    name: str,
    progress: ModelProgress,
    prompts_file: Path | None = None,
    max_error: float | None = None,
) -> Certificate:
    """Compare the engine running a bundle with transformers running its source.

    Args:
        source: what the bundle was built from; not a bundle.
        name: the model's name, for progress.
        prompts_file: replaces the built-in prompts.
        max_error: replaces the threshold of the dtype.

    Raises:
        CheckpointError: vinfer does not support the source, or it is another model than the bundle's.
        ConfigError: the prompts are invalid.
        EngineError: the engine failed.
        ReferenceUnavailableError: torch is missing, there is too little memory, or transformers failed.
    """
    require_packages()
    manifest, tokenizer = bundle.manifest, Tokenizer.load(bundle.directory / "tokenizer")

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=True)

    num_token_ids, max_model_len = tokenizer.vocab_size, engine.max_model_len
    if prompts_file is None:
        prompts = built_in_prompts(manifest, encode, max_model_len=max_model_len, num_token_ids=num_token_ids)
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
            versions={"vinfer": __version__, **reference.versions},
            progress=lambda done, total: progress(name, "comparing with transformers", done, total),
        )


def _require_same_model(checkpoint: Checkpoint, manifest: Manifest, source: ResolvedSource) -> None:
    """Refuse a source that is another model, which would make a correct bundle look wrong."""
    built = (manifest.model.architecture, manifest.model.num_parameters)
    found = (checkpoint.model_type, num_parameters(checkpoint))
    if found != built:
        raise CheckpointError(
            f"{source.spec} is {found[0]} with {found[1]} parameters, but the bundle was built from "
            f"{built[0]} with {built[1]}: give its checkpoint with --source"
        )


def record(bundle: FoundBundle, report: ParityReport) -> None:
    """Write a report into the bundle's manifest; if the bundle is not writable, only log a warning."""
    try:
        record_parity(bundle.directory, bundle.manifest.key, report)
    except (OSError, BundleError) as error:
        logger.warning("the figures could not be written to the manifest of %s: %s", bundle.directory, error)


def check_new_bundle(
    bundle: FoundBundle, model: ModelConfig, engine: EngineClient, progress: ModelProgress
) -> ParityReport | None:
    """Compare a newly built bundle; return what is known about its parity.

    Raises:
        EngineError: the engine failed.
    """
    if not bundle.is_new or model.verify == "off":
        return bundle.manifest.parity
    try:
        certificate = measure_bundle(bundle, engine, bundle.source, name=model.name, progress=progress)
    except (CheckpointError, ReferenceUnavailableError) as error:
        logger.info("%s is not verified: %s", model.name, error.message)
        return None
    report = certificate.report
    missed = shortfalls(report.figures, report.thresholds)
    if missed:
        logger.warning(
            "THE TOKENS OF %s DO NOT MATCH TRANSFORMERS: %s; it is served anyway, and /v1/models says so",
            model.name,
            "; ".join(missed),
        )
    else:
        logger.info("%s matches transformers: %s", model.name, figures_words(report))
    record(bundle, report)
    return report


def figures_words(report: ParityReport) -> str:
    """Return a report's figures in one line."""
    figures = report.figures
    return (
        f"largest error {figures.largest_error:.1e} of the logit scale, top-1 agreement "
        f"{figures.top1_agreement:.4f}, mean KL divergence {figures.mean_kl:.1e}, "
        f"{figures.num_wrong_tokens} of {figures.num_tokens} tokens wrong"
    )
