"""Nothing that was sent is missing from a prompt: it is shown, said in another way, or refused by name."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import byte_level, write_tokenizer
from templates import TEMPLATES, assistant, template, user

from vinfer.errors import RequestError
from vinfer.text.answer_form import answer_form
from vinfer.text.chat_form import ChatForm, load_chat_forms
from vinfer.text.tokenizer import Tokenizer


def form_of(source: str, **options: Any) -> ChatForm:
    chat = template(source)
    return ChatForm(chat, dataclasses.replace(answer_form("auto", chat), **options))


def prompt(form: ChatForm, messages: list[dict[str, Any]], tools: Any = (), **variables: Any) -> str:
    options = {"add_generation_prompt": True, "continue_final_message": False, **variables}
    return form.render(messages, list(tools), **options).text


def says(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def call(name: str) -> dict[str, Any]:
    return {"id": "123456789", "type": "function", "function": {"name": name, "arguments": {"city": name}}}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {}}}


FOUR_ROLES = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant', 'tool'] %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
"""As many templates: another role is dropped without a word."""


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_developer_becomes_system_in_its_place(place: int) -> None:
    messages = [user("a"), assistant("b"), user("c")]
    messages.insert(place, says("developer", "Be brief."))
    as_system = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    form = form_of(FOUR_ROLES)
    assert prompt(form, messages) == form.template.render(as_system).text
    assert "system\nBe brief.<|im_end|>" in prompt(form, messages)


def test_developer_stays_where_the_template_shows_it() -> None:
    assert "<|im_start|>developer\nB" in prompt(
        form_of(TEMPLATES["smollm2"]), [says("developer", "B"), user("a")]
    )


def test_a_template_that_refuses_developers_gets_a_system_message() -> None:
    messages = [says("developer", "Be brief."), user("a")]
    assert prompt(form_of(TEMPLATES["mistral"]), messages) == "<s> [INST] Be brief.\n\na [/INST]"


ONLY_FIRST_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "messages", "param"),
    [
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            [says("system", "s")],
            0,
        ),
        (ONLY_FIRST_SYSTEM, [says("system", "s"), says("system", "t")], 1),
        (ONLY_FIRST_SYSTEM, [user("a"), assistant("b"), says("system", "t")], 2),
        ("{{ messages[-1].content }}", [user("a"), assistant("b")], 0),
        (TEMPLATES["loops"], [user(str(i)) for i in range(6)], 5),
    ],
)
def test_a_message_that_is_not_shown_is_refused(
    source: str, messages: list[dict[str, Any]], param: int
) -> None:
    with pytest.raises(RequestError, match="does not show") as caught:
        prompt(form_of(source), [*messages, user("end")])
    assert caught.value.param == f"messages[{param}].content"


def test_a_part_that_is_not_shown_is_refused() -> None:
    first_part = (
        "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}{% endfor %}"
    )
    parts = [{"type": "text", "text": text} for text in ("a", "b")]
    # One part looks as if the template takes parts; a second one shows that it does not.
    assert prompt(form_of(first_part), [user(parts)]) == "a\nb"


CALLS = (
    "{% for m in messages %}[{{ m.role }}]{% if m.tool_calls %}"
    '{% for c in m.tool_calls %}<tool_call>{"name": {{ c.function.name | tojson }}}</tool_call>{% endfor %}'
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if loop.previtem is defined and loop.previtem.role == m.role %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CALLS
)


def test_text_next_to_calls_is_said_apart() -> None:
    messages = [user("a"), assistant("Let me see.", tool_calls=[call("w")]), says("tool", "20")]
    assert prompt(form_of(CALLS), messages, [tool("w")]) == (
        '[user]a[assistant]Let me see.[assistant]<tool_call>{"name": "w"}</tool_call>[tool]20w'
    )


def test_text_next_to_calls_is_refused_if_it_cannot_be_said_apart() -> None:
    messages = [user("a"), assistant("Let me see.", tool_calls=[call("w")]), says("tool", "20")]
    with pytest.raises(RequestError, match="has tool calls too") as caught:
        prompt(form_of(ALTERNATING), messages, [tool("w")])
    assert caught.value.param == "messages[1].content"
    # Without a text there is nothing to miss.
    for content in ("", None, " \n"):
        quiet = [user("a"), assistant(content, tool_calls=[call("w")]), says("tool", "20")]
        assert "[tool]20" in prompt(form_of(ALTERNATING), quiet, [tool("w")])


def test_a_call_that_is_not_shown_is_refused() -> None:
    messages = [user("a"), assistant(None, tool_calls=[call("w"), call("v")])]
    form = form_of(TEMPLATES["llama3"], has_tools_as_text=False)
    with pytest.raises(RequestError, match="does not show") as caught:
        prompt(form, messages)
    assert caught.value.param == "messages[1].tool_calls[1]"


def test_tools_that_are_not_shown() -> None:
    # The template names `tools`, but shows none: then the prompt explains them in text.
    chat = template("{% if tools is defined %}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert not chat.takes_tools
    # It shows them in some conversations only.
    last_user = (
        CALLS.replace("{% for t in", "{% if messages[-1].role == 'user' %}{% for t in") + "{% endif %}"
    )
    with pytest.raises(RequestError, match="does not show tools") as caught:
        prompt(form_of(last_user), [user("a"), assistant("b")], [tool("w")])
    assert caught.value.param == "tools"


contents = st.sampled_from(["", " ", "a", "<|im_end|>", "<think>b</think>c"])
turns = st.lists(
    st.one_of(
        st.builds(says, st.sampled_from(["system", "developer", "user", "assistant"]), contents),
        st.builds(lambda text: says("user", [{"type": "text", "text": text}] * 2), contents),
        st.builds(
            lambda text, names: assistant(text, tool_calls=[call(name) for name in names]),
            contents,
            st.lists(st.sampled_from(["w", "v"]), min_size=1, max_size=2),
        ),
        st.builds(lambda text: {**says("tool", text), "tool_call_id": "123456789"}, contents),
    ),
    max_size=5,
)
FORMS = {name: form_of(source) for name, source in TEMPLATES.items()}


@pytest.mark.parametrize("name", FORMS)
@examples(60)
@given(before=turns, num_tools=st.integers(0, 2))
def test_everything_is_shown_or_refused(name: str, before: list[dict[str, Any]], num_tools: int) -> None:
    """Each message gets a word of its own, in addition to what it says."""
    messages = [_with_word(message, f"word{i}.") for i, message in enumerate([*before, user("end")])]
    try:
        rendered = prompt(FORMS[name], messages, [tool(f"tool{i}") for i in range(num_tools)])
    except RequestError:
        return
    marked = [i for i, message in enumerate(messages) if f"word{i}." in str(message["content"])]
    assert all(f"word{i}." in rendered for i in marked)
    assert all(f"tool{i}" in rendered for i in range(num_tools))


def _with_word(message: dict[str, Any], word: str) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, list):
        return {
            **message,
            "content": [*content[:-1], {"type": "text", "text": f"{content[-1]['text']}{word}"}],
        }
    return {**message, "content": content + word} if content.strip() else message


def test_a_long_conversation_is_checked_in_linear_time() -> None:
    messages = [user("a"), assistant("b")] * 1_000
    started = time.monotonic()
    assert prompt(form_of(TEMPLATES["smollm2"]), messages).count("user\na") == 1_000
    hidden = [*messages[:-1], says("system", "c"), user("d")]
    with pytest.raises(RequestError) as caught:
        prompt(form_of(ONLY_FIRST_SYSTEM), hidden)
    assert caught.value.param == "messages[1999].content"
    assert time.monotonic() - started < 20


def test_all_templates_are_worth_it() -> None:
    """This ensures that the test above compares something: a plain conversation is never refused."""
    for form in FORMS.values():
        assert "end" in prompt(form, [user("a"), assistant("b"), user("end")])


@pytest.mark.parametrize("has_tool_use", [True, False])
def test_a_template_of_its_own_for_tools(tmp_path: Path, has_tool_use: bool) -> None:
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, byte_level()))
    (tmp_path / "chat_template.jinja").write_text(FOUR_ROLES)
    if has_tool_use:
        (tmp_path / "tool_use_template.jinja").write_text(TEMPLATES["qwen3"])
    forms = load_chat_forms(tmp_path, tokenizer, tool_parser="auto", reasoning_parser="auto")
    assert forms.template is not None
    assert forms.template.source == FOUR_ROLES
    assert (forms.tool_use is not None) == has_tool_use
    # Earlier calls are explained in text where the template knows none, in the format of the other one.
    assert forms.answers.has_tools_as_text
    assert forms.answers.has_reasoning == has_tool_use
    if forms.tool_use is not None:
        assert forms.tool_use.template.source == TEMPLATES["qwen3"]
        assert not forms.tool_use.answers.has_tools_as_text
        assert forms.tool_use.answers.tool_format == forms.answers.tool_format


def test_markers_that_are_several_tokens_are_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in TinyLlama, which was trained so; or tokens are missing, which only the user can tell."""
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, byte_level()))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["smollm2"])
    load_chat_forms(tmp_path, tokenizer, tool_parser="auto", reasoning_parser="auto")
    assert not caplog.records
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["parts"] + "{{ '<|user|>' }}<\uff5cEnd\uff5c>")
    load_chat_forms(tmp_path, tokenizer, tool_parser="auto", reasoning_parser="auto")
    (record,) = caplog.records
    assert "writes <|assistant|>, <|user|>, <\uff5cEnd\uff5c>" in record.getMessage()
