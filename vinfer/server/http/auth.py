"""API keys: every route needs one, except the three that report whether the server is up, and what is public
by config.

Uses only the ASGI scope's path, because a client can forge a URL that is rebuilt from headers
(CVE-2026-48710).
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence

from starlette.types import Scope

from vinfer.config import ServerConfig
from vinfer.errors import AuthenticationError
from vinfer.server.api_keys import ApiKey, digest_of

PUBLIC_PATHS = frozenset({"/liveness", "/readiness", "/health"})


def public_paths(config: ServerConfig) -> frozenset[str]:
    """Return the paths that need no key."""
    return PUBLIC_PATHS | {"/metrics"} if config.metrics_public else PUBLIC_PATHS


def find_key(scope: Scope, keys: Sequence[ApiKey], public: Collection[str]) -> ApiKey | None:
    """Return the API key of a request; None if none is needed.

    It is sent as `Authorization: Bearer KEY` or `x-api-key: KEY`. Anthropic's clients send the second, or
    both with the same key.

    Args:
        public: the paths that need none.

    Raises:
        AuthenticationError: the request has no key, different ones, or a wrong one.
    """
    if not keys or scope["path"] in public:
        return None
    key = _sent_key(scope)
    digest = digest_of(key)
    # All keys are compared, equal or not, so that the time taken reveals nothing about any of them.
    matches = [known for known in keys if hmac.compare_digest(digest, known.digest)]
    if not key or not matches:
        raise AuthenticationError(
            "no valid API key: send one `Authorization: Bearer KEY` or `x-api-key: KEY` header"
        )
    return matches[0]


def _sent_key(scope: Scope) -> bytes:
    """Return the key of a request; nothing if it has none, a header twice, or two different keys."""
    values = {
        name: [value for sent, value in scope["headers"] if sent == name]
        for name in (b"authorization", b"x-api-key")
    }
    if any(len(found) > 1 for found in values.values()):
        return b""
    keys = {value.strip() for value in values[b"x-api-key"]}
    for value in values[b"authorization"]:
        scheme, _, key = value.partition(b" ")
        keys.add(key.strip() if scheme.lower() == b"bearer" else b"")
    return keys.pop() if len(keys) == 1 else b""
