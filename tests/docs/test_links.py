"""Links lead somewhere, and every page is reached from docs/index.md."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from docs.pages import ROOT, Page, all_pages


def _target(page: Page, link: str) -> tuple[str, str]:
    """Return the path from the root of the repository, and the anchor."""
    path, _, anchor = link.partition("#")
    return posixpath.normpath(
        posixpath.join(posixpath.dirname(page.name), path)
    ) if path else page.name, anchor


def broken_links(pages: Sequence[Page]) -> list[str]:
    """Complain about relative links to files and headings that do not exist."""
    by_name = {page.name: page for page in pages}
    complaints = []
    for page in pages:
        for link in page.links:
            if "://" in link.text:
                continue
            path, anchor = _target(page, link.text)
            if path not in by_name and not (ROOT / path).exists():
                complaints.append(f"{link.place}: {link.text}: no such file")
            elif anchor and (path not in by_name or anchor not in by_name[path].anchors):
                complaints.append(f"{link.place}: {link.text}: no such heading")
    return complaints


def unreachable(pages: Sequence[Page], start: str) -> list[str]:
    """Return the pages that no chain of links leads to."""
    by_name = {page.name: page for page in pages}
    found, open_pages = {start}, [start]
    while open_pages:
        page = by_name[open_pages.pop()]
        targets = {_target(page, link.text)[0] for link in page.links if "://" not in link.text}
        open_pages += sorted((targets & by_name.keys()) - found)
        found |= targets
    return sorted(by_name.keys() - found)


def test_links_lead_somewhere() -> None:
    assert len([link for page in all_pages() for link in page.links]) > 100
    assert broken_links(all_pages()) == []


def test_every_page_is_reached_from_the_index() -> None:
    pages = [page for page in all_pages() if page.name != "README.md"]
    assert unreachable(pages, "docs/index.md") == []


BAD = [
    Page(
        "docs/index.md",
        "# Start\n\n[a](#start) [b](#end) [c](missing.md) [d](other.md#part) [e](other.md#none)\n"
        "[f](../README.md) [g](https://example.com/x#y)\n",
    ),
    Page("docs/other.md", "## Part\n\n[index](index.md)\n"),
    Page("docs/alone.md", "[index](index.md)\n"),
]


def test_broken_links_are_found() -> None:
    assert broken_links(BAD) == [
        "docs/index.md:3: #end: no such heading",
        "docs/index.md:3: missing.md: no such file",
        "docs/index.md:3: other.md#none: no such heading",
    ]


def test_pages_that_nothing_links_to_are_found() -> None:
    assert unreachable(BAD, "docs/index.md") == ["docs/alone.md"]
