"""Draws one growth chart: AXIS FILE, and the figures by value and by side as JSON on standard input.

Runs in an environment of its own with matplotlib, without vinfer.
"""

from __future__ import annotations

import json
import sys
from typing import Any

LABELS = {"streams": "streams", "prompt": "tokens of the prompt", "output": "tokens of the answer"}
FIGURES = {
    "tokens_per_second": ("tokens/s", 1.0),
    "ttft_p50": ("TTFT p50, ms", 1000.0),
    "tpot_p50": ("time per token p50, ms", 1000.0),
}


def main() -> None:
    """Write the chart: three panels side by side, one line per server."""
    axis, file = sys.argv[1:]
    points: dict[str, dict[str, Any]] = json.load(sys.stdin)
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for sides in points.values() for name in sides))
    figure, panels = plt.subplots(1, len(FIGURES), figsize=(12, 3.6), layout="constrained")
    for panel, (key, (label, scale)) in zip(panels, FIGURES.items(), strict=True):
        for name in names:
            line = [
                (int(value), sides[name]["median"][key] * scale)
                for value, sides in points.items()
                if "median" in sides.get(name, {})
            ]
            if line:
                panel.plot(*zip(*line, strict=True), marker="o", markersize=3, label=name)
        values = [int(value) for value in points]
        panel.set_xscale("log", base=2)
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.set_xlabel(LABELS[axis])
        panel.set_title(label, fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
