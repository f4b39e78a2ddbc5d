"""Every command of vinfer and of scripts/ in the documents exists, with its flags and the files it names."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer
from docs.pages import ROOT, Page, Span, all_pages, blocks_of, page, table, written_pages
from docs.shell import commands

import vinfer.cli

_LONG_FLAG = re.compile(r"--[a-z][a-z-]*")
_IN_THE_REPOSITORY = re.compile(r"^(configs|docs|requirements|scripts|tests)/")


# Some versions of typer bring a click of their own: its types are not named here.
@functools.cache
def _vinfer() -> Any:
    return typer.main.get_command(vinfer.cli.app)


def _options(command: Any) -> set[str]:
    return {"--help", *(option for parameter in command.params for option in parameter.opts)}


def _children(command: Any) -> Mapping[str, Any]:
    """Return the commands of a group by name; none of a command."""
    return getattr(command, "commands", {})


def _all_commands(command: Any) -> Iterator[Any]:
    yield command
    for child in _children(command).values():
        yield from _all_commands(child)


@functools.cache
def _script_options(name: str) -> frozenset[str]:
    """Return the flags of the parser that a script runs, or that a shell script without one names."""
    text = (ROOT / name).read_text()
    module = re.search(r"^(?:from |exec .*python -m )(\w+)\.(\w+)", text, re.MULTILINE)
    if module:
        parser = (ROOT / "scripts" / module[1] / f"{module[2]}.py").read_text()
        return frozenset({"--help", *re.findall(r'"(--[a-z][a-z-]*)"', parser)})
    # What it is given, it gives to vinfer.
    serves = _options(_vinfer().commands["serve"]) if "vinfer serve" in text else set()
    return frozenset({*_LONG_FLAG.findall(text), *serves})


def _flags(words: Sequence[str]) -> list[str]:
    return [word.split("=")[0] for word in words if _LONG_FLAG.match(word)]


def _problem(words: Sequence[str]) -> str | None:
    """Say what is wrong with a command of vinfer or of scripts/."""
    if words[0] == "vinfer":
        command = _vinfer()
        rest = list(words[1:])
        while (children := _children(command)) and rest and not rest[0].startswith("-"):
            name = rest.pop(0)
            if name not in children:
                return f"no such command: {name}"
            command = children[name]
        known: set[str] | frozenset[str] = _options(command)
    else:
        if not (ROOT / words[0]).is_file():
            return "no such script"
        known = _script_options(words[0])
    if unknown := [flag for flag in _flags(words[1:]) if flag not in known]:
        return f"no such flag: {', '.join(unknown)}"
    missing = [word for word in words[1:] if _IN_THE_REPOSITORY.match(word) and not (ROOT / word).exists()]
    return f"no such file: {', '.join(missing)}" if missing else None


def _is_ours(words: Sequence[str]) -> bool:
    return words[0] == "vinfer" or bool(re.match(r"^scripts/[\w-]+$", words[0]))


def _commands(pages: Sequence[Page]) -> Iterator[tuple[str, list[str]]]:
    for block in blocks_of(pages, "sh"):
        for words in commands(block.text):
            yield block.place, words
    for found in pages:
        for code in found.inline_code:
            if re.match(r"^(vinfer [a-z-]|scripts/[\w-]+( |$))", code.text):
                yield code.place, _quoted(code)


def _quoted(code: Span) -> list[str]:
    [words] = commands(code.text)
    return words


def command_problems(pages: Sequence[Page]) -> list[str]:
    """Complain about commands that do not exist, and about their flags and files."""
    return [
        f"{place}: {' '.join(words)}: {problem}"
        for place, words in _commands(pages)
        if _is_ours(words) and (problem := _problem(words))
    ]


def unknown_flags(pages: Sequence[Page]) -> list[str]:
    """Complain about a flag that stands alone in inline code and belongs to no command of ours."""
    known = {flag for command in _all_commands(_vinfer()) for flag in _options(command)}
    for script in (ROOT / "scripts").iterdir():
        if script.is_file():
            known |= _script_options(f"scripts/{script.name}")
    return [
        f"{code.place}: {flag}"
        for found in pages
        for code in found.inline_code
        for flag in _flags(code.text.split()[:1])
        if flag not in known
    ]


def test_documented_commands_exist() -> None:
    found = [words for _, words in _commands(written_pages()) if _is_ours(words)]
    assert len(found) > 50
    assert command_problems(all_pages()) == []


def test_every_command_is_documented() -> None:
    documented = {" ".join(words[:3]) for _, words in _commands(written_pages()) if words[0] == "vinfer"}
    for name, command in _children(_vinfer()).items():
        for full_name in [f"vinfer {name} {child}" for child in _children(command)] or [f"vinfer {name}"]:
            assert any(found.startswith(full_name) for found in documented), full_name


def test_the_help_of_every_command_begins_with_an_example_that_is_right() -> None:
    leaves = [command for command in _all_commands(_vinfer()) if not _children(command)]
    assert len(leaves) > 15
    for command in leaves:
        first = (command.help or "").splitlines()[0]
        assert first.startswith("Example: vinfer "), command.name
        [words] = commands(first.removeprefix("Example: "))
        assert command.name in words[1:3]
        assert _problem(words) is None


def test_flags_in_the_text_exist() -> None:
    assert unknown_flags(written_pages()) == []


def test_the_flags_of_bench_are_all_documented() -> None:
    rows = table(page("docs/performance.md"), "flag")
    documented = {flag for row in rows for flag in _flags(row["flag"].strip("`").split()[:1])}
    parser = (ROOT / "scripts/benchmark/main.py").read_text()
    assert documented == set(re.findall(r'add\(\s*"(--[a-z-]+)"', parser))


def test_packages_and_files_in_the_text_exist() -> None:
    paths = [
        code
        for found in written_pages()
        for code in found.inline_code
        if re.match(r"^(vinfer|tests|scripts|configs|docs|requirements)/[\w./-]*$", code.text)
    ]
    assert len(paths) > 100
    assert [f"{code.place}: {code.text}" for code in paths if not (ROOT / code.text).exists()] == []


def test_wrong_commands_are_found() -> None:
    bad = Page(
        "docs/bad.md",
        "Run `vinfer server x`, `vinfer serve --ports 1`, `vinfer config` or `scripts/none`.\n\n"
        "```sh\nX=1 vinfer config shown x\nscripts/bench configs/none.yaml --stream 1\ndocker run --rm x\n"
        "scripts/quickstart --port 1\nscripts/fuzz --case 1\nscripts/schemas --count 1\n```\n",
    )
    assert command_problems([bad]) == [
        "docs/bad.md:4: vinfer config shown x: no such command: shown",
        "docs/bad.md:4: scripts/bench configs/none.yaml --stream 1: no such flag: --stream",
        "docs/bad.md:4: scripts/fuzz --case 1: no such flag: --case",
        "docs/bad.md:1: vinfer server x: no such command: server",
        "docs/bad.md:1: vinfer serve --ports 1: no such flag: --ports",
        "docs/bad.md:1: scripts/none: no such script",
    ]
    file = Page("docs/bad.md", "`vinfer serve configs/none.yaml`\n")
    assert command_problems([file]) == [
        "docs/bad.md:1: vinfer serve configs/none.yaml: no such file: configs/none.yaml"
    ]


def test_wrong_flags_are_found() -> None:
    bad = Page("docs/bad.md", "`--insecure`, `--secure` and `--url URL`\n")
    assert unknown_flags([bad]) == ["docs/bad.md:1: --secure"]
