"""Sentences and paragraphs of the documents are short, and one thing has one name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from docs.pages import Page, without_code, written_pages

MAX_SENTENCE_WORDS = 25
MAX_PARAGRAPH_WORDS = 80
# See "One word per thing" in CONTRIBUTING.md.
AVOIDED = re.compile(r"\b(pictures?|in a crowd|bound answers?|unserved)\b", re.IGNORECASE)

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*]*\s+(?=[\"'(*`]*[A-Z0-9])")


def _words(text: str) -> list[str]:
    return [word for word in text.split() if re.search(r"\w", word)]


def _sentences(text: str) -> list[str]:
    """Split a paragraph whose inline code has been replaced; its first word may be a piece of code."""
    return _SENTENCE_END.split(re.sub(r"(?<=[.!?]\s)code\b", "Code", text))


def long_ones(pages: Sequence[Page]) -> list[str]:
    """Complain about long sentences and paragraphs. Inline code counts as one word, a link as its text."""
    complaints = []
    for page in pages:
        for paragraph in page.paragraphs:
            text = without_code(paragraph.text)
            if (count := len(_words(text))) > MAX_PARAGRAPH_WORDS:
                complaints.append(f"{paragraph.place}: a paragraph of {count} words: {text[:60]}")
            complaints += [
                f"{paragraph.place}: a sentence of {count} words: {sentence[:60]}"
                for sentence in _sentences(text)
                if (count := len(_words(sentence))) > MAX_SENTENCE_WORDS
            ]
    return complaints


def avoided_words(pages: Sequence[Page]) -> list[str]:
    """Complain about words that have a better one. Inline code and blocks may quote them."""
    return [
        f"{page.name}:{number}: {word}"
        for page in pages
        for number, line in page.lines
        for word in AVOIDED.findall(without_code(line))
    ]


def test_sentences_and_paragraphs_are_short() -> None:
    assert sum(len(page.paragraphs) for page in written_pages()) > 500
    assert long_ones(written_pages()) == []


def test_one_word_per_thing() -> None:
    assert avoided_words(written_pages()) == []


def test_long_ones_are_found() -> None:
    sentence = "One " + "more " * 24
    page = Page(
        "docs/bad.md",
        f"{sentence}.\n\n{sentence}word. Short.\n\n- {sentence}`a b c`.\n\n| {sentence} {sentence} |\n\n"
        f"{(sentence.strip() + '. ') * 3}`x` is short. Five more words are here.\n\n"
        f"```text\n{sentence * 5}\n```\n",
    )
    assert [complaint[:41].rstrip() for complaint in long_ones([page])] == [
        "docs/bad.md:3: a sentence of 26 words: On",
        "docs/bad.md:5: a sentence of 26 words: On",
        "docs/bad.md:9: a paragraph of 83 words: O",
    ]


def test_avoided_words_are_found() -> None:
    page = Page(
        "docs/bad.md", "# A Picture\n\n| pictures | bound |\n`picture` unserved\n\n```text\npicture\n```\n"
    )
    assert avoided_words([page]) == [
        "docs/bad.md:1: Picture",
        "docs/bad.md:3: pictures",
        "docs/bad.md:4: unserved",
    ]
