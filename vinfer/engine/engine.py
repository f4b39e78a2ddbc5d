"""The engine: one thread per model that turns requests into token events.

`submit` and `cancel` are called on the event loop and only append to an inbox; everything else happens on
the engine thread. Dispatch N+1 is enqueued before the tokens of dispatch N are read. If it depends on them,
because a running request is constrained or speculates, they are read first. While a slot is free, dispatch
N+1 is enqueued late, so that a request that arrives meanwhile is in it. The engine never sees text.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable

from vinfer.engine.pooling import PooledDispatch
from vinfer.engine.rates import DispatchTimes, FinishRate
from vinfer.engine.request import EngineStats, Request, TokenEvent
from vinfer.engine.runner import Dispatch, Runner
from vinfer.engine.schedule import Schedule
from vinfer.engine.scheduler import Scheduler
from vinfer.engine.stream import Delivery, OpenStreams, TokenStream, deliver_all
from vinfer.engine.tenants import TenantLimits
from vinfer.errors import EngineError, NotReadyError, QueueFullError, RequestError, VinferError

logger = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one runner.

    Args:
        name: the model's name, for logs and the thread.
        num_slots: the bundle's.
        max_model_len: the longest prompt and answer: the bundle's, or what the KV cache can hold.
        limits: of the queue, and of one tenant.
    """

    def __init__(
        self,
        *,
        name: str,
        runner: Runner,
        scheduler: Scheduler,
        num_slots: int,
        max_model_len: int,
        limits: TenantLimits,
    ) -> None:
        self._name = name
        self._runner = runner
        self._scheduler = scheduler
        self._num_slots = num_slots
        self._max_model_len = max_model_len
        self.set_limits(limits)
        self._in_flight: deque[Dispatch | PooledDispatch] = deque()
        self._times = DispatchTimes()
        self._queue_seconds: dict[str, float] = {}
        self._stats = EngineStats(num_slots=num_slots, num_pages=scheduler.num_pages)
        # This condition guards everything that both the event loop and the engine thread touch.
        self._wake = threading.Condition()
        self._submitted: list[Request] = []
        self._cancelled: list[str] = []
        self._streams = OpenStreams()
        self._is_stopping = False
        self._is_dead = False
        # When the current step began; None while there is nothing to do.
        self._step_began: float | None = None
        self._idle_seconds = time.monotonic()
        self._finish_rate = FinishRate(num_slots)
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def is_alive(self) -> bool:
        return not self._is_dead

    @property
    def limits(self) -> TenantLimits:
        return self._limits

    @property
    def step_seconds(self) -> float:
        """The age of the current step; 0 while there is nothing to do. Any thread."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def set_limits(self, limits: TenantLimits) -> None:
        """Change the limits for what comes; requests that wait or run stay. Any thread."""
        self._limits = limits
        self._scheduler.max_running_per_tenant = limits.max_running_per_tenant

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Fail the remaining requests and end the thread, after waiting for the dispatches in flight.

        A thread that was given up is not waited for.
        """
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.is_alive() and not self._is_dead:
            self._thread.join()

    def release(self) -> None:
        """Give the memory of an engine that died back to the device, so that another can be loaded.

        Waits for its thread, so it is not for one that was given up.
        """
        self._thread.join()
        self._in_flight.clear()
        self._runner.release()

    def give_up(self) -> None:
        """Fail all requests although a step has not come back; whatever it still does has no effect.

        Called on the event loop.
        """
        self._die()
        self._fail_streams(self._engine_error)

    def check_room(self, tenant: str) -> None:
        """Check that a request could be queued now. Called on the event loop, before work is spent on it.

        Raises:
            QueueFullError, NotReadyError, EngineError: see `submit`.
        """
        with self._wake:
            self._check_open(tenant)

    def submit(self, request: Request) -> TokenStream:
        """Queue a request. Called on the event loop; never waits for the device.

        Raises:
            QueueFullError: every slot is taken and max_queue requests are already waiting, or as many of this
                tenant as may.
            NotReadyError: the engine is stopping.
            EngineError: the engine is dead.
        """
        stream = TokenStream(request.id, request.tenant)
        with self._wake:
            self._check_open(request.tenant)
            self._streams.add(stream)
            self._submitted.append(request)
            self._wake.notify()
        return stream

    def _check_open(self, tenant: str) -> None:
        if self._is_dead:
            raise EngineError(f"model {self._name} cannot answer: its engine failed")
        if self._is_stopping:
            raise NotReadyError(f"model {self._name} is shutting down")
        limits = self._limits
        num_waiting = len(self._streams) - self._num_slots
        if num_waiting >= limits.max_queue:
            raise QueueFullError(
                f"{limits.max_queue} requests are already waiting for model {self._name}: try again later",
                retry_after_seconds=self._seconds_for(num_waiting),
            )
        num_of_tenant = self._streams.num_of(tenant) - limits.max_running_per_tenant
        if num_of_tenant >= limits.max_queue_per_tenant:
            # Tenants take turns, so each of the others has at most as many before these.
            num_before = min(num_of_tenant * self._streams.num_tenants, max(num_waiting, num_of_tenant))
            raise QueueFullError(
                f"{limits.max_queue_per_tenant} requests of this API key are already waiting for model "
                f"{self._name}: try again later",
                retry_after_seconds=self._seconds_for(num_before),
            )

    def _seconds_for(self, num_requests: int) -> float:
        return self._finish_rate.seconds_for(num_requests, time.monotonic() - self._idle_seconds)

    def cancel(self, request_id: str) -> None:
        """Drop a request; its slot is free within one step. Unknown ids are ignored."""
        with self._wake:
            if self._streams.pop(request_id) is not None:
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
            self._fail_streams(lambda: NotReadyError(f"model {self._name} is shutting down"))
        except BaseException:
            # Whatever failed, arrays may have been donated and lost, so no state can be trusted.
            logger.exception("engine of model %s failed", self._name)
            self._die()
            self._fail_streams(self._engine_error)
        finally:
            self._step_began = None
            self._scheduler.drop_all()

    def _die(self) -> None:
        with self._wake:
            self._is_dead = True
            self._wake.notify()

    def _engine_error(self) -> VinferError:
        return EngineError(f"the engine of model {self._name} failed while serving this request")

    def _step(self) -> bool:
        """Drain the inbox, schedule, and enqueue; then read what the device has finished meanwhile."""
        num_generated = self._read_early()
        if not self._drain_inbox():
            return False
        num_unread = len(self._in_flight)
        held: list[Delivery] = []
        try:
            if self._scheduler.needs_all_tokens:
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
        num_generated += _num_tokens(held)
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
                or self._is_dead
            ):
                self._step_began = None
                asleep = time.monotonic()
                self._wake.wait()
                self._idle_seconds += time.monotonic() - asleep
            if self._can_wait_for_requests() and not (
                self._submitted or self._cancelled or self._is_stopping
            ):
                spare = self._times.spare_seconds(time.monotonic())
                if spare > 0:
                    self._wake.wait(spare)
                    if self._in_flight[-1].is_ready:
                        self._times.found_idle(time.monotonic())
            if self._is_stopping or self._is_dead:
                return False
            self._step_began = time.monotonic()
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
        for request in submitted:
            self._scheduler.submit(request)
        for request_id in cancelled:
            self._scheduler.finish(request_id)
            self._queue_seconds.pop(request_id, None)
        return True

    def _read_early(self) -> int:
        """Deliver what precedes the newest dispatch, if `_drain_inbox` will wait; return how many tokens."""
        num_tokens = 0
        while len(self._in_flight) > 1 and self._can_wait_for_requests() and self._times.last_is_long:
            deliveries = self._read_oldest()
            deliver_all(deliveries)
            num_tokens += _num_tokens(deliveries)
        return num_tokens

    def _can_wait_for_requests(self) -> bool:
        """Whether a request that arrives now would be scheduled, and the device has work meanwhile."""
        scheduler = self._scheduler
        return bool(self._in_flight and scheduler.has_free_slot and not scheduler.needs_all_tokens)

    def _enqueue(self, schedule: Schedule) -> None:
        for admission in schedule.admissions:
            request = admission.request
            if not admission.outputs:
                self._queue_seconds[request.id] = time.monotonic() - request.arrival_seconds
            self._runner.set_slot(admission)
        if schedule.encode is not None:
            self._runner.encode(schedule.encode)
        for prefill in schedule.prefills:
            self._note_enqueued(self._runner.prefill(prefill), prefill.shape)
        if (decode := schedule.decode) is not None:
            self._note_enqueued(self._runner.decode(decode), (decode.shape, decode.step_limit))

    def _note_enqueued(self, dispatch: Dispatch | PooledDispatch, kind: Hashable) -> None:
        self._in_flight.append(dispatch)
        self._times.enqueued(kind, time.monotonic())

    def _read_oldest(self) -> list[Delivery]:
        """Wait for the oldest dispatch, advance grammars, free slots, and return the events to deliver.

        Tokens of a request that is gone (cancelled, or finished in an earlier dispatch) are dropped.
        """
        dispatch = self._in_flight.popleft()
        found = dispatch.read()
        self._times.read(time.monotonic())
        events = [(request, _advanced(request, event)) for request, event in found]
        deliveries = []
        with self._wake:
            for request, event in events:
                stream = self._streams.find(request.id)
                if stream is None:
                    continue
                if request.id in self._queue_seconds:
                    event = dataclasses.replace(event, queue_seconds=self._queue_seconds.pop(request.id))
                deliveries.append((stream, event))
                self._scheduler.observe(request.id, event.token_ids, event.num_accepted_tokens)
                if event.is_last:
                    self._streams.pop(request.id)
                    self._scheduler.finish(request.id)
                    self._finish_rate.note(time.monotonic() - self._idle_seconds)
        return deliveries

    def _fail_streams(self, error: Callable[[], VinferError]) -> None:
        """End every stream with an error of its own: one that is raised twice collects both tracebacks."""
        with self._wake:
            streams = self._streams.clear()
        self._stats = dataclasses.replace(self._stats, num_requests_running=0, kv_cache_usage_fraction=0.0)
        deliver_all((stream, TokenEvent(error=error())) for stream in streams)

    def _count(self, schedule: Schedule, num_generated: int, overlapped: int) -> None:
        before = self._stats
        features, speculation = self._scheduler.features, self._scheduler.speculation
        self._stats = EngineStats(
            num_requests_running=self._scheduler.num_running,
            num_slots=self._num_slots,
            num_pages=before.num_pages,
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
            spec_decode_num_drafts_total=speculation.num_drafts,
            spec_decode_num_draft_tokens_total=speculation.num_draft_tokens,
            spec_decode_num_accepted_tokens_total=speculation.num_accepted_tokens,
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
