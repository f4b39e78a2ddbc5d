"""API keys: every route needs one, except the three that report whether the server is up.

Reads the key file once, at startup. Uses only the ASGI scope's path, because a client can forge a URL that is
rebuilt from headers (CVE-2026-48710).
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from starlette.types import Scope

from vinfer.errors import AuthenticationError, ConfigError

PUBLIC_PATHS = frozenset({"/liveness", "/readiness", "/health"})


class Authenticator:
    """Checks `Authorization: Bearer KEY` or `x-api-key: KEY`; lets every request pass if there are no keys.

    Anthropic's clients send the second, or both with the same key.

    Args:
        api_keys_file: one key per line; blank lines and lines that start with # are ignored.

    Raises:
        ConfigError: the file cannot be read or contains no key.
    """

    def __init__(self, api_keys_file: Path | None) -> None:
        self._digests: list[bytes] = []
        if api_keys_file is None:
            return
        try:
            lines = api_keys_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"server.api_keys_file {api_keys_file} cannot be read ({type(error).__name__}): "
                "name a UTF-8 text file with one key per line"
            ) from None
        keys = [line.strip() for line in lines]
        self._digests = [_digest(key.encode()) for key in keys if key and not key.startswith("#")]
        if not self._digests:
            raise ConfigError(
                f"server.api_keys_file {api_keys_file} contains no key: "
                "write one per line, or leave the setting out"
            )

    def check(self, scope: Scope) -> str:
        """Check the API key of a request, and return a digest of it; "" if none is needed.

        Raises:
            AuthenticationError: the request has no key, different ones, or a wrong one.
        """
        if not self._digests or scope["path"] in PUBLIC_PATHS:
            return ""
        key = _sent_key(scope)
        digest = _digest(key)
        # All keys are compared, equal or not, so that the time taken reveals nothing about any of them.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not key or not any(matches):
            raise AuthenticationError(
                "no valid API key: send one `Authorization: Bearer KEY` or `x-api-key: KEY` header"
            )
        return digest.hex()


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


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
