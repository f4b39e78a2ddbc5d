"""How XLA compiles the programs of the tests: fast, unless a run or an engine wants what a server gets.

XLA's optimizations take three quarters of the time that a tiny program takes to compile, and gain nothing
there. What they could break is still compared with the reference in every run: the servers of `tests/e2e`
and the bundles of `AS_SERVED` are compiled as `vinfer serve` compiles them. `scripts/test slow` and
`scripts/parity` compile everything so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from unittest import mock

_FAST = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
# XLA's own values, as options of one compile; they take precedence over the flags of a process.
_DEFAULTS: dict[str, str | bool] = {
    "xla_backend_optimization_level": "3",
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_parallel_codegen_split_count": "32",
}
AS_SERVED = ("llama", "llama-pinned", "qwen3", "gpt-oss-tp2")
"""Bundles of `tiny.bundles`: one that most tests ask, and compare more closely than fast code rounds; one
that must answer bit for bit; one with norms of its heads; one with experts over two devices."""


def compile_fast() -> None:
    """Have this process and its children compile fast; before JAX starts."""
    os.environ["XLA_FLAGS"] = " ".join([*_other_flags(), *_FAST])


@contextlib.contextmanager
def as_served() -> Iterator[None]:
    """Compile the programs that are loaded meanwhile as a server does, and find its code."""
    # Imported here: it brings JAX in.
    from vinfer.engine.loading import executables

    with (
        mock.patch.dict(os.environ, XLA_FLAGS=" ".join(_other_flags())),
        mock.patch.object(executables, "compiler_options", return_value=_DEFAULTS),
    ):
        yield


def _other_flags() -> list[str]:
    return [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag not in _FAST]
