"""Judges figures of two sizes of a model, and writes docs/reports/accelerators.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from accelerator_check.read import Figures

OK, FAIL, UNKNOWN = "ok", "FAIL", "unknown"
_MB = 1e6
_COLUMNS = (
    "model",
    "tp",
    "program",
    "temp MB",
    "step MB",
    "ideal MB",
    "step / ideal",
    "collectives",
    "compile s",
    "verdict",
)
_INTRODUCTION = """\
# Accelerators

This page shows what the TPU and CUDA compilers make of the programs. Nothing here ran on a device.

<!-- not run: compiles for hours -->
```sh
scripts/accelerators
```

Written by `scripts/accelerators` with {versions}. {setup}

| column | meaning |
|---|---|
| tp | devices that share the model; all figures are those of one device |
| temp | temporary memory for each number of layers in brackets, then for the whole model |
| step | bytes of main memory per decode step or `verify`, with rows of {row_len} positions; whole model |
| ideal | all weights once, and the keys and values that the rows see |
| collectives | per decode step or per dispatch of another program, whole model |
| compile | seconds for the largest number of layers, on a busy machine with 2 cores |
| verdict | FAIL: a copy of an array as large as a layer's k or v, or too much temp or traffic |

- Too much is more than {max_temp_mb} MB of temporary memory, or step / ideal above 1.1 (TPU) or 1.3 (GPU).
- A verdict is unknown if the compiler fails, or if its output cannot be read.
- Figures of a whole model are extended from two small ones, in proportion to layers. Where a third number
  is in brackets, the whole model was compiled.
- A step counts the cheapest branch of each condition: greedy sampling without penalties.
- A step can be below the ideal. A TPU keeps small weights in VMEM from step to step, a separate embedding is
  not read whole, and a mixture reads only the experts that its rows chose.
- On h100, the bytes of the decode kernel are counted from its loads and stores.

"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One program of one model on one target.

    Attributes:
        by_layers: figures by number of layers.
        num_layers: of the whole model.
        tp: devices that share the model; figures are those of one device.
        max_traffic: most bytes of a decode step or a verification against the ideal.
    """

    target: str
    model: str
    program: str
    by_layers: Mapping[int, Figures]
    num_layers: int
    tp: int = 1
    max_traffic: float = float("inf")

    @property
    def has_ideal(self) -> bool:
        return self.program.startswith(("decode", "verify"))

    @property
    def traffic(self) -> float | None:
        """Bytes of a decode step or a verification against the ideal, for the whole model."""
        step, ideal = (self.whole(field) for field in ("step_bytes", "ideal_bytes"))
        return step / ideal if step and ideal and self.has_ideal else None

    def whole(self, field: str) -> float | None:
        """Return a figure of the whole model: that of two sizes, extended in proportion to layers."""
        values = {layers: getattr(figures, field) for layers, figures in self.by_layers.items()}
        if not values or None in values.values():
            return None
        few, many = min(values), max(values)
        if few == many:
            return float(values[few]) if few == self.num_layers else None
        per_layer = (values[many] - values[few]) / (many - few)
        return float(max(values[many] + per_layer * (self.num_layers - many), 0))

    @property
    def copies(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(copy for figures in self.by_layers.values() for copy in figures.copies or ())
        )

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(why for figures in self.by_layers.values() for why in figures.unknown))


def verdict(row: Row, max_temp_bytes: float) -> str:
    """Return FAIL for a copy, too much temporary memory or too much traffic; unknown if one is not known."""
    temps = [figures.temp_bytes for figures in row.by_layers.values()]
    whole = row.whole("temp_bytes")
    known = [temp for temp in (*temps, whole) if temp is not None]
    traffic = row.traffic
    is_slow = traffic is not None and traffic > row.max_traffic
    if row.copies or is_slow or any(temp > max_temp_bytes for temp in known):
        return FAIL
    if any(figures.copies is None for figures in row.by_layers.values()) or not temps or None in temps:
        return UNKNOWN
    if row.has_ideal and traffic is None:
        return UNKNOWN
    return OK


def page(rows: Sequence[Row], *, max_temp_bytes: float, row_len: int, versions: str, setup: str) -> str:
    """Return the report."""
    lines = _INTRODUCTION.format(
        versions=versions, setup=setup, row_len=row_len, max_temp_mb=f"{max_temp_bytes / _MB:.0f}"
    ).splitlines()
    for target in dict.fromkeys(row.target for row in rows):
        lines += [
            f"## {target}",
            "",
            *_table([row for row in rows if row.target == target], max_temp_bytes),
            "",
        ]
    lines += _remarks(rows)
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: Iterable[Row], max_temp_bytes: float) -> list[str]:
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    for row in rows:
        step, ideal = (row.whole(field) if row.has_ideal else None for field in ("step_bytes", "ideal_bytes"))
        measured = ", ".join(
            f"{_mb(row.by_layers[layers].temp_bytes)} [{layers}]" for layers in sorted(row.by_layers)
        )
        cells = (
            row.model,
            str(row.tp),
            f"`{row.program}`",
            f"{measured}, {_mb(row.whole('temp_bytes'))}",
            _mb(step) if row.has_ideal else "",
            _mb(ideal) if row.has_ideal else "",
            f"{row.traffic:.2f}" if row.traffic else "",
            _number(row.whole("num_collectives")),
            f"{row.by_layers[max(row.by_layers)].compile_seconds:.0f}",
            verdict(row, max_temp_bytes),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _remarks(rows: Iterable[Row]) -> list[str]:
    remarks = [
        f"- {row.target}, {row.model}, `{row.program}`, tp {row.tp}: {words}"
        for row in rows
        for words in (
            *(f"makes {copy} anew" for copy in row.copies),
            *(f"unknown: {why}" for why in row.unknown),
        )
    ]
    return ["## Remarks", "", *remarks] if remarks else []


def _mb(num_bytes: float | None) -> str:
    if num_bytes is None:
        return UNKNOWN
    return f"{num_bytes / _MB:,.1f}" if num_bytes < 100 * _MB else f"{num_bytes / _MB:,.0f}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}"
