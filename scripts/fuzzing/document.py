"""Rewrites /openapi.json for schemathesis: the same rules in forms that it can generate cases from.

The document says them in forms that generators of clients overlook. Pure functions.
"""

from __future__ import annotations

import math
from typing import Any

MAX_ALTERNATIVES = 8
"""Schemathesis refuses a schema whose rules have more combinations of alternatives."""


def for_schemathesis(part: Any) -> Any:
    """Return a document that allows the same bodies, or fewer where there are too many combinations.

    A condition whose alternative is false becomes a composition, and a pattern of one name a property.
    """
    if isinstance(part, list):
        return [for_schemathesis(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    new = {key: for_schemathesis(inner) for key, inner in part.items()}
    if "if" in new and new.get("else") is False and "then" not in new:
        del new["else"]
        rules = new.pop("if")
        new["allOf"] = [
            *new.get("allOf", ()),
            *_fewer(rules["allOf"] if set(rules) == {"allOf"} else [rules]),
        ]
    patterns = new.get("patternProperties")
    if isinstance(patterns, dict) and "properties" in new:
        names = {pattern: pattern.removeprefix("^").removesuffix("$") for pattern in patterns}
        if all(pattern == f"^{name}$" and name.isidentifier() for pattern, name in names.items()):
            del new["patternProperties"]
            own = {names[pattern]: schema for pattern, schema in patterns.items()}
            new["properties"] = {**new["properties"], **own}
    return new


def _fewer(rules: list[Any]) -> list[Any]:
    """Join rules of two alternatives, the first with the first and the second with the second, if need be."""
    while math.prod(len(rule.get("anyOf", "_")) for rule in rules) > MAX_ALTERNATIVES:
        pairs = [rule for rule in rules if len(rule.get("anyOf", ())) == 2][:2]
        if len(pairs) < 2:
            break
        joined = [{"allOf": list(both)} for both in zip(*(rule["anyOf"] for rule in pairs), strict=True)]
        rules = [{"anyOf": joined}, *(rule for rule in rules if rule not in pairs)]
    return rules
