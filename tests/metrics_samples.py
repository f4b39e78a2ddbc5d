"""Reads /metrics of a server."""

from __future__ import annotations


def summed_samples(text: str) -> dict[str, float]:
    """Return each sample without the prefix `vinfer:`, summed over its labels."""
    samples: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.split("{")[0].removeprefix("vinfer:")
            samples[name] = samples.get(name, 0.0) + float(value)
    return samples
