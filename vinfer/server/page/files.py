"""The files of the page, read once when the app is built. Knows neither requests nor routes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from importlib import resources

PAGE_PATH = "/page/"
"""Where the files lie; `index.html` is at `/`."""
INDEX = "index.html"

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing but our own files, no inline script or style, and no frame around the page.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Ask each time, so that a new version of vinfer never meets old scripts.
    "Cache-Control": "no-cache",
}


@dataclasses.dataclass(frozen=True, slots=True)
class PageFile:
    """One file with its headers."""

    content: bytes
    headers: Mapping[str, str]

    @property
    def etag(self) -> str:
        return self.headers["ETag"]


def read_page() -> dict[str, PageFile]:
    """Read the files of the package, by name."""
    folder = resources.files(__package__) / "static"
    return {file.name: _page_file(file.name, file.read_bytes()) for file in folder.iterdir()}


def _page_file(name: str, content: bytes) -> PageFile:
    suffix = name[name.rindex(".") :]
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return PageFile(content, {**_HEADERS, "Content-Type": _TYPES[suffix], "ETag": etag})
