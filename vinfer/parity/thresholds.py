"""Which figures pass, and why these.

float32: both sides compute the same function with other orders of summation. The errors of the tests' tiny
checkpoints and of SmolLM2-135M are below 1e-5 of the logit scale; a mixture of experts amplifies them where its
router hardly prefers one expert to another. A greedy token is wrong where the reference prefers another one by
more than that error.

bfloat16 and float16: the bundle rounds weights, activations and cache, the reference does not, so tokens may
differ where the best two are near each other.
"""

from __future__ import annotations

from vinfer.bundle import ParityFigures, ParityThresholds

_MAX_ERROR = 1e-5
_MAX_ERROR_OF_MIXTURES = 1e-4
_MIN_TOP1_AGREEMENT = 0.9
_MAX_MEAN_KL = 0.05


def default_thresholds(dtype: str, *, is_mixture: bool, max_error: float | None = None) -> ParityThresholds:
    """Return the thresholds for a bundle of that dtype.

    Args:
        is_mixture: a router chooses among experts.
        max_error: replaces the default one; where there is none, adds one.
    """
    default = _MAX_ERROR_OF_MIXTURES if is_mixture else _MAX_ERROR
    if dtype == "float32":
        return ParityThresholds(
            max_error=default if max_error is None else max_error, max_wrong_tokens=0, tie=default
        )
    return ParityThresholds(
        max_error=max_error,
        min_top1_agreement=_MIN_TOP1_AGREEMENT,
        max_mean_kl=_MAX_MEAN_KL,
        tie=default,
    )


def shortfalls(figures: ParityFigures, thresholds: ParityThresholds) -> list[str]:
    """Say which figures do not pass, each with its threshold; empty where all do."""
    found: list[str] = []
    limits = (
        ("the largest error", figures.largest_error, thresholds.max_error),
        ("the number of wrong tokens", figures.num_wrong_tokens, thresholds.max_wrong_tokens),
        ("the mean KL divergence", figures.mean_kl, thresholds.max_mean_kl),
    )
    for name, figure, limit in limits:
        if limit is not None and figure > limit:
            found.append(f"{name} is {figure:.3g}, at most {limit:g} passes")
    least = thresholds.min_top1_agreement
    if least is not None and figures.top1_agreement < least:
        found.append(f"the top-1 agreement is {figures.top1_agreement:.4f}, at least {least:g} passes")
    return found
