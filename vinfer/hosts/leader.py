"""The leader's part: brings the group together, sends the records, and watches over the followers.

Loader threads call `join` and the methods of `LeaderModel`, but `announce`, which whoever holds the dispatch
lock calls; the watch has a thread of its own. Whatever goes wrong becomes `failure`, once and for all: the
group cannot go on without a member, and a member cannot come back.
"""

from __future__ import annotations

import logging
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vinfer.bundle.manifest import Manifest
from vinfer.bundle.programs import ProgramShape
from vinfer.config import DistributedConfig
from vinfer.errors import EngineError
from vinfer.hosts.agreement import bundle_facts, check_same, group_facts
from vinfer.hosts.membership import Membership
from vinfer.hosts.outstanding import Outstanding
from vinfer.hosts.record import Kind, RecordFormat, signal_record
from vinfer.hosts.stream import LeaderStream, LostMemberError, read_secret

if TYPE_CHECKING:
    from vinfer.hosts.process_group import ProcessGroup

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.1
PING_SECONDS = 0.5
# Clients get their error events meanwhile.
EXIT_SECONDS = 5.0
STOP_SECONDS = 5.0
FAIL_SECONDS = 3.0
_NUM_TIMES = 10_000


class Leader:
    """The group, as its leader sees it.

    Args:
        membership: this process's.
    """

    def __init__(self, membership: Membership, config: DistributedConfig) -> None:
        """Listen for followers.

        Raises:
            ConfigError: the secret cannot be used.
            BindError: the port is taken.
        """
        self._membership = membership
        self._config = config
        assert config.secret_file is not None
        self._stream = LeaderStream(
            membership.leader if membership.is_on_one_machine else "*",
            config.stream_port,
            read_secret(config.secret_file),
            membership.num_processes - 1,
        )
        self._format = RecordFormat()
        self._outstanding = Outstanding()
        self._times: deque[float] = deque(maxlen=_NUM_TIMES)
        self._heard: dict[int, float] = {}
        self._done: dict[int, int] = {}
        self._all_came = threading.Event()
        # Loading may keep other threads of a member waiting for long, so until then only JAX's own threads
        # and the end of a connection tell whether it lives.
        self._is_serving = False
        self._is_stopping = False
        self._failed_seconds = 0.0
        self.failure: str | None = None
        """Why the group has ended; None while it lives."""
        self._watch = threading.Thread(target=self._run_watch, name="group-watch", daemon=True)

    @property
    def followers(self) -> Sequence[int]:
        return range(1, self._membership.num_processes)

    def join(self, model_names: Sequence[str]) -> None:
        """Wait for all members, and compare what holds for all models.

        Raises:
            DeviceError, BundleError: a member did not come, or differs.
        """
        # Imported here: it brings JAX in.
        from vinfer.hosts.process_group import ProcessGroup

        logger.info("waiting for %d members", len(self.followers))
        self._watch.start()
        self._group: ProcessGroup = ProcessGroup(
            self._membership,
            heartbeat_seconds=self._config.heartbeat_seconds,
            join_seconds=self._config.join_seconds,
        )
        self.compare("group", group_facts(self._membership.num_processes, model_names), "the group")
        # Each of them has just been heard of, so this takes no time; and JAX would abort this process later.
        if not self._all_came.wait(self._config.heartbeat_seconds):
            missing = [str(number) for number in self.followers if number not in self._heard]
            raise LostMemberError(
                f"member {', '.join(missing)} does not reach port {self._config.stream_port}, or has another "
                "server.distributed.secret_file"
            )
        logger.info("all %d members are here", self._membership.num_processes)

    def compare(self, name: str, facts: Mapping[str, Any], what: str) -> None:
        """Tell the followers some facts, and compare theirs.

        Raises:
            BundleError: see `check_same`.
        """
        self._group.tell(name, facts)
        for number in self.followers:
            check_same(facts, self._group.told(number, name), number, what)

    def add(self, position: int, name: str, manifest: Manifest) -> LeaderModel:
        """Compare the bundle of the next model, before its weights are read.

        Raises:
            BundleError: a member has another one, or none.
        """
        self.compare(f"model{position}", bundle_facts(manifest), f"model {name}")
        self._format.add(manifest)
        return LeaderModel(self, position)

    def tell_pages(self, position: int, num_pages: Sequence[int]) -> None:
        """Tell the followers how many pages the KV cache of a model has."""
        self._group.tell(f"pages{position}", {"num_pages": list(num_pages)})

    def meet(self, position: int) -> None:
        """Wait until a model is loaded on all members."""
        # A death meanwhile is noticed by the watch, so this may take as long as the slowest disk.
        self._group.meet(f"loaded{position}", 86400.0)

    def say_ready(self) -> None:
        """Let the followers' probes say that the group serves."""
        self._signal(Kind.READY)
        self._is_serving = True

    def announce(self, position: int, shape: ProgramShape, inputs: Mapping[str, Any]) -> None:
        """Send the record of a dispatch. Called with the dispatch lock held.

        Raises:
            LostMemberError: a follower is gone, or does not keep up.
        """
        if self.failure is not None:
            raise LostMemberError(self.failure)

        def make(number: int) -> bytes:
            # Before it is sent, since the answer may be quick.
            self._outstanding.begin(number)
            return self._format.encode(number, position, shape, inputs)

        try:
            self._stream.send(make)
        except EngineError as error:
            self._fail(error.message)
            raise
        self._times.append(self._stream.send_seconds)

    def stop(self) -> None:
        """End the followers with exit code 0.

        Sends the last record, and waits for a moment until all followers have done all of them.
        """
        if self.failure is not None or not self._all_came.is_set():
            return
        self._is_stopping = True
        self._log_times()
        try:
            last = self._signal(Kind.STOP)
        except EngineError as error:
            logger.warning("the group did not end in order: %s", error.message)
            return
        until = time.monotonic() + STOP_SECONDS
        while time.monotonic() < until and min(self._done.values(), default=last) < last:
            time.sleep(0.01)

    def fail(self) -> None:
        """End the followers, and wait for a moment until they are gone.

        If this process ended first, JAX would abort theirs.
        """
        if not self._all_came.is_set():
            return
        self._is_stopping = True
        until = time.monotonic() + FAIL_SECONDS
        self._stream.send_to_any(lambda number: signal_record(number, Kind.FAIL))
        while time.monotonic() < until:
            if not self._stream.send_to_any(lambda number: signal_record(number, Kind.PING)):
                break
            time.sleep(WATCH_SECONDS)

    def _log_times(self) -> None:
        times = sorted(self._times)
        if len(times) > 1:
            logger.info(
                "sent %d records; the last %d dispatches took %.3f ms to send (median), %.3f ms (99%%)",
                self._stream.num_sent,
                len(times),
                statistics.median(times) * 1000,
                times[len(times) * 99 // 100] * 1000,
            )

    def _signal(self, kind: Kind) -> int:
        def make(number: int) -> bytes:
            if self._is_serving:
                self._outstanding.begin(number)
            return signal_record(number, kind)

        return self._stream.send(make)

    def _run_watch(self) -> None:
        pinged = 0.0
        try:
            while self.failure is None:
                time.sleep(WATCH_SECONDS)
                self._hear()
                if not self._all_came.is_set() or self._is_stopping:
                    continue
                if time.monotonic() - pinged >= PING_SECONDS:
                    pinged = time.monotonic()
                    self._signal(Kind.PING)
                self._check_followers()
        except EngineError as error:
            if not self._is_stopping:
                self._fail(error.message)
        except BaseException as error:
            logger.exception("the watch over the group failed")
            self._fail(f"the watch over the group failed: {type(error).__name__}")
        while not self._is_stopping:
            time.sleep(WATCH_SECONDS)
            if time.monotonic() - self._failed_seconds >= EXIT_SECONDS:
                logger.error("the server does not end by itself: ending the process")
                logging.shutdown()
                os._exit(EngineError.exit_code)

    def _hear(self) -> None:
        for follower, number in self._stream.answers():
            self._heard[follower] = time.monotonic()
            self._done[follower] = max(number, self._done.get(follower, -1))
        if len(self._heard) == len(self.followers):
            self._outstanding.end(min(self._done.values()))
            self._all_came.set()

    def _check_followers(self) -> None:
        for follower, heard in self._heard.items():
            silence = time.monotonic() - heard
            if self._is_serving and silence > self._config.heartbeat_seconds:
                raise LostMemberError(
                    f"member {follower} has been silent for {silence:.1f} s "
                    f"(server.distributed.heartbeat_seconds is {self._config.heartbeat_seconds})"
                )
        age = self._outstanding.age_seconds
        if age > self._config.stall_seconds:
            behind = min(self._done, key=lambda follower: self._done[follower])
            raise LostMemberError(
                f"member {behind} has been at record {self._done[behind] + 1} for {age:.1f} s "
                f"(server.distributed.stall_seconds is {self._config.stall_seconds:g})"
            )

    def _fail(self, words: str) -> None:
        if self.failure is None:
            self._failed_seconds = time.monotonic()
            self.failure = words
            logger.error("the group has ended: %s", words)


class LeaderModel:
    """One model of the group, as it is loaded on the leader."""

    def __init__(self, leader: Leader, position: int) -> None:
        self._leader = leader
        self._position = position

    def tell_pages(self, num_pages: Sequence[int]) -> None:
        """See `Leader.tell_pages`."""
        self._leader.tell_pages(self._position, num_pages)

    def meet(self) -> None:
        """See `Leader.meet`."""
        self._leader.meet(self._position)

    def announce(self, shape: ProgramShape, inputs: Mapping[str, Any]) -> None:
        """See `Leader.announce`."""
        self._leader.announce(self._position, shape, inputs)
