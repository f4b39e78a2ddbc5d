"""The page at `/`: static files for a browser, and the headers that they are sent with.

`static/` holds plain ES modules, a style sheet and one HTML file. There is no build step.
"""

from __future__ import annotations

from vinfer.server.page.files import PAGE_PATH, PageFile, read_page

__all__ = ["PAGE_PATH", "PageFile", "read_page"]
