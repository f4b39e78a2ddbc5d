"""Each image marker of the template becomes as many tokens as the image has features."""

from __future__ import annotations

import pytest

from vinfer.errors import RequestError
from vinfer.image_processing import Placeholder
from vinfer.text.control_tokens import ControlTokens, RenderedPrompt
from vinfer.text.image_placeholders import expand_placeholders

LLAVA = Placeholder(marker="<image>", repeated="<image>")
GEMMA = Placeholder(marker="<start>", before="\n\n<start>", repeated="<soft>", after="<end>\n\n")
TOKENS = ControlTokens(["<image>", "<s>", "<start>", "<soft>", "<end>"])


def spelled(prompt: RenderedPrompt) -> list[str]:
    return [prompt.text[start:end] for start, end in prompt.control_spans]


def test_markers_are_replaced_in_order() -> None:
    rendered = TOKENS.unmark("<s>USER: <image>\na <image>\nb", None)
    expanded = expand_placeholders(rendered, LLAVA, [3, 1], TOKENS)
    assert expanded.text == "<s>USER: <image><image><image>\na <image>\nb"
    assert spelled(expanded) == ["<s>", *["<image>"] * 4]


def test_what_stands_around_the_tokens_is_special_too() -> None:
    rendered = TOKENS.unmark("<s>a<start>b", None)
    expanded = expand_placeholders(rendered, GEMMA, [2], TOKENS)
    assert expanded.text == "<s>a\n\n<start><soft><soft><end>\n\nb"
    assert spelled(expanded) == ["<s>", "<start>", "<soft>", "<soft>", "<end>"]


def test_a_marker_that_a_user_typed_stays_text() -> None:
    typed = "I typed <image>"
    mark = TOKENS.choose_mark(typed, avoid=frozenset())
    assert mark is not None
    rendered = TOKENS.unmark(f"<image>\n{TOKENS.mark(typed, mark)}", mark)
    expanded = expand_placeholders(rendered, LLAVA, [2], TOKENS)
    assert expanded.text == "<image><image>\nI typed <image>"
    assert expanded.control_spans == ((0, 7), (7, 14))
    assert expanded.has_user_specials


def test_text_stays_as_it_is() -> None:
    rendered = TOKENS.unmark("<s>a b", None)
    assert expand_placeholders(rendered, LLAVA, [], TOKENS) == rendered


@pytest.mark.parametrize(("text", "counts"), [("a", [1]), ("<image>", []), ("<image><image>", [1])])
def test_as_many_markers_as_images(text: str, counts: list[int]) -> None:
    with pytest.raises(RequestError, match=r"shows . of . images"):
        expand_placeholders(TOKENS.unmark(text, None), LLAVA, counts, TOKENS)
