"""The engine: one thread per model that turns requests into token events.

`submit` and `cancel` are called on the event loop and only append to an inbox; everything else happens on
the engine thread. Dispatch N+1 is enqueued before the tokens of dispatch N are read. While a running request
is constrained, the tokens are read first, because its next mask depends on them. The engine never sees text.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque

from vinfer.engine.pooling import PooledDispatch
from vinfer.engine.request import EngineStats, Request, TokenEvent
from vinfer.engine.runner import Dispatch, Runner
from vinfer.engine.schedule import Schedule
from vinfer.engine.scheduler import Scheduler
from vinfer.engine.stream import Delivery, TokenStream, deliver_all
from vinfer.errors import EngineError, NotReadyError, QueueFullError, RequestError, VinferError

logger = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one runner.

    Args:
        name: the model's name, for logs and the thread.
        num_slots: the bundle's.
        max_model_len: the longest prompt and answer: the bundle's, or what the KV cache can hold.
        max_queue: most requests that may wait for a slot.
    """

    def __init__(
        self,
        *,
        name: str,
        runner: Runner,
        scheduler: Scheduler,
        num_slots: int,
        max_model_len: int,
        max_queue: int,
    ) -> None:
        self._name = name
        self._runner = runner
        self._scheduler = scheduler
        self._num_slots = num_slots
        self._max_model_len = max_model_len
        self._max_queue = max_queue
        self._in_flight: deque[Dispatch | PooledDispatch] = deque()
        self._queue_seconds: dict[str, float] = {}
        self._stats = EngineStats(num_slots=num_slots)
        # This condition guards everything that both the event loop and the engine thread touch.
        self._wake = threading.Condition()
        self._submitted: list[Request] = []
        self._cancelled: list[str] = []
        self._streams: dict[str, TokenStream] = {}
        self._is_stopping = False
        self._is_dead = False
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def is_alive(self) -> bool:
        return not self._is_dead

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Fail the remaining requests and end the thread, after waiting for the dispatches in flight."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, request: Request) -> TokenStream:
        """Queue a request. Called on the event loop; never waits for the device.

        Raises:
            QueueFullError: every slot is taken and max_queue requests are already waiting.
            NotReadyError: the engine is stopping.
            EngineError: the engine is dead.
        """
        stream = TokenStream(request.id)
        with self._wake:
            if self._is_dead:
                raise EngineError(f"model {self._name} cannot answer: its engine failed")
            if self._is_stopping:
                raise NotReadyError(f"model {self._name} is shutting down")
            if len(self._streams) >= self._num_slots + self._max_queue:
                raise QueueFullError(
                    f"{self._max_queue} requests are already waiting for model {self._name}: try again later"
                )
            self._streams[request.id] = stream
            self._submitted.append(request)
            self._wake.notify()
        return stream

    def cancel(self, request_id: str) -> None:
        """Drop a request; its slot is free within one step. Unknown ids are ignored."""
        with self._wake:
            if self._streams.pop(request_id, None) is not None:
                self._cancelled.append(request_id)
                self._wake.notify()

    def stats(self) -> EngineStats:
        """Return the counters as of the last step; any thread."""
        stats = self._stats
        num_waiting = max(len(self._streams) - stats.num_requests_running, 0)
        return dataclasses.replace(stats, num_requests_waiting=num_waiting)

    def _run(self) -> None:
        try:
            while self._step():
                pass
            while self._in_flight:
                deliver_all(self._read_oldest())
            self._fail_all(NotReadyError(f"model {self._name} is shutting down"))
        except Exception:
            # Whatever failed, arrays may have been donated and lost, so no state can be trusted.
            logger.exception("engine of model %s failed", self._name)
            with self._wake:
                self._is_dead = True
            self._fail_all(EngineError(f"the engine of model {self._name} failed while serving this request"))

    def _step(self) -> bool:
        """Drain the inbox, schedule, and enqueue; then read what the device has finished meanwhile."""
        if not self._drain_inbox():
            return False
        num_unread = len(self._in_flight)
        held: list[Delivery] = []
        try:
            if self._scheduler.is_constrained:
                for _ in range(num_unread):
                    held += self._read_oldest()
            num_overlapping = len(self._in_flight)
            schedule = self._scheduler.schedule()
            if not schedule and not num_unread and self._scheduler.num_running:
                raise RuntimeError("requests hold slots, but no work was scheduled for them")
            self._enqueue(schedule)
        finally:
            # After the device has work again; and finished requests get their end even if something failed.
            deliver_all(held)
        overlapped = len(self._in_flight) - num_overlapping if num_overlapping else 0
        num_generated = _num_tokens(held)
        for _ in range(num_overlapping):
            deliveries = self._read_oldest()
            deliver_all(deliveries)
            num_generated += _num_tokens(deliveries)
        self._count(schedule, num_generated, overlapped)
        return True

    def _drain_inbox(self) -> bool:
        """Pass submissions and cancellations to the scheduler; wait while there is nothing to do.

        Returns:
            False once the engine is stopping.
        """
        with self._wake:
            while not (
                self._submitted
                or self._cancelled
                or self._is_stopping
                or self._in_flight
                or self._scheduler.num_running
                or self._scheduler.num_waiting
            ):
                self._wake.wait()
            if self._is_stopping:
                return False
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
        for request in submitted:
            self._scheduler.submit(request)
        for request_id in cancelled:
            self._scheduler.finish(request_id)
            self._queue_seconds.pop(request_id, None)
        return True

    def _enqueue(self, schedule: Schedule) -> None:
        for admission in schedule.admissions:
            request = admission.request
            if not admission.outputs:
                self._queue_seconds[request.id] = time.monotonic() - request.arrival_seconds
            self._runner.set_slot(admission)
        if schedule.encode is not None:
            self._runner.encode(schedule.encode)
        for prefill in schedule.prefills:
            self._in_flight.append(self._runner.prefill(prefill))
        if schedule.decode is not None:
            self._in_flight.append(self._runner.decode(schedule.decode))

    def _read_oldest(self) -> list[Delivery]:
        """Wait for the oldest dispatch, advance grammars, free slots, and return the events to deliver.

        Tokens of a request that is gone (cancelled, or finished in an earlier dispatch) are dropped.
        """
        dispatch = self._in_flight.popleft()
        events = [(request, _advanced(request, event)) for request, event in dispatch.read()]
        deliveries = []
        with self._wake:
            for request, event in events:
                stream = self._streams.get(request.id)
                if stream is None:
                    continue
                if request.id in self._queue_seconds:
                    event = dataclasses.replace(event, queue_seconds=self._queue_seconds.pop(request.id))
                deliveries.append((stream, event))
                self._scheduler.observe(request.id, event.token_ids)
                if event.is_last:
                    del self._streams[request.id]
                    self._scheduler.finish(request.id)
        return deliveries

    def _fail_all(self, error: VinferError) -> None:
        with self._wake:
            streams = list(self._streams.values())
            self._streams.clear()
        self._scheduler.drop_all()
        self._stats = dataclasses.replace(self._stats, num_requests_running=0, kv_cache_usage_fraction=0.0)
        deliver_all((stream, TokenEvent(error=error)) for stream in streams)

    def _count(self, schedule: Schedule, num_generated: int, overlapped: int) -> None:
        before = self._stats
        features = self._scheduler.features
        self._stats = EngineStats(
            num_requests_running=self._scheduler.num_running,
            num_slots=self._num_slots,
            kv_cache_usage_fraction=self._scheduler.kv_usage_fraction,
            prompt_tokens_total=before.prompt_tokens_total
            + sum(chunk.length for prefill in schedule.prefills for chunk in prefill.chunks),
            generation_tokens_total=before.generation_tokens_total + num_generated,
            num_prefill_dispatches_total=before.num_prefill_dispatches_total + len(schedule.prefills),
            num_decode_dispatches_total=before.num_decode_dispatches_total + (schedule.decode is not None),
            num_overlapped_dispatches_total=before.num_overlapped_dispatches_total + overlapped,
            num_encode_dispatches_total=before.num_encode_dispatches_total + (schedule.encode is not None),
            num_images_encoded_total=before.num_images_encoded_total
            + (0 if schedule.encode is None else len(schedule.encode.images)),
            mm_cache_queries_total=features.num_queries,
            mm_cache_hits_total=features.num_hits,
            mm_cache_usage_fraction=features.usage_fraction,
            num_preemptions_total=self._scheduler.num_preemptions,
            prefix_cache_queries_total=self._scheduler.num_prefix_queries,
            prefix_cache_hits_total=self._scheduler.num_prefix_hits,
        )


def _num_tokens(deliveries: list[Delivery]) -> int:
    return sum(len(event.token_ids) for _, event in deliveries)


def _advanced(request: Request, event: TokenEvent) -> TokenEvent:
    """Advance the request's grammar by an event's tokens; return the event, or an error event on failure."""
    if request.grammar is None or event.is_last or not event.token_ids:
        return event
    try:
        request.grammar.advance(event.token_ids)
    except RequestError as error:
        return TokenEvent(error=error)
    return event
