"""Carries tokens from the engine thread to the event loop.

One stream per request. The engine thread hands over all events of one step with a single wake-up of the
loop; the consumer awaits them. A stream knows nothing about slots or arrays.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

from vinfer.engine.request import TokenEvent


class TokenStream:
    """Async iterator over the events of one request; ends after its last event.

    Created on the event loop; `deliver` also runs there.
    """

    def __init__(self, request_id: str, tenant: str = "") -> None:
        self.request_id = request_id
        self.tenant = tenant
        self.loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._is_done = False

    def deliver(self, event: TokenEvent) -> None:
        self._events.put_nowait(event)

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> TokenEvent:
        if self._is_done:
            raise StopAsyncIteration
        event = await self._events.get()
        # Join whatever else is already queued into the same event, so that a slow reader sees few large
        # events instead of many small ones.
        while not event.is_last and not self._events.empty():
            event = _join(event, self._events.get_nowait())
        self._is_done = event.is_last
        return event


class OpenStreams:
    """The streams of the requests that have not ended, and how many each tenant has; not thread-safe."""

    def __init__(self) -> None:
        self._streams: dict[str, TokenStream] = {}
        self._num_of_tenant: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def num_tenants(self) -> int:
        return len(self._num_of_tenant)

    def num_of(self, tenant: str) -> int:
        return self._num_of_tenant[tenant]

    def add(self, stream: TokenStream) -> None:
        self._streams[stream.request_id] = stream
        self._num_of_tenant[stream.tenant] += 1

    def find(self, request_id: str) -> TokenStream | None:
        return self._streams.get(request_id)

    def pop(self, request_id: str) -> TokenStream | None:
        """Remove a stream and return it; None if it has ended."""
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            self._num_of_tenant[stream.tenant] -= 1
            if not self._num_of_tenant[stream.tenant]:
                del self._num_of_tenant[stream.tenant]
        return stream

    def clear(self) -> list[TokenStream]:
        """Remove all streams and return them."""
        streams = list(self._streams.values())
        self._streams.clear()
        self._num_of_tenant.clear()
        return streams


def _join(first: TokenEvent, second: TokenEvent) -> TokenEvent:
    logprobs = None
    if first.logprobs is not None or second.logprobs is not None:
        logprobs = (first.logprobs or ()) + (second.logprobs or ())
    return TokenEvent(
        first.token_ids + second.token_ids,
        logprobs,
        second.finish_reason,
        second.error,
        first.queue_seconds,
        first.prompt_logprobs + second.prompt_logprobs,
        first.num_cached_tokens + second.num_cached_tokens,
        first.pooled + second.pooled,
        first.num_draft_tokens + second.num_draft_tokens,
        first.num_accepted_tokens + second.num_accepted_tokens,
    )


Delivery = tuple[TokenStream, TokenEvent]


def deliver_all(deliveries: Iterable[Delivery]) -> None:
    """Deliver events to their streams with one wake-up per event loop. Called on the engine thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}
    for stream, event in deliveries:
        by_loop.setdefault(stream.loop, []).append((stream, event))
    for loop, batch in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_deliver, batch)


def _deliver(batch: list[Delivery]) -> None:
    for stream, event in batch:
        stream.deliver(event)
