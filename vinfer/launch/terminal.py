"""What vinfer shows in a terminal or a log: log lines, progress, the first curl command.

Standard error only. Progress is printed as lines, not as a bar, so it also reads well in a container log.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import shlex
import time
from collections.abc import Callable
from typing import Any

from vinfer.config import Config

logger = logging.getLogger(__name__)

_LINES_PER_PHASE = 4


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


class ProgressLines:
    """Writes the start of every phase and a few lines in between, with the seconds since the process start.

    Args:
        say: receives each line; without one, lines are logged.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda line: logger.info("%s", line))
        self._started = time.monotonic()
        self._last: tuple[str, str, int] | None = None

    def __call__(self, name: str, phase: str, done: int, total: int) -> None:
        """Write one report of progress; any thread."""
        line = (name, phase, done * _LINES_PER_PHASE // max(total, 1))
        if line == self._last:
            return
        self._last = line
        count = f" {done}/{total}" if total > 1 else ""
        self._say(f"{name}: {phase}{count} ({time.monotonic() - self._started:.0f} s)")


def size_words(num_bytes: int) -> str:
    """Return a size as a person reads it, such as `0.61 GiB` or `3.4 MiB`."""
    gib = 2**30
    return f"{num_bytes / gib:.2f} GiB" if num_bytes >= gib // 10 else f"{num_bytes / 2**20:.1f} MiB"


def greet(config: Config, address: tuple[Any, ...]) -> None:
    """Log that the server is ready, and how to try it."""
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    url = f"http://{host}:{address[1]}"
    body = (
        f'{{"model": "{config.models[0].name}", "temperature": 0, '
        '"messages": [{"role": "user", "content": "What is the capital of France?"}]}'
    )
    key = " -H 'Authorization: Bearer YOUR_KEY'" if config.server.api_keys_file else ""
    logger.info(
        "ready on %s; try:\n\n  curl %s/v1/chat/completions -H 'Content-Type: application/json'%s -d %s\n",
        url,
        url,
        key,
        shlex.quote(body),
    )
