"""Merges a YAML file, the environment and overrides into one checked `Config`.

Precedence: defaults < YAML < `VINFER_SERVER__PORT=9000` < `server.port=9000`. The origin of every value is
kept, so that an error names file:line:column, the variable or the override. Runs on the main thread at
startup. `schema` defines what the keys mean, and `problems` words the errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vinfer.config.problems import Problem, describe, render_loc
from vinfer.config.schema import Config, default_cache_dir
from vinfer.config.yaml_tree import Loc, Tree, Value, parse_yaml, read_text
from vinfer.errors import ConfigError

ENV_PREFIX = "VINFER_"
# By name because they contain no `__`; other VINFER_X names (VINFER_XLA_CACHE) are not config keys.
_TOP_LEVEL_VARIABLES = tuple(
    f"{ENV_PREFIX}{key.upper()}" for key in Config.model_fields if key not in ("server", "models")
)

_OVERRIDE = re.compile(r"([A-Za-z_][\w-]*(?:\[[0-9]{1,9}\]|\.[\w-]+)*)=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a value came from.

    Attributes:
        label: its name in errors: `x.yaml:3:5`, `VINFER_SERVER__PORT`, `--set server.port=1`.
        directory: the directory that relative paths in it start from.
        order: errors are reported in this order.
    """

    label: str
    directory: Path
    order: tuple[int, ...]


def load_config(
    path: str | os.PathLike[str], *, overrides: Sequence[str] = (), environ: Mapping[str, str]
) -> Config:
    """Load, merge and check a config.

    Args:
        path: the YAML file. Relative paths in it are relative to its directory.
        overrides: `server.port=9000`, `models[0].num_slots=8`; values are parsed as YAML, and later ones
            win. Relative paths in these and in `environ` are relative to the working directory.
        environ: `VINFER_MODELS__0__NUM_SLOTS=8`; other variables are ignored.

    Raises:
        ConfigError: one line per problem, all problems at once.
    """
    path = Path(path)
    return _finish(_Draft(parse_yaml(read_text(path), str(path)), path), overrides, environ)


def load_bundle_config(
    directory: str | os.PathLike[str], *, overrides: Sequence[str] = (), environ: Mapping[str, str]
) -> Config:
    """Return a config that serves one bundle under its directory's name, with defaults for everything else.

    Args:
        overrides, environ: as for `load_config`.

    Raises:
        ConfigError: one line per problem, all problems at once.
    """
    directory = Path(directory).resolve()
    tree = Tree({"models": [{"name": directory.name, "source": str(directory)}]}, {}, [])
    return _finish(_Draft(tree, directory), overrides, environ)


def load_source(
    source: str | os.PathLike[str], *, overrides: Sequence[str] = (), environ: Mapping[str, str]
) -> Config:
    """Load the config of a YAML file, or that of a bundle directory.

    Args:
        overrides, environ: as for `load_config`.

    Raises:
        ConfigError: one line per problem, all problems at once.
    """
    load = load_bundle_config if Path(source).is_dir() else load_config
    return load(source, overrides=overrides, environ=environ)


def _finish(draft: _Draft, overrides: Sequence[str], environ: Mapping[str, str]) -> Config:
    for name in sorted(environ):
        key = name.removeprefix(ENV_PREFIX)
        if key != name and ("__" in key or name in _TOP_LEVEL_VARIABLES):
            draft.set(_loc(key.lower().split("__")), environ[name], name)
    for override in overrides:
        loc, text = parse_override(override)
        draft.set(loc, text, f"--set {render_loc(loc)}")
    draft.values.setdefault("cache_dir", str(default_cache_dir(environ)))
    draft.resolve_paths()
    return draft.check()


def parse_override(override: str) -> tuple[Loc, str]:
    """Split `models[0].num_slots=8` into its path and its text; `models.0.num_slots=8` is equivalent.

    Raises:
        ConfigError: not of the form key=value.
    """
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        raise ConfigError(
            f"--set {override[:80]!r}: expected key=value, such as server.port=9000 or models[0].num_slots=8"
        )
    return _loc(re.findall(r"[\w-]+", match[1])), match[2]


def _loc(segments: list[str]) -> Loc:
    return tuple(int(part) if re.fullmatch(r"[0-9]{1,9}", part) else part for part in segments)


class _Draft:
    """Values being merged, not yet checked, each with its origin."""

    def __init__(self, tree: Tree, path: Path) -> None:
        self._path = path
        self._origins = {loc: self._in_file(mark) for loc, mark in tree.marks.items()}
        self._origins.setdefault((), self._in_file((1, 1)))
        self._problems = [(self._in_file(mark), text) for mark, text in tree.problems]
        self._num_set = 0
        value = {} if tree.value is None else tree.value
        if not isinstance(value, dict):
            kind = "a list" if isinstance(value, list) else "a single value"
            label = self._origins[()].label
            raise ConfigError(f"{label}: the file is {kind}; expected keys such as server: and models:")
        self.values: dict[str, Value] = value

    def set(self, loc: Loc, text: str, label: str) -> None:
        """Put a YAML value at `loc`, creating missing blocks and the next list item on the way.

        Raises:
            ConfigError: not YAML, or the path goes through a plain value or past the end of a list.
        """
        self._num_set += 1
        origin = _Origin(label, Path.cwd(), (1, self._num_set))
        tree = parse_yaml(text, label)
        self._problems.extend((origin, problem) for _, problem in tree.problems)
        here: Any = self.values
        for depth, part in enumerate(loc):
            upto = loc[: depth + 1]
            inner = _step(here, part, f"{label}: {render_loc(loc[:depth]) or 'the file'}")
            if upto == loc or inner is None:
                inner = tree.value if upto == loc else [] if isinstance(loc[depth + 1], int) else {}
                if isinstance(here, list) and part == len(here):
                    here.append(inner)
                else:
                    here[part] = inner
                self._forget_origins(upto)
                self._origins[upto] = origin
            here = inner

    def resolve_paths(self) -> None:
        """Make local paths absolute, each relative to the place where it was written."""
        server = self.values.get("server")
        for key in ("api_keys_file", "admin_socket", "profile_dir"):
            self._resolve(server, ("server", key))
        if isinstance(server, dict):
            self._resolve(server.get("distributed"), ("server", "distributed", "secret_file"))
        self._resolve(self.values, ("cache_dir",))
        models = self.values.get("models")
        for i, model in enumerate(models if isinstance(models, list) else ()):
            self._resolve(model, ("models", i, "source"))

    def check(self) -> Config:
        """Validate against the schema.

        Raises:
            ConfigError: all problems, in the order of their origins.
        """
        config = None
        problems = self._problems
        try:
            config = Config.model_validate(self.values)
        except ValidationError as error:
            for problem in describe(error, self.values):
                problems.append((self._origin(problem.loc), _sentence(problem)))
        if config is not None and not problems:
            return config
        problems.sort(key=lambda item: item[0].order)
        raise ConfigError("\n".join(f"{origin.label}: {text}" for origin, text in problems))

    def _in_file(self, mark: tuple[int, int]) -> _Origin:
        return _Origin(f"{self._path}:{mark[0]}:{mark[1]}", self._path.parent, (0, *mark))

    def _origin(self, loc: Loc) -> _Origin:
        """Return the origin of the longest known prefix of a path; at least the root's."""
        return next(self._origins[loc[:n]] for n in range(len(loc), -1, -1) if loc[:n] in self._origins)

    def _forget_origins(self, loc: Loc) -> None:
        for known in [known for known in self._origins if known[: len(loc)] == loc]:
            del self._origins[known]

    def _resolve(self, block: Value, loc: Loc) -> None:
        key = str(loc[-1])
        if not isinstance(block, dict):
            return
        text = block.get(key)
        if isinstance(text, str) and text and text.isprintable():
            directory = self._origin(loc).directory
            if key != "source" or _is_local(text, directory):
                block[key] = os.path.abspath(directory / os.path.expanduser(text))


def _step(block: Value, part: str | int, subject: str) -> Value:
    """Return the part of a block that an override passes through; None if there is nothing yet.

    Raises:
        ConfigError: an index into a block, a key into a list, an index past its end, or a step into a plain
            value.
    """
    match block, part:
        case dict(), str():
            return block.get(part)
        case list(), int() if part <= len(block):
            return block[part] if part < len(block) else None
        case list(), int():
            raise ConfigError(f"{subject} has {len(block)} entries; the next index is {len(block)}")
        case list(), _:
            raise ConfigError(f"{subject} is a list: give an index")
        case dict(), _:
            raise ConfigError(f"{subject} is a block: give a key")
    raise ConfigError(f"{subject} is not a list or a block")


def _is_local(source: str, directory: Path) -> bool:
    """Return whether a source is a path, not a hub id (`org/name`, `name`) or `package:module/file`."""
    if source.startswith("package:"):
        return False
    looks_like_path = source.startswith(("/", "./", "../", "~")) or source in (".", "..")
    looks_like_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not source.endswith(".gguf")
    return looks_like_path or not looks_like_hub_id or os.path.exists(directory / source)


def _sentence(problem: Problem) -> str:
    return f"{render_loc(problem.loc)} {problem.text}" if problem.loc else problem.text
