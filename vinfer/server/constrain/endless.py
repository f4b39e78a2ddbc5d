"""Finds JSON Schemas that no value of finite length satisfies: an answer would go on until max_tokens.

Pure functions, any thread. Anything that is not understood here counts as finite; the compiler checks it. So
does a schema that takes too long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vinfer.errors import RequestError

MAX_VISITS = 200_000
"""Parts looked at before the search is given up: less than half a second."""

_CONTAINERS = ({"object"}, {"array"}, {"object", "array"})


def check_ends(schema: Mapping[str, Any], path: str) -> None:
    """Check that some finite value satisfies a schema.

    Raises:
        RequestError: names the field at `path`.
    """
    if not _Finite(schema).holds():
        raise RequestError(
            f"{path} cannot be enforced: every value contains another one of its own kind and never ends: "
            "make one of the references in it optional, or add an alternative without it",
            param=path,
        )


class _Finite:
    """Which parts of a schema have finite values: the least set that is closed under the rules below."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: set[int] = set()
        self._num_visits = 0

    def holds(self) -> bool:
        """Return whether the whole schema has a finite value."""
        targets = self._targets()
        while True:
            num_known = len(self._known)
            self._known |= {id(target) for target in targets if self._ends(target)}
            if self._ends(self._root) or self._num_visits > MAX_VISITS:
                return True
            if len(self._known) == num_known:
                return False

    def _targets(self) -> list[Any]:
        """Return every part that a reference names."""
        found: dict[int, Any] = {}
        waiting: list[Any] = [self._root]
        while waiting:
            part = waiting.pop()
            if isinstance(part, dict):
                target = self._resolved(part.get("$ref"))
                if target is not None:
                    found[id(target)] = target
                waiting += part.values()
            elif isinstance(part, list):
                waiting += part
        return list(found.values())

    def _resolved(self, reference: Any) -> Any:
        """Return what a reference within the schema names; None for any other."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        part: Any = self._root
        for step in filter(None, reference[1:].split("/")):
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(part, list) and name.isdecimal() and int(name[:9]) < len(part):
                part = part[int(name)]
            elif isinstance(part, dict) and name in part:
                part = part[name]
            else:
                return None
        return part

    def _ends(self, part: Any) -> bool:
        """Return whether a part has a finite value if those that are known do."""
        self._num_visits += 1
        if not isinstance(part, dict) or self._num_visits > MAX_VISITS:
            return True
        target = self._resolved(part.get("$ref"))
        if target is not None and id(target) not in self._known:
            return False
        for key in ("anyOf", "oneOf"):
            branches = part.get(key)
            if isinstance(branches, list) and branches and not any(map(self._ends, branches)):
                return False
        if isinstance(part.get("allOf"), list) and not all(map(self._ends, part["allOf"])):
            return False
        kinds = part.get("type")
        kinds = set(kinds) if isinstance(kinds, list) and all(isinstance(k, str) for k in kinds) else {kinds}
        if kinds not in _CONTAINERS or {"enum", "const"} & part.keys():
            return True
        return ("object" in kinds and self._object_ends(part)) or (
            "array" in kinds and self._array_ends(part)
        )

    def _object_ends(self, part: Mapping[str, Any]) -> bool:
        properties, required = part.get("properties"), part.get("required")
        if not isinstance(properties, dict) or not isinstance(required, list):
            return True
        needed = [properties[name] for name in required if isinstance(name, str) and name in properties]
        return all(map(self._ends, needed))

    def _array_ends(self, part: Mapping[str, Any]) -> bool:
        least = part.get("minItems", 0)
        if not isinstance(least, int) or least <= 0:
            return True
        first = part.get("prefixItems")
        first = first[:least] if isinstance(first, list) else []
        return all(map(self._ends, first)) and (len(first) == least or self._ends(part.get("items")))
