"""The page: a table of routes, the complaints with the reason of each, and what makes a run a failure.

Pure functions. A complaint without a reason is a failure: either the document or the server is to be mended.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter

from fuzzing.tally import Complaint, Tally

MIN_SUCCESS_FRACTION = 0.3
# What no JSON Schema can say, by the server's words.
REASONS: tuple[tuple[str, str], ...] = (
    (r"prompt has N tokens; max_model_len is N", "how many tokens a text has, the tokenizer knows"),
    (r"has N tokens; max_model_len is N", "how many tokens a text has, the tokenizer knows"),
    (r"^max_\w+ is N and the prompt has N tokens", "the sum of two lengths"),
    (r"^min_tokens is N; at most N tokens", "one field is compared with another, or with a default"),
    (r"^best_of is N", "one field is compared with another"),
    (r"^max_tokens is N and max_completion_tokens", "two fields must be equal"),
    (r"names must be unique", "a field of items that must differ"),
    (r"is not in tools", "one field must be found in another"),
    (r"^logit_bias\.N is token N", "keys are text: a schema cannot compare them with a number"),
    (r"^stop_token_ids and the model's", "the model's own end tokens count too"),
    (r"^continue_final_message", "what the last message is, and what the chat template makes of it"),
    (r"cannot be enforced", "what a grammar or a schema in a request means"),
    (r"cannot be followed", "what a grammar or a schema in a request means"),
)


def reason_of(complaint: Complaint) -> str | None:
    """Say why the document cannot tell what the server refused; None for a complaint nobody has explained."""
    if complaint.check != "positive_data_acceptance":
        return None
    return next((reason for pattern, reason in REASONS if re.search(pattern, complaint.message)), None)


def failures(tally: Tally, health: list[str], *, min_cases: int) -> list[str]:
    """List what must not be."""
    found = [f"after the run: {complaint}" for complaint in health]
    for route, statuses in tally.statuses.items():
        for status, num in sorted(statuses.items()):
            if status == 0 or status >= 500:
                found.append(f"{route}: {num} cases with {status or 'no answer'}")
    found += [
        f"{complaint.route}: {complaint.check}, {num} cases: {complaint.message}\n"
        f"    for example: {tally.examples[complaint][:500]}"
        for complaint, num in sorted(tally.complaints.items())
        if reason_of(complaint) is None
    ]
    if tally.num_cases < min_cases:
        found.append(f"{tally.num_cases} cases; must be at least {min_cases}")
    if tally.success_fraction < MIN_SUCCESS_FRACTION:
        found.append(
            f"{tally.success_fraction:.1%} of the cases reach a 2xx; must be {MIN_SUCCESS_FRACTION:.0%}"
        )
    return found


def page(tally: Tally, *, version: str, seed: int, minutes: float) -> str:
    """Write docs/reports/fuzzing.md."""
    num_complaints: Counter[str] = Counter()
    for complaint, num in tally.complaints.items():
        num_complaints[complaint.route] += num
    routes = [
        _row(f"`{route}`", statuses.total(), *_classes(tally, route), num_complaints[route])
        for route, statuses in sorted(tally.statuses.items())
    ]
    routes.append(_row("all", tally.num_cases, *_classes(tally), num_complaints.total()))
    return _PAGE.format(
        version=version,
        seed=seed,
        minutes=minutes,
        date=dt.datetime.now(dt.UTC),
        num_cases=tally.num_cases,
        success=tally.success_fraction,
        num_5xx=tally.num_of_class(5),
        routes="\n".join(routes),
        complaints="\n".join(_complaint_rows(tally)),
    )


_PAGE = """\
# Every route, fuzzed

Written by `scripts/fuzz`. It serves a tiny random model under two names and has schemathesis {version}
make cases from the server's own `/openapi.json`: bodies and queries that the document allows, and mutations
that it forbids. Every answer is held against the document: status, media type, body, each event of a stream.
What the document allows must be taken, what it forbids must be refused. Afterwards the server must be as it
was: ready, no request running or waiting, no program compiled, and answering.

Last run: {date:%Y-%m-%d}, seed {seed}, {minutes:.0f} minutes. {num_cases:,} cases; {success:.1%} reach a 2xx,
{num_5xx} a 5xx, and no body is not as its schema says.

| route | cases | 2xx | 4xx | 5xx | complaints |
|---|---|---|---|---|---|
{routes}

A route that takes nothing has one case. A complaint is a case that the document allows and the server
refuses, with a 400 that names the field. These are left; JSON Schema cannot say them:

| cases | what the document cannot say | the server's words in the most frequent case |
|---|---|---|
{complaints}
"""


def _classes(tally: Tally, route: str | None = None) -> list[int]:
    return [tally.num_of_class(digit, route) for digit in (2, 4, 5)]


def _complaint_rows(tally: Tally) -> list[str]:
    by_reason: dict[str, Counter[str]] = {}
    for complaint, num in tally.complaints.items():
        by_reason.setdefault(reason_of(complaint) or "not explained", Counter())[complaint.message] += num
    rows = []
    for reason, messages in sorted(by_reason.items(), key=lambda item: -item[1].total()):
        example = messages.most_common(1)[0][0].replace("|", "\\|")
        rows.append(_row(messages.total(), reason, example))
    return rows


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
