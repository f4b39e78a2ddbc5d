"""The reader of pages, on a page of every form that it has to tell apart."""

from __future__ import annotations

import textwrap

import pytest
from docs.pages import Page, github_slug, table, without_code

PAGE = Page(
    "docs/example.md",
    textwrap.dedent("""\
        # An example

        A paragraph of `inline code`
        and a [link](other.md#part).

        <!-- not run: no server -->
        ```sh
        curl http://127.0.0.1:8000  # [no](link.md), `no code`
        ```

        This is refused:

        ```json
        {}
        ```

        ## An example

        - one item
        - another
          of two lines

        | name | meaning |
        |---|---|
        | `a` | x \\| y |
        """),
)


def test_blocks() -> None:
    shell, document = PAGE.blocks
    assert (shell.place, shell.language, shell.not_run) == ("docs/example.md:8", "sh", "no server")
    assert shell.text.startswith("curl")
    assert (document.place, document.text, document.not_run) == ("docs/example.md:14", "{}\n", None)
    assert document.before == "This is refused:"


def test_links_and_inline_code_are_not_those_of_blocks() -> None:
    assert [(link.line, link.text) for link in PAGE.links] == [(4, "other.md#part")]
    assert [code.text for code in PAGE.inline_code] == ["inline code", "a"]


def test_paragraphs_and_list_items() -> None:
    assert [(paragraph.line, paragraph.text) for paragraph in PAGE.paragraphs] == [
        (3, "A paragraph of `inline code` and a [link](other.md#part)."),
        (11, "This is refused:"),
        (19, "one item"),
        (20, "another of two lines"),
    ]
    assert without_code(PAGE.paragraphs[0].text) == "A paragraph of code and a link."


def test_tables() -> None:
    assert table(PAGE, "name") == [{"name": "`a`", "meaning": "x \\| y"}]
    assert table(PAGE, "meaning") == []


@pytest.mark.parametrize(
    ("heading", "slug"),
    [
        ("400: the prompt is too long", "400-the-prompt-is-too-long"),
        ("`vinfer verify` & friends", "vinfer-verify--friends"),
        ("[A link](x.md) in it", "a-link-in-it"),
        ("max_model_len", "max_model_len"),
    ],
)
def test_slugs(heading: str, slug: str) -> None:
    assert github_slug(heading) == slug


def test_an_equal_heading_gets_a_number() -> None:
    assert PAGE.anchors == {"an-example", "an-example-1"}


def test_a_block_without_an_end_is_no_page() -> None:
    with pytest.raises(ValueError, match=r"docs/x\.md:1: the block has no end"):
        _ = Page("docs/x.md", "```sh\nls\n").blocks
