"""The thresholds of the parity figures, and the reasons for them. The only place that defines them.

float32: both sides compute the same function with different orders of summation. The largest error over the
tiny checkpoints of the parity matrix (docs/reports/models.md) is 5e-6 of the logit scale. A mixture of
experts amplifies errors if its router hardly prefers one expert to another. A greedy token is wrong if the
reference prefers another one by more than the threshold of the error.

bfloat16 and float16: the bundle rounds weights, activations and cache, and the reference does not. So tokens
may differ if the best two are close. Measured on tiny Llama (two kinds of RoPE), Qwen2 and Qwen3 checkpoints,
256 to 704 tokens each. The mistakes are those of the parity tests: every rotary frequency off by 1 %, a
missing bias, interleaved query heads, answers one position late.

                 correct                            with a mistake
                 top-1 agreement   mean KL          top-1 agreement   mean KL
    bfloat16     at least 0.933    at most 0.0064   at most 0.73      at least 0.40
    float16      at least 0.988    at most 0.00013  at most 0.62      at least 0.41

Over all families of the matrix, bfloat16 reaches at least 0.877 and at most 0.0074. Mixtures of experts,
whose routers choose differently after rounding, reach at least 0.859 and at most 0.064. The thresholds leave
room on both sides. bfloat16 cannot reveal a mistake as small as one norm weight off by a tenth (mean KL 0.009
to 0.013). float16 reveals it (0.005 to 0.009), and float32 reveals all of them.
"""

from __future__ import annotations

from vinfer.bundle.certificate import ParityFigures, ParityThresholds

_MAX_ERROR = 1e-5
_MAX_ERROR_OF_MIXTURES = 1e-4
_MIN_TOP1_AGREEMENT = {"bfloat16": 0.8, "float16": 0.95}
_MAX_MEAN_KL = {"bfloat16": 0.05, "float16": 0.002}
_MIN_TOP1_AGREEMENT_OF_MIXTURES = {"bfloat16": 0.75, "float16": 0.9}
_MAX_MEAN_KL_OF_MIXTURES = {"bfloat16": 0.2, "float16": 0.02}


def default_thresholds(dtype: str, *, is_mixture: bool, max_error: float | None = None) -> ParityThresholds:
    """Return the thresholds for a bundle of this dtype.

    Args:
        is_mixture: whether a router chooses among experts.
        max_error: replaces the default threshold of the error, or adds one if there is none.
    """
    default = _MAX_ERROR_OF_MIXTURES if is_mixture else _MAX_ERROR
    if dtype == "float32":
        return ParityThresholds(
            max_error=default if max_error is None else max_error, max_wrong_tokens=0, tie=default
        )
    return ParityThresholds(
        max_error=max_error,
        min_top1_agreement=(_MIN_TOP1_AGREEMENT_OF_MIXTURES if is_mixture else _MIN_TOP1_AGREEMENT)[dtype],
        max_mean_kl=(_MAX_MEAN_KL_OF_MIXTURES if is_mixture else _MAX_MEAN_KL)[dtype],
        tie=default,
    )


def shortfalls(figures: ParityFigures, thresholds: ParityThresholds) -> list[str]:
    """Return the figures that do not pass, in words and with their thresholds; empty if all pass."""
    found: list[str] = []
    limits = (
        ("the largest error", figures.largest_error, thresholds.max_error),
        ("the number of wrong tokens", figures.num_wrong_tokens, thresholds.max_wrong_tokens),
        ("the mean KL divergence", figures.mean_kl, thresholds.max_mean_kl),
    )
    for name, figure, limit in limits:
        if limit is not None and figure > limit:
            found.append(f"{name} is {figure:.3g}; at most {limit:g} is allowed")
    least = thresholds.min_top1_agreement
    if least is not None and figures.top1_agreement < least:
        found.append(f"the top-1 agreement is {figures.top1_agreement:.4f}; at least {least:g} is required")
    return found
