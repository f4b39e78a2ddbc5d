"""Writes the page: a table of routes, and the complaints with their reasons. Decides whether a run fails.

Pure functions. A complaint without a reason is a failure: the document or the server must be fixed.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter

from fuzzing.tally import Complaint, Tally

MIN_SUCCESS_FRACTION = 0.3
# Rules that no JSON Schema can express, matched by the server's message.
REASONS: tuple[tuple[str, str], ...] = (
    (r"prompt has N tokens; max_model_len is N", "only the tokenizer knows how many tokens a text has"),
    (r"has N tokens; max_model_len is N", "only the tokenizer knows how many tokens a text has"),
    (r"^prompt is too long: N tokens", "only the tokenizer knows how many tokens a text has"),
    (r"has N characters, which are at least N tokens", "only the tokenizer knows how many tokens a text has"),
    (r"^max_\w+ is N and the prompt has N tokens", "the sum of two lengths"),
    (r"^min_tokens is N; at most N tokens", "one field is compared with another, or with a default"),
    (r"^best_of is N", "one field is compared with another"),
    (r"^max_tokens is N and max_completion_tokens", "two fields must be equal"),
    (r"is another name of \w+: send one of them", "two fields must be equal"),
    (r"^max_tokens is N; must be at least N without echo", "other names of a field are in no rule"),
    (r"names must be unique", "a field must differ between items"),
    (r"is not in tools", "one field must be found in another"),
    (r"^logit_bias\.N is token N", "keys are text: a schema cannot compare them with a number"),
    (r"^stop_token_ids and the model's", "the model's own end tokens count too"),
    (r"^messages: the model's chat template", "it depends on the last message and on the chat template"),
    (r"^continue_final_message", "it depends on the last message and on the chat template"),
    (r"is a tool_use without its result", "it depends on the last message"),
    (r"^thinking\.type is", "it depends on the model"),
    (r"cannot be enforced", "the meaning of a grammar or schema in a request"),
    (r"cannot be followed", "the meaning of a grammar or schema in a request"),
)


def reason_of(complaint: Complaint) -> str | None:
    """Return why the document cannot express the server's refusal; None for an unexplained complaint."""
    if complaint.check != "positive_data_acceptance":
        return None
    return next((reason for pattern, reason in REASONS if re.search(pattern, complaint.message)), None)


def failures(tally: Tally, health: list[str], *, min_cases: int) -> list[str]:
    """List what makes the run fail."""
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
    """Return the text of docs/reports/fuzzing.md."""
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

Written by `scripts/fuzz`. It serves a tiny random model under two names, and schemathesis {version} generates
cases from the server's own `/openapi.json`: bodies and queries that the document allows, and mutations that
it forbids. Every answer is checked against the document: status, media type, body, and each event of a
stream. The server must accept what the document allows and refuse what it forbids. Afterwards it must be as
before: ready, no request running or waiting, no program compiled, and answering.

Last run: {date:%Y-%m-%d}, seed {seed}, {minutes:.0f} minutes. {num_cases:,} cases; {success:.1%} reach a 2xx,
{num_5xx} a 5xx, and every body matches its schema.

| route | cases | 2xx | 4xx | 5xx | complaints |
|---|---|---|---|---|---|
{routes}

A route without parameters or a body has one case. A complaint is a case that the document allows and the
server refuses, with a 400 that names the field. These remain, because JSON Schema cannot express them:

| cases | what the document cannot express | the server's message in the most frequent case |
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
