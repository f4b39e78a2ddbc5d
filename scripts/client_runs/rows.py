"""Rows of the table: one per check of a client, written by its process and read by the table's writer.

Each client is a separate program, which prints its rows to standard output, one JSON object per line.
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
        remark: the output, or why it failed or was not run.
    """

    client: str
    version: str
    ran: str
    result: str
    remark: str

    def print(self) -> None:
        print(json.dumps(dataclasses.asdict(self)), flush=True)


def run_checks(package: str, checks: Mapping[str, Callable[..., str]], *arguments: Any) -> None:
    """Call each check with the arguments and print its row; its return value is the remark.

    Args:
        package: the client's name on PyPI.
        checks: description -> function that raises if the answer is wrong.
    """
    for ran, check in checks.items():
        try:
            result, remark = PASSED, check(*arguments)
        except Exception as error:  # noqa: BLE001 - any exception of a client becomes its row
            traceback.print_exc()
            result, remark = FAILED, f"{type(error).__name__}: {error}"
        Row(package, version(package), ran, result, remark).print()


def expect_equal(got: object, expected: object) -> None:
    """Raise AssertionError with both values if they differ."""
    assert got == expected, f"got {got!r}, expected {expected!r}"
