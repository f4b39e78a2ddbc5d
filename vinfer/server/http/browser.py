"""What protects the server from web pages: which host names it answers to, and what a browser may load.

A site whose name is made to resolve to 127.0.0.1 (DNS rebinding) may read what a server on loopback answers.
Its requests carry the site's name in `Host`, so the server answers only to its own names. Pure functions of
the ASGI scope.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.types import Scope

from vinfer.config import ServerConfig
from vinfer.errors import HostError
from vinfer.server.page import PAGE_PATH

_MAX_SHOWN_CHARS = 64
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]*)?")


def is_loopback(host: str) -> bool:
    """Return whether an address or a name is this machine's alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serves_page(config: ServerConfig) -> bool:
    """Return whether there is a page: as `server.page` says, or on loopback if it says nothing."""
    return is_loopback(config.host) if config.page is None else config.page


def accepts_html(scope: Scope) -> bool:
    """Return whether a client asks for HTML by name, as browsers do; `*/*` does not."""
    accepted = b",".join(value for name, value in scope["headers"] if name == b"accept").lower()
    return any(_is_html(entry) for entry in accepted.split(b","))


def _is_html(entry: bytes) -> bool:
    media_type, *parameters = (part.strip() for part in entry.split(b";"))
    refused = any(p.startswith(b"q=") and not p[2:].strip(b"0.") for p in parameters)
    return media_type == b"text/html" and not refused


def is_for_page(scope: Scope) -> bool:
    """Return whether a request can only be answered with a file of the page, which holds no secret."""
    if scope["method"] not in ("GET", "HEAD"):
        return False
    path: str = scope["path"]
    return path.startswith(PAGE_PATH) or (path == "/" and accepts_html(scope))


def check_host(scope: Scope, config: ServerConfig) -> None:
    """Refuse a request to a server on loopback under a foreign name.

    Raises:
        HostError: `Host` is neither a name of loopback nor the host of one of `server.cors_origins`.
    """
    if not is_loopback(config.host) or "*" in config.cors_origins:
        return
    sent = next((value for name, value in scope["headers"] if name == b"host"), None)
    # HTTP/1.0 has no such header, but every browser sends it.
    if sent is None:
        return
    host = _host_of(sent.decode("latin-1"))
    if host is not None and (is_loopback(host) or host.endswith(".localhost")):
        return
    if host is not None and host in {_host_of(origin.partition("://")[2]) for origin in config.cors_origins}:
        return
    shown = ascii(sent.decode("latin-1")[:_MAX_SHOWN_CHARS])
    raise HostError(
        f"Host is {shown}; this server answers only to names of loopback: "
        "send Host: localhost, add http://NAME to server.cors_origins, or set server.api_keys_file"
    )


def _host_of(text: str) -> str | None:
    """Return the name in `NAME` or `NAME:PORT`, in lower case; None for anything else."""
    match = _HOST.fullmatch(text)
    return None if match is None else match["name"].strip("[]").lower()
