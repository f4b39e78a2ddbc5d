"""instructor: fills in a type through a schema and through a tool call.

python -m client_runs.programs.instructor_types URL
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import instructor
from openai import OpenAI

from client_runs.questions import CITY_REQUEST, City
from client_runs.raw import MODEL
from client_runs.rows import run_checks


def _filled_in(mode: instructor.Mode) -> Callable[[OpenAI], str]:
    def check(client: OpenAI) -> str:
        city = instructor.from_openai(client, mode=mode).chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": CITY_REQUEST}],
            response_model=City,
            temperature=0,
            max_retries=1,
        )
        assert isinstance(city, City)
        return repr(city)

    return check


CHECKS: dict[str, Callable[[OpenAI], str]] = {
    "`response_model`, `Mode.JSON_SCHEMA`": _filled_in(instructor.Mode.JSON_SCHEMA),
    "`response_model`, `Mode.TOOLS`": _filled_in(instructor.Mode.TOOLS),
}


def main(url: str) -> None:
    run_checks("instructor", CHECKS, OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0))


if __name__ == "__main__":
    main(sys.argv[1])
