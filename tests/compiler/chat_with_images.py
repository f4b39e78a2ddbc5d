"""Runs a server over a real bundle in this process, without a port; sends images like clients do."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image

from vinfer.bundle.directory import read_manifest
from vinfer.config import ModelConfig, ServerConfig
from vinfer.launch.loader import served_model
from vinfer.server.app import create_app
from vinfer.server.model_table import ModelTable

if TYPE_CHECKING:
    from vinfer.engine.engine import Engine

Post = Callable[..., httpx.Response]


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@contextmanager
def server_over(
    directory: Path, model: ModelConfig, engine: Engine, *, image_fetcher: Any = None
) -> Iterator[Post]:
    """Yield a function that sends one body, with the model's name added, and waits for the answer.

    Args:
        image_fetcher: replaces the server's own, which refuses every URL.
    """
    table = ModelTable([model.name])
    table.serve(served_model(directory, read_manifest(directory), model, engine, position=0, parity=None))
    app = create_app(ServerConfig.model_validate({"images": {"max_per_request": 3}}), table)

    if image_fetcher is not None:
        app.state.services.__dict__["image_fetcher"] = image_fetcher

    def send(path: str, **body: Any) -> httpx.Response:
        async def exchange() -> httpx.Response:
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=60
            ) as client:
                return await client.post(path, json={"model": model.name, **body})

        return asyncio.run(exchange())

    yield send
    app.state.services.workers.shutdown()
