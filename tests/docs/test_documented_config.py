"""Configuration in the documents: every block loads, every key exists, the table is the code's."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from docs.pages import ROOT, Page, blocks_of, page, table, written_pages

from vinfer.config import ServerConfig, load_config, reference_table
from vinfer.errors import ConfigError

_KEY = re.compile(r"(?<![\w/.])(?:models(?:\[\d*\]|\.\d+)|server)\.(?!py\b)[a-z_]\w*(?:\.\w+|\[\d*\])*")
# What is added to a fragment that names no model.
_A_MODEL = "models: [{name: m, source: ./m}]\n"


def _known_keys() -> frozenset[str]:
    """Return the path of every key and of every block."""
    paths = re.findall(r"^\| `(\S+)` \|", reference_table(), re.MULTILINE)
    return frozenset(
        prefix for path in paths for prefix in itertools.accumulate(path.split("."), lambda a, b: f"{a}.{b}")
    )


def unknown_keys(pages: Sequence[Page]) -> list[str]:
    """Complain about `models[].x` and `server.x` in inline code where there is no such key."""
    known = {key.replace("[]", "") for key in _known_keys()}
    complaints = []
    for found in pages:
        for code in found.inline_code:
            # The quoted message about an unknown key has one.
            for key in _KEY.findall(re.sub(r"^\S+ is not a known key", "", code.text)):
                path = re.sub(r"\[\d*\]|\.\d+", "", key)
                if path not in known and not path.startswith("models.chat_template_kwargs."):
                    complaints.append(f"{code.place}: {key}")
    return complaints


def config_problems(pages: Sequence[Page], scratch: Path) -> list[str]:
    """Complain about YAML blocks that vinfer's own loader does not take."""
    complaints = []
    for block in blocks_of(pages, "yaml"):
        try:
            if block.not_run:
                yaml.safe_load(block.text)
                continue
            file = scratch / "block.yaml"
            file.write_text(
                block.text + ("" if re.search("^models:", block.text, re.MULTILINE) else _A_MODEL)
            )
            load_config(file, environ={})
        except (ConfigError, yaml.YAMLError) as error:
            complaints.append(f"{block.place}: {error}")
    return complaints


def test_config_blocks_load(tmp_path: Path) -> None:
    assert len(blocks_of(written_pages(), "yaml")) > 10
    assert config_problems(written_pages(), tmp_path) == []


def test_keys_in_the_text_exist() -> None:
    assert unknown_keys(written_pages()) == []


def test_the_page_has_the_config_reference() -> None:
    """Regenerate with `vinfer config reference`."""
    begin, end = "a test keeps it equal -->\n", "<!-- end of config reference -->"
    assert page("docs/config.md").text.split(begin)[1].split(end)[0].strip() == reference_table().strip()


def test_server_defaults() -> None:
    defaults = ServerConfig()
    [first, *_] = blocks_of([page("docs/config.md")], "yaml")
    shown = yaml.safe_load(first.text)["server"]
    assert shown == {key: getattr(defaults, key) for key in shown}
    assert f"http://{defaults.host}:{defaults.port}" in page("README.md").text


@pytest.mark.parametrize("name", ["docs/operations.md", "docs/images.md"])
def test_defaults_in_tables(name: str) -> None:
    """The tables with columns `key` and `default` that name keys by their full path."""
    defaults = dict(re.findall(r"^\| `(\S+)` \| .*? \| `([^`]*)` \|", reference_table(), re.MULTILINE))
    rows = [row for row in table(page(name), "key") if row["key"].strip("`") in defaults]
    assert len(rows) > 3
    for row in rows:
        shown, default = row["default"].strip("`"), defaults[row["key"].strip("`")]
        assert shown == default or float(shown) == float(default), row


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_example_configs_load_and_open_with_their_command(path: Path) -> None:
    load_config(path, environ={})
    head = path.read_text().split("\nserver:")[0]
    assert f"vinfer serve configs/{path.name}" in head
    assert "$schema=vinfer.schema.json" in head
    assert "Hardware" in head


def test_wrong_config_is_found(tmp_path: Path) -> None:
    bad = Page(
        "docs/bad.md",
        "```yaml\nserver: {prot: 1}\n```\n\n```yaml\nmodels:\n  - name: a\n```\n\n"
        "<!-- not run: needs kubectl -->\n```yaml\na: [\n```\n\n```yaml\nserver: {port: 1}\n```\n",
    )
    problems = config_problems([bad], tmp_path)
    assert [problem.split(": ")[0] for problem in problems] == [
        "docs/bad.md:2",
        "docs/bad.md:6",
        "docs/bad.md:12",
    ]
    assert "server.prot is not a known key" in problems[0]


def test_wrong_keys_are_found() -> None:
    bad = Page(
        "docs/bad.md",
        "`models[].num_slot`, `models[0].mesh.dp=4`, `server.ports`, `server.images.*`\n"
        "`models[].precompile[].vision`, `models[].precompile[].visions`, `models.0.meshes.dp`\n"
        "`server.py`, `a.server.x`, `app/server.x`\n",
    )
    assert unknown_keys([bad]) == [
        "docs/bad.md:1: models[].num_slot",
        "docs/bad.md:1: server.ports",
        "docs/bad.md:2: models[].precompile[].visions",
        "docs/bad.md:2: models.0.meshes.dp",
    ]
