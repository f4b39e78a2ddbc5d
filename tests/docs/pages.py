"""Read Markdown pages as the tests need them: blocks of code, links, headings, inline code and prose.

Reads the Markdown that our pages use, not all of Markdown, and knows nothing of vinfer.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w*)$")
_NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LIST_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.) +")


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code."""

    page: str
    line: int
    """Where its text begins."""
    language: str
    text: str
    not_run: str | None
    """The reason that the comment before it gives."""
    before: str
    """The paragraph before it."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A piece of a page: the target of a link, inline code, a heading or a paragraph."""

    page: str
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclasses.dataclass(frozen=True)
class Page:
    """One document. `name` is its path from the root of the repository."""

    name: str
    text: str

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(_blocks(self.name, self.text.splitlines()))

    @functools.cached_property
    def lines(self) -> tuple[tuple[int, str], ...]:
        """Every line outside of blocks, with its number."""
        inside = {
            number
            for block in self.blocks
            for number in range(block.line - 1, block.line + len(block.text.splitlines()) + 1)
        }
        return tuple(
            (number, line) for number, line in enumerate(self.text.splitlines(), 1) if number not in inside
        )

    def _spans(self, found: Iterable[tuple[int, str]]) -> tuple[Span, ...]:
        return tuple(Span(self.name, number, text) for number, text in found)

    @functools.cached_property
    def links(self) -> tuple[Span, ...]:
        return self._spans(
            (number, target)
            for number, line in self.lines
            for target in _LINK.findall(_CODE.sub(lambda code: "`" + "x" * len(code[1]) + "`", line))
        )

    @functools.cached_property
    def headings(self) -> tuple[Span, ...]:
        return self._spans(
            (number, match[1]) for number, line in self.lines if (match := _HEADING.match(line))
        )

    @functools.cached_property
    def inline_code(self) -> tuple[Span, ...]:
        return self._spans((number, code) for number, line in self.lines for code in _CODE.findall(line))

    @functools.cached_property
    def anchors(self) -> frozenset[str]:
        """The anchors that GitHub gives to the headings."""
        seen: dict[str, int] = {}
        anchors = []
        for heading in self.headings:
            slug = github_slug(heading.text)
            count = seen[slug] = seen.get(slug, -1) + 1
            anchors.append(f"{slug}-{count}" if count else slug)
        return frozenset(anchors)

    @functools.cached_property
    def paragraphs(self) -> tuple[Span, ...]:
        """Paragraphs and list items, each as one line; not headings, tables, comments and code."""
        paragraphs: list[list[tuple[int, str]]] = []
        previous = 0
        for number, line in self.lines:
            is_prose = bool(line.strip()) and not line.startswith(("|", "#", "<!--"))
            if is_prose:
                if not paragraphs or number != previous + 1 or _LIST_ITEM.match(line):
                    paragraphs.append([])
                paragraphs[-1].append((number, _LIST_ITEM.sub("", line).strip()))
                previous = number
        return self._spans((lines[0][0], " ".join(text for _, text in lines)) for lines in paragraphs)


def _blocks(page: str, lines: list[str]) -> Iterator[Block]:
    start, language = 0, ""
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if not start and fence:
            start, language = number, fence[1]
        elif start and line == "```":
            above = lines[: start - 1]
            comment = _NOT_RUN.match(above[-1]) if above else None
            yield Block(
                page,
                start + 1,
                language,
                "\n".join(lines[start : number - 1]) + "\n",
                comment[1] if comment else None,
                _last_paragraph(above[:-1] if comment else above),
            )
            start = 0
    if start:
        raise ValueError(f"{page}:{start}: the block has no end")


def _last_paragraph(lines: list[str]) -> str:
    return "\n".join(lines).rstrip().rpartition("\n\n")[2]


def github_slug(heading: str) -> str:
    """Return the anchor of a heading that is the only one of its name.

    Source: `TableOfContentsFilter` of github.com/jch/html-pipeline.
    """
    shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")


def without_code(text: str) -> str:
    """Return a paragraph with one word for each piece of inline code, and its text for each link."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", _CODE.sub("code", text))


def read_page(name: str) -> Page:
    return Page(name, (ROOT / name).read_text())


@functools.cache
def all_pages() -> tuple[Page, ...]:
    """Return every document of the repository, the reports of scripts included."""
    roots = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]
    files = [*roots, *sorted((ROOT / "docs").rglob("*.md"))]
    return tuple(read_page(path.relative_to(ROOT).as_posix()) for path in files)


@functools.cache
def written_pages() -> tuple[Page, ...]:
    """Return the documents that people write: all but docs/reports."""
    return tuple(page for page in all_pages() if not page.name.startswith("docs/reports/"))


@functools.cache
def page(name: str) -> Page:
    """Return one document of the repository."""
    [found] = [found for found in all_pages() if found.name == name]
    return found


def table(page: Page, first_column: str) -> list[dict[str, str]]:
    """Return the rows of the table whose first column has this title, by column."""
    rows: list[list[str]] = []
    for _, line in page.lines:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if line.startswith("|") and (rows or cells[0] == first_column):
            rows.append(cells)
        elif rows:
            break
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]] if rows else []


def blocks_of(pages: Iterable[Page], language: str) -> list[Block]:
    return [block for page in pages for block in page.blocks if block.language == language]
