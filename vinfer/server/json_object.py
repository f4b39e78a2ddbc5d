"""The type of JSON objects that have no type of their own."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
