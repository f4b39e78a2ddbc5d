"""What scripts/reliability makes of its figures, and that the tests that it names exist."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from reliability_runs.client import at_most, completion
from reliability_runs.figure import judged, percentile, skipped
from reliability_runs.hostile import bodies
from reliability_runs.page import REPAIRS, page
from reliability_runs.tested import TESTED

ROOT = Path(__file__).parents[1]


def rows(text: str, heading: str) -> list[list[str]]:
    part = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[1:]]


def test_the_page_has_each_figure_in_order_and_counts_them() -> None:
    text = page(
        [
            judged("rolling", "0 fail", "0", holds=True),
            judged("10", "a", "b|c", holds=False),
            judged("2", "d", "e\nf", holds=True),
            skipped("18", "g", "no tool"),
        ]
    )
    assert rows(text, "Figures") == [
        ["2", "d", "e f", "holds"],
        ["10", "a", "b\\|c", "does not hold"],
        ["18", "g", "no tool", "not measured"],
        ["rolling", "0 fail", "0", "holds"],
    ]
    assert "2 of 3 figures hold; 1 were not measured." in text
    assert len(rows(text, "Before and after")) == len(REPAIRS)


def test_the_tests_that_are_named_exist() -> None:
    named = [file for _, _, files in TESTED for file in files]
    named += [file for _, now in REPAIRS for file in re.findall(r"`(tests/[^`]*)`", now)]
    assert len(named) > 15
    assert [file for file in named if not (ROOT / file).exists()] == []


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 0)])
def test_percentiles(fraction: float, expected: int) -> None:
    assert percentile([float(i) for i in reversed(range(101))], fraction) == expected


def test_hostile_bodies_are_within_the_limit_that_is_measured() -> None:
    """A longer one would be refused by its length, and show nothing."""
    limit = 4 * 2**20
    assert {name for name, (_, body) in bodies().items() if len(body) > limit} == set()
    assert max(len(body) for _, body in bodies().values()) > 0.9 * limit
    assert json.loads(completion(max_tokens=3))["max_tokens"] == 3


def test_so_many_calls_run_at_a_time() -> None:
    running, most = 0, 0

    async def call() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return 1

    assert asyncio.run(at_most(3, [call] * 10)) == [1] * 10
    assert most == 3
