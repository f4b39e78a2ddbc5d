"""What `with vinfer.load(...)` and `async with` give: chat, streams and embeddings of the loaded models.

Any thread, and any event loop. All fields are those of the API.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from typing import Any, TypeVar

from vinfer.chat.answer import Piece, Stats
from vinfer.llm import requests
from vinfer.llm.host import Host
from vinfer.llm.requests import ChatAnswer, Messages

T = TypeVar("T")


class LLM:
    """Loaded models, for callers that wait.

    Attributes:
        models: names of the models; a request without `model` goes to the first.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.models = host.model_names

    def chat(self, messages: Messages, **fields: Any) -> ChatAnswer:
        """Return the answer to a question, or to the messages of a conversation.

        Args:
            fields: as of `/v1/chat/completions`, such as `max_tokens=20` or `tools=[...]`.

        Raises:
            VinferError: the request is refused, or fails.
        """
        body = requests.chat_body(self._host, messages, fields)
        return requests.chat_answer(self.post(requests.CHAT, **body))

    def stream(self, messages: Messages, **fields: Any) -> Generator[Piece, None, None]:
        """Yield the answer piece by piece; `print(piece, end="")` prints it. Closing the generator stops it.

        Raises:
            VinferError: the request is refused, or fails.
        """
        pieces = requests.stream(self._host, requests.chat_body(self._host, messages, fields), Stats())
        try:
            while (piece := self._wait(_next(pieces))) is not None:
                yield piece
        finally:
            # Without the loop, there is nothing left to close.
            if self._host.is_running:
                self._wait(pieces.aclose())

    def embed(self, texts: str | Sequence[str], **fields: Any) -> list[list[float]]:
        """Return one vector per text.

        Args:
            fields: as of `/v1/embeddings`, such as `dimensions=64`; `encoding_format` is left out.

        Raises:
            VinferError: the request is refused, or fails.
        """
        body = requests.embedding_body(self._host, texts, fields)
        return requests.vectors(self.post(requests.EMBEDDINGS, **body))

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Return what any route of the API answers, such as `post("/tokenize", prompt="Hi")`.

        Raises:
            VinferError: the request is refused, or fails.
        """
        return self._wait(requests.post(self._host, path, body))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._host.submit(work)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C in a notebook stops the work too.
            future.cancel()
            raise


class AsyncLLM:
    """Loaded models, for callers with an event loop; see `LLM` for arguments and errors."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.models = host.model_names

    async def chat(self, messages: Messages, **fields: Any) -> ChatAnswer:
        """Return the answer to a question, or to the messages of a conversation."""
        body = requests.chat_body(self._host, messages, fields)
        return requests.chat_answer(await self.post(requests.CHAT, **body))

    async def stream(self, messages: Messages, **fields: Any) -> AsyncGenerator[Piece, None]:
        """Yield the answer piece by piece; closing the generator stops it."""
        pieces = requests.stream(self._host, requests.chat_body(self._host, messages, fields), Stats())
        try:
            while (piece := await self._wait(_next(pieces))) is not None:
                yield piece
        finally:
            if self._host.is_running:
                await self._wait(pieces.aclose())

    async def embed(self, texts: str | Sequence[str], **fields: Any) -> list[list[float]]:
        """Return one vector per text."""
        body = requests.embedding_body(self._host, texts, fields)
        return requests.vectors(await self.post(requests.EMBEDDINGS, **body))

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Return what any route of the API answers."""
        return await self._wait(requests.post(self._host, path, body))

    async def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self._host.submit(work))


async def _next(pieces: AsyncGenerator[Piece, None]) -> Piece | None:
    return await anext(pieces, None)
