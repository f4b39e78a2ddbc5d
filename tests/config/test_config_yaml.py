"""Untrusted YAML text: what it may contain, and what is refused before anything recurses or grows."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vinfer.config.yaml_tree import MAX_FILE_BYTES, Value, parse_yaml, read_text
from vinfer.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("'true'", "true"),
        ("~", None),
        ("", None),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("-3", -3),
        ("1e-3", 0.001),
        ("5.", 5.0),
        ("-.5", -0.5),
        ("-.inf", -math.inf),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "::1"),
        ("=", "="),
        ("!!str 12", "12"),
        ("[1, [a, {b: 2}]]", [1, ["a", {"b": 2}]]),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Value) -> None:
    parsed = parse_yaml(text, "x").value
    assert parsed == value
    assert type(parsed) is type(value)


def test_aliases_and_merges_give_independent_values() -> None:
    tree = parse_yaml("a: &a {x: 1, y: {z: 2}}\nb: *a\nc: {<<: *a, x: 3}\n", "x")
    original = {"x": 1, "y": {"z": 2}}
    assert tree.value == {"a": original, "b": original, "c": {"x": 3, "y": {"z": 2}}}
    assert isinstance(tree.value, dict)
    assert tree.value["a"] is not tree.value["b"]
    assert tree.marks["c", "x"] == (3, 13)
    assert tree.problems == []


def test_a_value_knows_its_line_and_column() -> None:
    marks = parse_yaml("a: 1\nb:\n  - c: 2\n  - {d: 3}\n", "x").marks
    assert marks["a",] == (1, 1)
    assert marks["b", 0, "c"] == (3, 5)
    assert marks["b", 1] == (4, 5)
    assert marks["b", 1, "d"] == (4, 6)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("a: 1\nb: 2\na: 3\n", [((3, 1), "'a' is given twice; first on line 1: remove one of them")]),
        (
            "a:\n  1: x\n  ? [k]\n  : y\n",
            [((line, column), "a key must be text: put it in quotes") for line, column in [(2, 3), (3, 5)]],
        ),
    ],
)
def test_bad_keys_are_noted_and_the_rest_is_read(text: str, problems: list[object]) -> None:
    assert parse_yaml(text, "x").problems == problems


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 16))
DEEP_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 31))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object:os.system x", "x:1:4: the tag !!python/object:os.system is not allowed"),
        ("a: !!python/object/apply:os.system [id]", "x:1:4: the tag !!python/object/apply:os.system"),
        ("a: !!binary aGk=", "x:1:4: the tag !!binary is not allowed"),
        ("a: !local {b: 1}", "x:1:4: the tag !local is not allowed"),
        ("a: !!int abc", "x:1:4: the tag !!int is not allowed"),
        ("a: !!float abc", "x:1:4: 'abc' is not a value of its type"),
        ("a: " + "9" * 5000, "x:1:4: '999"),
        ("a:\n\t- b", "x:2:1: not valid YAML: found character '\\t'"),
        ("a: [1", "x:1:6: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "x:2:1: not valid YAML: but found another document"),
        ("a: *nope", "x:1:4: not valid YAML: found undefined alias"),
        ("a: 1\nb: \x00", "x:2: not valid YAML: special characters are not allowed"),
        ('a: "\\UFFFFFFFF"', "x: not valid YAML: a number in it is out of range"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1", "x: not valid YAML: a number in it is out of range"),
        ("&a [*a]", "an alias is inside its own anchor"),
        ("<<: 3", "x:1:5: << takes a mapping"),
        (LAUGHS, "aliases expand to more than 20000 values"),
        (DEEP_ALIASES, "nested deeper than 24 levels"),
        ("[" + "*a, " * 40 + "]", "more than 32 aliases"),
        ("[" * 100_000, "x:1:25: nested deeper than 24 levels"),
        ("- a\n" * 30_000, "more than 20000 values"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "x")
    assert message in caught.value.message
    assert len(caught.value.message) < 200


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab: -[]{}&*!<#|>'\"\n\t\\,?01.~%@`é\x00"), max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_yaml(text, "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: \xff\n", ":2: not UTF-8 text"),
        (b"#" * (MAX_FILE_BYTES + 1), "larger than 1000000 bytes"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_text(path)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_text(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        read_text(tmp_path)


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("a: 1".encode("utf-8-sig"))
    assert read_text(path) == "a: 1"
