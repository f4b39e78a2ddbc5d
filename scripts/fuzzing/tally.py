"""Counts schemathesis's event logs: statuses per route, and how often each kind of complaint occurred.

Pure functions over the files that `st run --report ndjson` writes.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Complaint:
    """A failed check, in a form that cases share: the values in its message are replaced."""

    route: str
    check: str
    message: str


@dataclasses.dataclass
class Tally:
    """The results of all cases.

    Attributes:
        statuses: answers per route and status; 0 stands for no answer.
        complaints: number of cases that failed a check in the same way.
        examples: the body of one case for each complaint.
    """

    statuses: dict[str, collections.Counter[int]]
    complaints: collections.Counter[Complaint]
    examples: dict[Complaint, str]

    @property
    def num_cases(self) -> int:
        return sum(counter.total() for counter in self.statuses.values())

    def num_of_class(self, digit: int, route: str | None = None) -> int:
        """Count the answers whose status begins with a digit."""
        counters = self.statuses.values() if route is None else [self.statuses[route]]
        return sum(num for counter in counters for status, num in counter.items() if status // 100 == digit)

    @property
    def success_fraction(self) -> float:
        return self.num_of_class(2) / max(self.num_cases, 1)


def tally(logs: Iterable[Path]) -> Tally:
    """Read event logs."""
    result = Tally({}, collections.Counter(), {})
    for recorder in (recorder for log in logs for recorder in _recorders(log)):
        route = recorder["label"]
        statuses = result.statuses.setdefault(route, collections.Counter())
        for case_id, interaction in recorder.get("interactions", {}).items():
            answer = interaction.get("response")
            statuses[answer["status_code"] if answer else 0] += 1
            for check in recorder.get("checks", {}).get(case_id, ()):
                if check["status"] != "success":
                    complaint = Complaint(route, check["name"], _message(check, answer))
                    result.complaints[complaint] += 1
                    result.examples.setdefault(complaint, _text(interaction["request"].get("body")))
    return result


def _recorders(log: Path) -> Iterator[Json]:
    with log.open() as lines:
        for line in lines:
            event = json.loads(line)
            if "ScenarioFinished" in event:
                yield event["ScenarioFinished"]["recorder"]


def _message(check: Json, answer: Json | None) -> str:
    """Return the server's reason if it refused, else the check's, without values that differ per case."""
    text = _text((answer or {}).get("content"))
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = json.dumps(check.get("failure_info") or check, sort_keys=True)[:300]
    message = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "'...'", message)
    return re.sub(r"\d+", "N", message)


def _text(content: Any) -> str:
    if isinstance(content, dict) and "$base64" in content:
        return base64.b64decode(content["$base64"]).decode("utf-8", "replace")
    return content if isinstance(content, str) else ""
