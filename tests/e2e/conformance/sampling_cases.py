"""Cases of the fields that decide which tokens are generated, on both routes that generate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from routes import Route
from tiny_server import BOS_ID, EOS_ID

DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 7, "max_tokens": 10}
# Four tokens that are generated often.
OFTEN: dict[str, Any] = {"logit_bias": {str(token_id): 12.0 for token_id in range(40, 44)}}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 10}


@dataclasses.dataclass(frozen=True)
class Changed:
    """A field that changes the tokens: with it they are exactly NumPy's, without it others.

    Attributes:
        fields: fields of the request, except the field of the case.
    """

    value: Any
    fields: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(DRAWN))

    def check(self, route: Route, field: str) -> None:
        fields = {**self.fields, field: self.value}
        expected = route.expected.answer(route.prompt, fields)
        without = route.expected.answer(route.prompt, {"max_tokens": 16, **self.fields})
        assert (expected.ids, expected.finish_reason) != (without.ids, without.finish_reason)
        (answer,) = route.ask(**fields)
        assert (answer.ids, answer.finish_reason) == (expected.ids, expected.finish_reason)
        assert answer.text == expected.text


CHANGED: dict[str, Changed] = {
    "temperature": Changed(0.4, {"seed": 7, "max_tokens": 10}),
    "top_p": Changed(0.6),
    "top_k": Changed(3),
    "min_p": Changed(0.3),
    "seed": Changed(-8),
    "presence_penalty": Changed(2.0, DRAWN | OFTEN),
    "frequency_penalty": Changed(1.5, DRAWN | OFTEN),
    "repetition_penalty": Changed(3.0, DRAWN | OFTEN),
    "logit_bias": Changed({"40": 5.0, "41": 4.5, "42": -100.0}),
    "max_tokens": Changed(5, {"temperature": 1.0, "seed": 7}),
    "min_tokens": Changed(4, DRAWN | {"logit_bias": {str(EOS_ID): 30.0}}),
}


def check_stop_token_ids(route: Route) -> None:
    """The answer ends before the first of them, which is not shown."""
    whole = route.expected.answer(route.prompt, DRAWN)
    stop = whole.ids[4]
    expected = route.expected.answer(route.prompt, {**DRAWN, "stop_token_ids": [stop]})
    assert len(expected.ids) == whole.ids.index(stop)
    (answer,) = route.ask(**DRAWN, stop_token_ids=[EOS_ID - 2, stop])
    assert (answer.ids, answer.finish_reason) == (expected.ids, "stop")


def check_ignore_eos(route: Route) -> None:
    """The end token is a token like any other and is generated repeatedly."""
    fields = {**GREEDY, "logit_bias": {str(EOS_ID): 100.0}}
    (answer,) = route.ask(**fields)
    assert (answer.ids, answer.finish_reason) == ([], "stop")
    (answer,) = route.ask(**fields, ignore_eos=True)
    assert (answer.ids, answer.finish_reason) == ([EOS_ID] * 10, "length")


def check_n(route: Route) -> None:
    """Every choice is drawn with its own seed, the first one with the request's."""
    expected = [route.expected.answer(route.prompt, DRAWN, choice=choice) for choice in range(3)]
    assert len({tuple(answer.ids) for answer in expected}) == 3
    answers = route.ask(**DRAWN, n=3)
    assert [answer.ids for answer in answers] == [answer.ids for answer in expected]
    assert len(route.ask(**DRAWN)) == 1


def check_skip_special_tokens(route: Route) -> None:
    """They are generated in any case, but only shown on request."""
    fields = {**GREEDY, "logit_bias": {str(BOS_ID): 100.0}, "max_tokens": 3}
    (skipped,) = route.ask(**fields)
    (shown,) = route.ask(**fields, skip_special_tokens=False)
    assert skipped.ids == shown.ids == [BOS_ID] * 3
    assert (skipped.text, shown.text) == ("", "<s><s><s>")


Case = Callable[[Route], None]

SAMPLING_CASES: dict[str, Case] = {
    **{
        field: lambda route, field=field, case=case: case.check(route, field)  # type: ignore[misc]
        for field, case in CHANGED.items()
    },
    "stop_token_ids": check_stop_token_ids,
    "ignore_eos": check_ignore_eos,
    "n": check_n,
    "skip_special_tokens": check_skip_special_tokens,
}
