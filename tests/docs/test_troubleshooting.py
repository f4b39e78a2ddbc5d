"""The messages that the documents quote are those that vinfer writes.

A message is put together from the texts of the source and from values. What it shows of values is written in
capitals, or is an example. So its words have to be found in the source, side by side where they are constant.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Sequence

from docs.pages import ROOT, Block, Page, blocks_of, page

# Capitals, digits, paths, keys and what stands in quotes.
_SHOWS_A_VALUE = re.compile(r"[A-Z]{2}|^[A-Z]$|[\d'_/\[\]=]|\w[.-]\w")
# Values that look like words, and words of the operating system.
EXAMPLES = frozenset({"Address", "already", "use", "such", "FileNotFoundError"})

# Shorter pieces of a text are found by chance, where they are not all of it between two values.
MIN_CHARS = 12


def _constants(tree: ast.AST) -> Iterator[str]:
    """Every text of a module; an f-string has a gap for each of its values."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


@functools.cache
def _source() -> str:
    """Return all texts of vinfer, apart from docstrings that nobody is shown."""
    texts: list[str] = []
    for path in sorted((ROOT / "vinfer").rglob("*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {
            ast.get_docstring(node, clean=False)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        }
        texts += (text for text in _constants(tree) if text not in docstrings)
    return "\0" + "\0".join(texts) + "\0"


def values_of(message: str, source: str) -> list[str]:
    """Return the words of a message that are in none of its pieces that the source has too."""
    values, start = "", 0
    while start < len(message):
        if length := _piece_at(start, message, source):
            values, start = values + " ", start + length
        else:
            values, start = values + message[start], start + 1
    return [word for word in re.findall(r"\S*[a-zA-Z]{2}\S*", values) if not _SHOWS_A_VALUE.search(word)]


def _piece_at(start: int, message: str, source: str) -> int:
    """Return the length of the longest piece that begins here, in whole words.

    It is either `MIN_CHARS` long or stands between two values in the source.
    """
    longest = start
    while longest < len(message) and message[start : longest + 1] in source:
        longest += 1
    for end in range(longest, start, -1):
        piece = message[start:end]
        is_constant = len(piece) >= MIN_CHARS or (f"\0{piece}\0" in source and re.search("[a-z]", piece))
        if is_constant and not _is_inside_a_word(message, start) and not _is_inside_a_word(message, end):
            return len(piece)
    return 0


def _is_inside_a_word(text: str, position: int) -> bool:
    return bool(re.fullmatch(r"[\w./-]{2}", text[max(position - 1, 0) : position + 1]))


def wrong_messages(blocks: Sequence[Block], source: str) -> list[str]:
    """Complain about the words of a quoted message that are neither in the source nor a value."""
    return [
        f"{block.page}:{number}: {', '.join(words)}: {line}"
        for block in blocks
        for number, line in enumerate(block.text.splitlines(), block.line)
        if (words := [word for word in values_of(line, source) if word.strip(":;,.?") not in EXAMPLES])
    ]


def test_quoted_messages_are_those_of_the_source() -> None:
    messages = blocks_of([page("docs/troubleshooting.md")], "text")
    assert len(messages) > 40
    assert wrong_messages(messages, _source()) == []


def test_changed_messages_are_found() -> None:
    source = "\0 has \0 tokens; max_model_len is \0: shorten it or raise \0the image is \0"
    page = Page(
        "docs/bad.md",
        "```text\nprompt has 9 tokens; max_model_len is 8: shorten it or raise models[0].max_model_len\n"
        "NAME has 9 tokens; max_model_len was 8: shorten it, or raise models[0].max_model_len\n"
        "the picture is REASON\n```\n",
    )
    assert [problem.split(": ")[:2] for problem in wrong_messages(page.blocks, source)] == [
        ["docs/bad.md:2", "prompt"],
        ["docs/bad.md:3", "was, or, raise"],
        ["docs/bad.md:4", "the, picture, is"],
    ]
