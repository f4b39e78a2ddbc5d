"""The age of what is under way."""

from __future__ import annotations

from vinfer.hosts.outstanding import Outstanding


def test_the_oldest_record_counts() -> None:
    now = [0.0]
    records = Outstanding(lambda: now[0])
    assert records.age_seconds == 0.0
    for number in range(3):
        now[0] += 1.0
        records.begin(number)
    now[0] = 10.0
    assert records.age_seconds == 9.0
    records.end(0)
    assert records.age_seconds == 8.0
    # The end of a later record is the end of all before it.
    records.end(2)
    assert records.age_seconds == 0.0
    records.end(2)
