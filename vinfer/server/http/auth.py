"""API keys: every route needs one, except the three that report whether the server is up.

Uses only the ASGI scope's path, because a client can forge a URL that is rebuilt from headers
(CVE-2026-48710).
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.types import Scope

from vinfer.errors import AuthenticationError
from vinfer.server.api_keys import ApiKey, digest_of

PUBLIC_PATHS = frozenset({"/liveness", "/readiness", "/health"})


def find_key(scope: Scope, keys: Sequence[ApiKey]) -> ApiKey | None:
    """Return the API key of a request, from `Authorization: Bearer KEY`; None if none is needed.

    Raises:
        AuthenticationError: the request has no key, several, or a wrong one.
    """
    if not keys or scope["path"] in PUBLIC_PATHS:
        return None
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, key = sent[0].partition(b" ") if len(sent) == 1 else (b"", b"", b"")
    digest = digest_of(key.strip())
    # All keys are compared, equal or not, so that the time taken reveals nothing about any of them.
    matches = [known for known in keys if hmac.compare_digest(digest, known.digest)]
    if scheme.lower() != b"bearer" or not matches:
        raise AuthenticationError("no valid API key: send one `Authorization: Bearer KEY` header")
    return matches[0]
