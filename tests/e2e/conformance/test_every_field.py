"""Every request field over HTTP to a real engine: applied fields have their exact effect, refused ones a 400.

The cases are tables by the model that types a body and the path of a field in it. They are compared with
those models and with the tables of `vinfer.server.fields.treatment`, so a field that is added to either fails
here until it has a case.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest
from answer_cases import ANSWER_CASES
from expected import Expected
from messages_cases import MESSAGES_CASES
from messages_cases import check_accepted as check_accepted_of_a_message
from prompt_cases import PROMPT_CASES
from responses_cases import RESPONSES_CASES, check_accepted
from routes import MESSAGES, Route
from sampling_cases import DRAWN, GREEDY, SAMPLING_CASES
from tiny_server import MODEL, Talk
from tool_cases import TOOL_CASES

from vinfer.server.fields.body_model import Body
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.treatment import Treatment
from vinfer.server.route_table import ROUTES

FORMS: dict[str, tuple[str, RequestForm[Any]]] = {
    form.fields.__name__: (path, form) for (_, path), operation in ROUTES.items() for form in operation.forms
}
GENERATING = dict.fromkeys(("ChatFields", "CompletionFields"), SAMPLING_CASES | ANSWER_CASES)
CASES = {
    name: {**GENERATING.get(name, {}), **PROMPT_CASES.get(name, {}), **TOOL_CASES.get(name, {})}
    for name in FORMS
} | {"ResponsesFields": RESPONSES_CASES, **MESSAGES_CASES}

# The smallest body of each form.
BODIES: dict[str, dict[str, Any]] = {
    "ChatFields": {"messages": MESSAGES, **GREEDY},
    "CompletionFields": {"prompt": [4], **GREEDY},
    "ResponsesFields": {"input": "a"},
    "MessagesFields": {"messages": MESSAGES, **GREEDY},
    "CountMessagesFields": {"messages": MESSAGES},
    "EmbeddingFields": {"input": "a"},
    "CountText": {"conversation": "a"},
    "CountMessages": {"conversation": MESSAGES},
    "TokenizeText": {"prompt": "a"},
    "TokenizeMessages": {"messages": MESSAGES},
    "DetokenizeFields": {"tokens": [4]},
}
# A body with messages has the other form, which refuses the prompt for the same reason.
NAMED_INSTEAD = {("TokenizeText", "messages"): "prompt"}


def paths(model: type[Body]) -> Iterator[str]:
    """Yield the path of every field of a body that has no fields of its own."""
    for name, field in model.model_fields.items():
        key = field.alias or name
        inner = [path for body in bodies_in(field.annotation) for path in paths(body)]
        yield from (f"{key}.{path}" for path in inner) if inner else (key,)


def bodies_in(annotation: Any) -> Iterator[type[Body]]:
    if isinstance(annotation, type) and issubclass(annotation, Body):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from bodies_in(argument)


def fields_of(name: str, treatment: Treatment) -> list[str]:
    return sorted(field for field, rule in FORMS[name][1].rules.items() if rule.treatment is treatment)


@pytest.mark.parametrize("name", FORMS)
def test_every_applied_field_has_a_case_and_every_case_a_field(name: str) -> None:
    form = FORMS[name][1]
    assert set(CASES[name]) == set(paths(form.fields))
    assert {path.partition(".")[0] for path in CASES[name]} == set(fields_of(name, Treatment.APPLIED))


@pytest.mark.parametrize(("name", "path"), [(name, path) for name in CASES for path in CASES[name]])
def test_an_applied_field_has_its_effect(talk: Talk, expected: Expected, name: str, path: str) -> None:
    CASES[name][path](Route(name, talk, expected))


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name in FORMS for field in fields_of(name, Treatment.REFUSED)]
)
def test_a_refused_field_is_a_400_that_names_it(talk: Talk, name: str, field: str) -> None:
    path, form = FORMS[name]
    body = {"model": MODEL, **BODIES[name]}
    refused = talk.refusal(path, {**body, field: {"some": "thing"}})
    named = NAMED_INSTEAD.get((name, field), field)
    assert refused["param"] == named
    assert refused["message"] == f"{named}: {form.rules[field].reason}"


@pytest.mark.parametrize("name", GENERATING)
def test_fields_accepted_without_effect_have_none(talk: Talk, expected: Expected, name: str) -> None:
    route = Route(name, talk, expected)
    accepted = {key: {"any": [1, "thing"]} for key in fields_of(name, Treatment.ACCEPTED)}
    assert accepted
    assert route.ask(**DRAWN, **accepted) == [expected.answer(route.prompt, DRAWN)]


def test_fields_of_a_response_accepted_without_effect_have_none(talk: Talk, expected: Expected) -> None:
    accepted = fields_of("ResponsesFields", Treatment.ACCEPTED)
    assert accepted
    check_accepted(Route("ResponsesFields", talk, expected), accepted)


@pytest.mark.parametrize("name", MESSAGES_CASES)
def test_fields_of_a_message_accepted_without_effect_have_none(
    talk: Talk, expected: Expected, name: str
) -> None:
    accepted = fields_of(name, Treatment.ACCEPTED)
    assert accepted
    check_accepted_of_a_message(Route(name, talk, expected), accepted)
