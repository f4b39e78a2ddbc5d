"""Parses untrusted YAML text into plain values, each with its line and column.

YAML 1.2 core scalars only: `no` is text, `010` is ten, `1e-3` is a number. No tag can construct an object,
because values are built here from the node tree and no constructor ever runs. Size, depth, alias count and
expanded size are limited before recursion. Runs on the main thread at startup; does not know what the keys
mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from vinfer.errors import ConfigError

Scalar = str | int | float | bool | None
Value = Scalar | list["Value"] | dict[str, "Value"]
Loc = tuple[str | int, ...]
Mark = tuple[int, int]
"""Line and column, both counted from 1."""

MAX_FILE_BYTES = 1_000_000
MAX_ALIASES = 32
MAX_DEPTH = 24
MAX_NODES = 20_000

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars by the YAML 1.2 core schema instead of PyYAML's 1.1."""

    yaml_implicit_resolvers = {
        first: [
            (_TAG + name, re.compile(rf"(?:{pattern})\Z"))
            for name, pattern, firsts in (
                ("merge", r"<<", "<"),
                ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
                ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
                ("int", _INT.pattern, "-+0123456789"),
                ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
                ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
            )
            if first in tuple(firsts)
        ]
        for first in ["", *"<~nNtTfF-+.0123456789"]
    }


@dataclass
class Tree:
    """Plain values and the position of each of them.

    Attributes:
        value: the parsed value; None if the text is empty.
        marks: path -> position of the key (in a list, of the item).
        problems: (position, sentence) of each problem that did not stop the parser.
    """

    value: Value = None
    marks: dict[Loc, Mark] = field(default_factory=dict)
    problems: list[tuple[Mark, str]] = field(default_factory=list)


def read_text(path: Path) -> str:
    """Read a small UTF-8 file.

    Raises:
        ConfigError: the file is missing, a directory, unreadable, larger than MAX_FILE_BYTES, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes, the limit for a config file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text: save the file as UTF-8") from error


def parse_yaml(text: str, label: str) -> Tree:
    """Parse one YAML document.

    Args:
        text: the document.
        label: its name in error messages, such as the file's path.

    Raises:
        ConfigError: not YAML, more than one document, or beyond a limit.
    """
    try:
        _check_size(text, label)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{label}:{mark.line + 1}:{mark.column + 1}" if mark else label
        raise ConfigError(f"{place}: not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{label}:{line}: not valid YAML: {error.reason}") from error
    except (ValueError, OverflowError) as error:
        # PyYAML passes "\UFFFFFFFF" to chr() and the digits of %YAML to int() unchecked.
        raise ConfigError(f"{label}: not valid YAML: a number in it is out of range") from error
    builder = _Builder(label)
    if root is not None:
        builder.tree.value = builder.build(root, ())
    return builder.tree


def _check_size(text: str, label: str) -> None:
    """Refuse text that would make composing slow or deep; the event stream is lazy and not recursive."""
    depth = num_aliases = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        num_aliases += isinstance(event, yaml.AliasEvent)
        if count > MAX_NODES:
            problem = f"more than {MAX_NODES} values: split the file"
        elif depth > MAX_DEPTH:
            problem = f"nested deeper than {MAX_DEPTH} levels: flatten it"
        elif num_aliases > MAX_ALIASES:
            problem = f"more than {MAX_ALIASES} aliases (*name): write the values out"
        else:
            continue
        line, column = _mark(event)
        raise ConfigError(f"{label}:{line}:{column}: {problem}")


class _Builder:
    """Turns a node tree into a Tree; aliased nodes become new values each time."""

    def __init__(self, label: str) -> None:
        self.tree = Tree()
        self._label = label
        self._num_nodes = 0
        self._open_nodes: set[int] = set()

    def build(self, node: yaml.Node, loc: Loc) -> Value:
        self.tree.marks.setdefault(loc, _mark(node))
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise self._error(node, f"aliases expand to more than {MAX_NODES} values: write them out")
        if id(node) in self._open_nodes:
            raise self._error(node, "an alias is inside its own anchor: write the values out")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        # An alias can add the depth of its anchor, repeatedly, so this recursion needs a limit too.
        if len(self._open_nodes) > MAX_DEPTH:
            raise self._error(node, f"nested deeper than {MAX_DEPTH} levels: flatten it")
        self._open_nodes.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self.build(item, (*loc, i)) for i, item in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, loc)
        finally:
            self._open_nodes.discard(id(node))
        raise self._bad_tag(node)

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Value]:
        own: dict[str, Value] = {}
        merged: list[tuple[yaml.Node, Value]] = []
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                merged.append((value_node, self.build(value_node, (*loc, "<<"))))
                continue
            line, column = _mark(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
                self.tree.problems.append(((line, column), "a key must be text: put it in quotes"))
                continue
            key: str = key_node.value
            if key in first_lines:
                text = f"{key[:60]!r} is given twice; first on line {first_lines[key]}: remove one of them"
                self.tree.problems.append(((line, column), text))
                continue
            first_lines[key] = line
            self.tree.marks[(*loc, key)] = (line, column)
            own[key] = self.build(value_node, (*loc, key))
        return self._with_merged(own, merged, loc)

    def _with_merged(
        self, own: dict[str, Value], merged: list[tuple[yaml.Node, Value]], loc: Loc
    ) -> dict[str, Value]:
        """Apply `<<:` entries, which fill in keys that the mapping itself does not have."""
        for node, value in merged:
            for source in value if isinstance(value, list) else [value]:
                if not isinstance(source, dict):
                    raise self._error(node, "<< takes a mapping or a list of mappings")
                for key, inherited in source.items():
                    if key not in own:
                        own[key] = inherited
                        self.tree.marks[(*loc, key)] = _mark(node)
        return own

    def _scalar(self, node: yaml.ScalarNode) -> Scalar:
        text: str = node.value
        try:
            match node.tag.removeprefix(_TAG):
                case "str" | "merge":
                    return text
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int" if _INT.fullmatch(text):
                    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
                case "float":
                    return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        except (ValueError, KeyError) as error:
            # Also raised by Python for integers of more than 4300 digits.
            raise self._error(node, f"{text[:40]!r} is not a value of its type") from error
        raise self._bad_tag(node)

    def _bad_tag(self, node: yaml.Node) -> ConfigError:
        tag = node.tag.replace(_TAG, "!!")
        return self._error(node, f"the tag {tag[:60]} is not allowed: write a plain value")

    def _error(self, node: yaml.Node, problem: str) -> ConfigError:
        line, column = _mark(node)
        return ConfigError(f"{self._label}:{line}:{column}: {problem}")


def _mark(node: yaml.Node | yaml.Event) -> Mark:
    # Only nodes built by hand have no mark.
    return (node.start_mark.line + 1, node.start_mark.column + 1) if node.start_mark else (1, 1)
