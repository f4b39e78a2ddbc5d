"""The server without a client: plain JSON over HTTP, the reference for each client's answer."""

from __future__ import annotations

import dataclasses
import json
import urllib.request
from typing import Any

MODEL = "smollm2"
TIMEOUT_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class RawServer:
    """A running server; `url` does not include `/v1`."""

    url: str

    def get(self, path: str) -> Any:
        return self._read(urllib.request.Request(self.url + path))

    def post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps({"model": MODEL, **body}).encode(),
            headers={"Content-Type": "application/json"},
        )
        return self._read(request)

    def chat(self, **body: Any) -> Any:
        """Return the first choice of a greedy chat completion."""
        return self.post("/v1/chat/completions", **{"temperature": 0, **body})["choices"][0]

    def _read(self, request: urllib.request.Request) -> Any:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return json.load(response)
