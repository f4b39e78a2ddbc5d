"""How log lines look, and which are written. Standard error only."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
from typing import Any

logger = logging.getLogger(__name__)


class LineFormatter(logging.Formatter):
    """Writes records as lines of text that begin with an RFC 3339 time."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Return the time in UTC, to the millisecond."""
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(LineFormatter):
    """Writes each record as one JSON object; an access line has its values as keys too."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        written: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        written |= getattr(record, "fields", {})
        if record.exc_info:
            written["stack"] = self.formatException(record.exc_info)
        return json.dumps(written, ensure_ascii=False, default=str)


def set_log_level(level: str) -> None:
    """Write vinfer's lines from this level up."""
    logging.getLogger("vinfer").setLevel(level.upper())


def configure_logging(level: str, form: str = "text") -> None:
    """Send vinfer's log lines to standard error, and those of libraries only from warnings up.

    Call this before JAX is imported; see `quiet_xla`.
    """
    if level != "debug":
        quiet_xla()
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter() if form == "json" else LineFormatter())
    set_log_level(level)


def quiet_xla() -> None:
    """Keep XLA from writing, if JAX is not imported yet.

    For every cached program, its CPU loader would otherwise report as an error that the machine lacks code
    generation preferences such as +prefer-no-gather, which are not even instructions.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def size_words(num_bytes: int) -> str:
    """Return a size as a person reads it, such as `0.61 GiB` or `3.4 MiB`."""
    gib = 2**30
    return f"{num_bytes / gib:.2f} GiB" if num_bytes >= gib // 10 else f"{num_bytes / 2**20:.1f} MiB"
