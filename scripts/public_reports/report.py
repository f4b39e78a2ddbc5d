"""One public report: where it is, what was sent, and how vinfer's answer is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from public_reports.server import Server

Outcome = Literal["right", "mended", "left"]
"""What was found: right from the start, mended with a test, or left as it is for a reason."""


@dataclasses.dataclass(frozen=True)
class Report:
    """One report.

    Attributes:
        place: the repository on GitHub and the number of the issue or pull request.
        seen: what the report says of the other server.
        sent: what is sent to vinfer.
        check: returns what vinfer did; raises if that is not what is right.
        why: the test of what was mended, or why it was left.
    """

    place: str
    seen: str
    sent: str
    check: Callable[[Server], str]
    outcome: Outcome = "right"
    why: str = ""
