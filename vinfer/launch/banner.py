"""What a server says when it is ready: where it is, what it serves, and how to try it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from vinfer.config import Config
from vinfer.server.http.browser import serves_page
from vinfer.server.model_table import ServedModel

logger = logging.getLogger(__name__)


def greet(config: Config, models: Sequence[ServedModel], address: tuple[Any, ...], *, num_keys: int) -> None:
    """Log the banner.

    Args:
        models: in the order of the config.
        address: of the socket.
    """
    logger.info("%s", "\n".join(banner(config, models, address, num_keys=num_keys)))


def banner(
    config: Config, models: Sequence[ServedModel], address: tuple[Any, ...], *, num_keys: int
) -> Iterator[str]:
    """Yield the lines of the banner; see `greet`."""
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    url = f"http://{host}:{address[1]}"
    yield f"ready on {url}"
    yield ""
    for model in models:
        num_pages = model.engine.stats().num_pages
        pages = f", {num_pages} pages" if num_pages else ""
        yield (
            f"  model     {model.name}: requests of up to {model.max_model_len} tokens, "
            f"{model.manifest.num_slots} slots{pages}, parity {model.parity_verdict}"
        )
    if serves_page(config.server):
        yield f"  page      {url}/"
    yield f"  API keys  {f'{num_keys}, of {config.server.api_keys_file}' if num_keys else 'none are needed'}"
    yield f"  metrics   {f'{url}/metrics' if config.server.metrics else 'off'}"
    yield ""
    yield f"  {_curl(url, models[0].name, has_keys=bool(num_keys))}"
    yield ""


def _curl(url: str, model: str, *, has_keys: bool) -> str:
    body = (
        f'{{"model": "{model}", "temperature": 0, '
        '"messages": [{"role": "user", "content": "What is the capital of France?"}]}'
    )
    key = " -H 'Authorization: Bearer YOUR_KEY'" if has_keys else ""
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}"
