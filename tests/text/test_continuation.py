"""A continued message: the prompt ends with its own text, in every template and whatever the text is."""

from __future__ import annotations

from typing import Any

import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizers import SPECIALS
from templates import TEMPLATES, assistant, template, user

from vinfer.text.tokenizer import Tokenizer

ALPHABET = [
    *SPECIALS,
    *(
        "<",
        "e",
        "end",
        "im",
        ">",
        "|",
        "<|im_",
        "end|>",
        "\n",
        " ",
        "\t",
        "\r\n",
        "é",
        "日",
        "\ua000",
        "\ua001",
    ),
    *(
        "<think>",
        "</think>",
        "assistant",
        "user\n",
        "<|im_start|>assistant\n",
        "[/INST]",
        "{{ x }}",
        "{% if %}",
    ),
    *("<end_of_turn>", "<|eot_id|>", "</s>", "<tool_response>", "</tool_response>", "'", '"', "\\"),
]
texts = st.lists(st.sampled_from(ALPHABET), max_size=6).map("".join) | st.text(max_size=12)
HISTORY = [user("Hi"), assistant("Hello"), user("More")]
COMPILED = {name: template(source) for name, source in TEMPLATES.items()}


@pytest.mark.parametrize("name", COMPILED)
@examples(150)
@given(text=texts)
def test_the_prompt_ends_with_the_text(name: str, text: str) -> None:
    prompt = COMPILED[name].render_unfinished([*HISTORY, assistant(text)])
    assert prompt.text.endswith(text)
    # Nothing in the text is the template's own token.
    start = len(prompt.text) - len(text)
    assert all(end <= start for _, end in prompt.control_spans)
    found = COMPILED[name]._control_tokens.spans(prompt.text)
    assert prompt.has_user_specials == (found != prompt.control_spans)


@pytest.mark.parametrize("name", COMPILED)
@examples(60)
@given(text=texts)
def test_what_comes_before_is_the_beginning_of_an_answer(name: str, text: str) -> None:
    """The text is the only thing that differs from the prompt of another text."""
    chat = COMPILED[name]
    prompt = chat.render_unfinished([*HISTORY, assistant(text)])
    head = prompt.text[: len(prompt.text) - len(text)]
    usual = chat.render_unfinished([*HISTORY, assistant("q")]).text.removesuffix("q")
    anew = chat.render(HISTORY, add_generation_prompt=True).text
    assert head == usual or ("</think>" in text and head in (anew, anew.rstrip().removesuffix("<think>")))


@pytest.mark.parametrize("text", ["<", "e", "end", "im", ">", "\n", "", "  ", "<|im_end|>"])
def test_the_reported_texts(text: str) -> None:
    prompt = COMPILED["smollm2"].render_unfinished([user("a"), assistant(text)])
    assert prompt.text.endswith(f"user\na<|im_end|>\n<|im_start|>assistant\n{text}")
    assert len(prompt.control_spans) == 5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=texts)
def test_tokens_of_the_prompt(tokenizers_of_all_kinds: dict[str, Tokenizer], text: str) -> None:
    tokenizer = tokenizers_of_all_kinds["byte_level"]
    token_ids = tokenizer.encode_prompt(COMPILED["smollm2"].render_unfinished([user("a"), assistant(text)]))
    assert tokenizer.decode(token_ids, skip_special_tokens=False).endswith(text)
    special = [token_id for token_id in token_ids if token_id in tokenizer.special_ids]
    assert len(special) == 5


@pytest.mark.parametrize(
    ("name", "parts", "ends_with"),
    [
        ("smollm2", ["a", "b "], "assistant\na\nb "),
        ("parts", ["a", "b "], "<|assistant|>ab "),
        ("gemma", ["a", "b "], "<start_of_turn>model\nab "),
        ("parts", [], "<|assistant|>"),
    ],
)
def test_parts_of_the_last_message(name: str, parts: list[str], ends_with: str) -> None:
    content = [{"type": "text", "text": part} for part in parts]
    assert COMPILED[name].render_unfinished([user("q"), assistant(content)]).text.endswith(ends_with)


@pytest.mark.parametrize("content", [None, "", []])
def test_nothing_to_continue_is_an_empty_text(content: Any) -> None:
    prompt = COMPILED["smollm2"].render_unfinished([user("a"), assistant(content)])
    assert prompt.text.endswith("<|im_start|>assistant\n")


THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("text", "ends_with"),
    [
        ("Hi", "assistant\nHi"),
        ("<think>x</think>Hi", "assistant\n<think>x</think>Hi"),
        ("x</think>Hi", "assistant\n<think>\nx</think>Hi"),
    ],
)
def test_a_template_that_drops_earlier_reasoning(text: str, ends_with: str) -> None:
    assert template(THINKS).render_unfinished([user("a"), assistant(text)]).text.endswith(ends_with)
