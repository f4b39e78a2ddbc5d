"""A row per thing that a client did: made in the client's own process, read by the one that writes the table.

Each client is a program of its own, which prints its rows to standard output, one JSON object per line.
"""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        result: `passed`, `failed` or `not run`.
        remark: what came out; why it failed or was not run.
    """

    client: str
    version: str
    ran: str
    result: str
    remark: str

    def print(self) -> None:
        print(json.dumps(dataclasses.asdict(self)), flush=True)


def run_checks(package: str, checks: Mapping[str, Callable[..., str]], *arguments: Any) -> None:
    """Call each check with the arguments and print its row: what it returns is the remark.

    Args:
        package: the client as it is named on PyPI.
        checks: what is run, in words, to a function that raises where the answer is not right.
    """
    for ran, check in checks.items():
        try:
            result, remark = PASSED, check(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is its row
            traceback.print_exc()
            result, remark = FAILED, f"{type(error).__name__}: {error}"
        Row(package, version(package), ran, result, remark).print()


def expect_equal(got: object, expected: object) -> None:
    """Raise AssertionError, with both in it, where they differ."""
    assert got == expected, f"got {got!r}, expected {expected!r}"
