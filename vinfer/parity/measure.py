"""Produces a parity report from an engine, a reference and prompts: asks both, compares, judges.

Runs its own event loop, not the server's. Knows neither how the engine was loaded nor how the reference is
implemented.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vinfer.bundle.certificate import ParityFigures, ParityReport, ParityThresholds
from vinfer.bundle.manifest import MAX_TOP_LOGPROBS
from vinfer.engine.request import EngineClient, Request, SamplingParams, TokenLogprobs
from vinfer.parity.figures import Logits, StepFigures, compare
from vinfer.parity.prompts import Prompt, answer_len
from vinfer.parity.thresholds import shortfalls

Reference = Callable[[Sequence[int], Sequence[int]], Logits]
"""Prompt ids and answer ids -> float32 [len(answer ids), vocab], the logits behind each token."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The engine's answer: token ids and one logprobs entry for each."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptFigures:
    """The figures of one prompt; errors are fractions of the logit scale, divergences are in nats."""

    name: str
    prompt_len: int
    num_tokens: int
    logit_scale: float
    largest_error: float
    mean_error: float
    top1_agreement: float
    mean_kl: float
    largest_kl: float
    wrong_steps: tuple[int, ...]
    """Steps whose token is neither the reference's best one nor tied with it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Certificate:
    """A report and the figures of each prompt that it summarizes."""

    report: ParityReport
    prompts: tuple[PromptFigures, ...]


def certify(
    engine: EngineClient,
    reference: Reference,
    prompts: Sequence[Prompt],
    *,
    num_token_ids: int,
    dtype: str,
    thresholds: ParityThresholds,
    versions: Mapping[str, str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Certificate:
    """Ask the engine, compare every answer with the reference, and judge.

    Args:
        reference: called once per prompt, with the engine's answer.
        num_token_ids: ids that the tokenizer has.
        dtype: the bundle's dtype, for the report.
        versions: package versions used for the measurement, for the report.
        progress: called with the number of prompts done and the total.

    Raises:
        EngineError: the engine failed.
    """
    progress(0, len(prompts))
    answers = asyncio.run(ask(engine, prompts))
    figures = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = reference(prompt.token_ids, answer.token_ids)
        steps = compare(logits, answer.token_ids, answer.logprobs, num_token_ids=num_token_ids)
        figures.append(_prompt_figures(prompt, steps, thresholds.tie))
        progress(len(figures), len(prompts))
    total = _total(figures)
    report = ParityReport(
        verdict="failed" if shortfalls(total, thresholds) else "passed",
        measured=int(time.time()),
        versions=dict(versions),
        dtype=dtype,
        reference_dtype="float32",
        figures=total,
        thresholds=thresholds,
    )
    return Certificate(report, tuple(figures))


async def ask(engine: EngineClient, prompts: Sequence[Prompt]) -> list[Answer]:
    """Return the engine's greedy answers: first to the last prompt alone, then to the others batched.

    There are never more requests at once than the engine has slots, so none is refused.
    """
    slots = asyncio.Semaphore(engine.stats().num_slots)

    async def ask_one(place: int) -> Answer:
        prompt = prompts[place].token_ids
        params = SamplingParams(
            max_tokens=answer_len(engine.max_model_len, len(prompt)),
            temperature=0.0,
            top_logprobs=MAX_TOP_LOGPROBS,
        )
        request = Request(
            id=f"parity-{place}", prompt_ids=prompt, params=params, arrival_seconds=time.monotonic()
        )
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        async with slots:
            async for event in engine.submit(request):
                if event.error is not None:
                    raise event.error
                token_ids += event.token_ids
                logprobs += event.logprobs or ()
        return Answer(tuple(token_ids), tuple(logprobs))

    last = await ask_one(len(prompts) - 1)
    return [*await asyncio.gather(*(ask_one(place) for place in range(len(prompts) - 1))), last]


def _prompt_figures(prompt: Prompt, steps: StepFigures, tie: float) -> PromptFigures:
    return PromptFigures(
        name=prompt.name,
        prompt_len=len(prompt.token_ids),
        num_tokens=len(steps.lags),
        logit_scale=steps.scale,
        largest_error=float(steps.largest_errors.max()),
        mean_error=float(steps.mean_errors.mean()),
        top1_agreement=float(steps.top1_agrees.mean()),
        mean_kl=float(steps.kls.mean()),
        largest_kl=float(steps.kls.max()),
        wrong_steps=tuple(int(step) for step in np.flatnonzero(steps.lags > tie)),
    )


def _total(prompts: Sequence[PromptFigures]) -> ParityFigures:
    weights = np.array([prompt.num_tokens for prompt in prompts], np.float64)

    def mean(values: Sequence[float]) -> float:
        return float(np.average(np.array(values), weights=weights))

    return ParityFigures(
        num_prompts=len(prompts),
        num_tokens=int(weights.sum()),
        largest_error=max(prompt.largest_error for prompt in prompts),
        mean_error=mean([prompt.mean_error for prompt in prompts]),
        top1_agreement=mean([prompt.top1_agreement for prompt in prompts]),
        mean_kl=mean([prompt.mean_kl for prompt in prompts]),
        largest_kl=max(prompt.largest_kl for prompt in prompts),
        num_wrong_tokens=sum(len(prompt.wrong_steps) for prompt in prompts),
    )
