"""An event is one line for every client, also for those that split text as Python does."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from vinfer.server.generate.sse import UNNAMED

# What str.splitlines takes for the end of a line.
ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@given(st.text(alphabet=st.sampled_from([*ENDS, "a", "é", "\\", '"', "u"])))
@example(ENDS)
@example("\\\u2028\\u2028")
def test_no_character_of_a_text_ends_the_line_of_its_event(text: str) -> None:
    event = UNNAMED.event({"text": text}).decode()
    assert event.endswith("\n\n")
    line, *rest = event.splitlines()
    assert rest == [""]
    assert json.loads(line.removeprefix("data: ")) == {"text": text}


def test_other_characters_stay_as_they_are() -> None:
    assert UNNAMED.event({"text": "é 世 🌍"}).decode() == 'data: {"text":"é 世 🌍"}\n\n'
