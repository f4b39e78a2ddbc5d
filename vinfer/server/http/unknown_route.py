"""What a client learns from a 404: the path that it asked for, and the routes that it may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from vinfer.errors import NotFoundError
from vinfer.server.http.body import printable

_MAX_PATH_CHARS = 128
_MIN_LIKENESS = 0.6
_NUM_SUGGESTIONS = 2


def unknown_route(method: str, path: str, routes: Sequence[tuple[str, str]]) -> NotFoundError:
    """Return the error for a path that is no route.

    Args:
        routes: the (method, path) of every route.
    """
    likeness = {route: _likeness(path[:_MAX_PATH_CHARS], route[1]) for route in routes}
    near = [route for route in routes if likeness[route] >= _MIN_LIKENESS]
    near.sort(key=lambda route: (-likeness[route], route[0] != method))
    meant = " or ".join(" ".join(route) for route in near[:_NUM_SUGGESTIONS])
    advice = f"did you mean {meant}? " if meant else ""
    shown_method = method if method.isalpha() else "?"
    return NotFoundError(
        f"{shown_method[:16]} {printable(path)} is not a route: {advice}GET /openapi.json lists all"
    )


def _likeness(path: str, route: str) -> float:
    """Return how alike a path and a route are, 0 to 1; a base URL in front of the path does not count."""
    plain, meant = path.strip("/").removeprefix("v1/").lower(), route.strip("/").removeprefix("v1/")
    if plain.endswith(meant) and meant:
        return 1.0
    return difflib.SequenceMatcher(None, plain, meant).ratio()
