"""A follower's part: repeats what the leader dispatches, and ends with it.

Four threads. The caller's joins and loads; one takes records and enqueues their programs; one waits for the
device; one answers the leader, and notices its death, its silence, and a dispatch that does not end. Each of
them can only go on or end the process. Knows no request.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from vinfer.bundle.manifest import Manifest
from vinfer.config import DistributedConfig
from vinfer.engine.loading.loaded_model import LoadedModel
from vinfer.errors import VinferError
from vinfer.hosts.agreement import Facts, bundle_facts, check_same, group_facts
from vinfer.hosts.membership import Membership
from vinfer.hosts.outstanding import Outstanding
from vinfer.hosts.record import Kind, RecordError
from vinfer.hosts.repeater import Repeater
from vinfer.hosts.stream import FollowerStream, read_secret

if TYPE_CHECKING:
    from vinfer.hosts.process_group import ProcessGroup

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 0.5
# So that the leader reads what this member has told it, before it notices that it is gone.
REFUSAL_SECONDS = 2.0
_STDERR = 2


def end_process(words: str, code: int, *, with_stacks: bool = False) -> NoReturn:
    """End this process at once, with words in the log; exit handlers would wait for the other members."""
    logger.log(logging.ERROR if code else logging.INFO, "%s", words)
    if with_stacks:
        faulthandler.dump_traceback(_STDERR, all_threads=True)
    logging.shutdown()
    os._exit(code)


class Follower:
    """One follower.

    Args:
        membership: this process's.
        on_ready: called when all models are loaded on all members.
    """

    def __init__(
        self, membership: Membership, config: DistributedConfig, *, on_ready: Callable[[], None]
    ) -> None:
        """Read the secret.

        Raises:
            ConfigError: it cannot be used.
        """
        self._membership = membership
        self._config = config
        self._on_ready = on_ready
        assert config.secret_file is not None
        self._secret = read_secret(config.secret_file)
        self._repeater = Repeater()
        self._outstanding = Outstanding()
        self._enqueued: queue.SimpleQueue[tuple[int, Mapping[str, Any]]] = queue.SimpleQueue()
        self._heard_seconds = time.monotonic()
        self._num_done = -1
        self._is_serving = False
        # Then this member's own words say why it ends, not that the leader is gone.
        self._is_refused = False
        self._stop_number: int | None = None
        self.on_stop: Callable[[], str] = lambda: ""
        """Returns what else to say at the end."""

    def join(self, model_names: Sequence[str]) -> None:
        """Wait for all members, compare what holds for all models, and follow the leader from now on.

        Raises:
            DeviceError, BundleError: the group did not come together, or this member differs.
        """
        # Imported here: it brings JAX in.
        from vinfer.hosts.process_group import ProcessGroup

        logger.info("joining %s as member %d", self._membership.leader, self._membership.process_id)
        self._group: ProcessGroup = ProcessGroup(
            self._membership,
            heartbeat_seconds=self._config.heartbeat_seconds,
            join_seconds=self._config.join_seconds,
        )
        self.compare("group", group_facts(self._membership.num_processes, model_names), "the group")
        self._stream = FollowerStream(
            self._membership.leader, self._config.stream_port, self._secret, self._membership.process_id
        )
        self._heard_seconds = time.monotonic()
        for work in (self._take_records, self._wait_for_device, self._watch):
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__[1:], daemon=True).start()

    def compare(self, name: str, facts: Facts, what: str) -> None:
        """Tell the leader some facts, and compare its own.

        Raises:
            BundleError: see `check_same`; after a moment in which the leader finds the same.
        """
        self._group.tell(name, facts)
        try:
            check_same(self._group.told(0, name), facts, self._membership.process_id, what)
        except VinferError:
            self._is_refused = True
            time.sleep(REFUSAL_SECONDS)
            raise

    def lacks(self, position: int, name: str, why: str) -> NoReturn:
        """Tell the leader that this member has no bundle for a model.

        Raises:
            BundleError: always, with the reason.
        """
        self.compare(f"model{position}", {"missing": why}, f"model {name}")
        raise AssertionError

    def prepare(self, position: int, name: str, manifest: Manifest) -> tuple[int, ...]:
        """Compare the bundle of the next model, and return the pages that its KV cache has.

        Raises:
            BundleError: the leader has another bundle, or a number of pages that this one cannot have.
        """
        self.compare(f"model{position}", bundle_facts(manifest), f"model {name}")
        num_pages = tuple(self._group.told(0, f"pages{position}")["num_pages"])
        most = manifest.page_plan.most_pages()
        if len(num_pages) != len(most) or not all(
            isinstance(count, int) and 0 < count <= limit
            for count, limit in zip(num_pages, most, strict=True)
        ):
            raise RecordError(f"model {name}: the leader says that the KV cache has {num_pages} pages")
        return num_pages

    def add(self, position: int, manifest: Manifest, model: LoadedModel) -> None:
        """Follow one more model, from the moment in which it is loaded on all members."""
        self._repeater.add(manifest, model)
        self._group.meet(f"loaded{position}", 86400.0)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except VinferError as error:
            end_process(f"this member ends: {error.message}", error.exit_code)
        except BaseException as error:
            logger.exception("this member has failed")
            end_process(f"this member ends: {type(error).__name__}", VinferError.exit_code)

    def _take_records(self) -> None:
        while self._stop_number is None:
            content = self._stream.record()
            self._heard_seconds = time.monotonic()
            self._outstanding.begin(self._repeater.number)
            done = self._repeater.repeat(content)
            if done.kind == Kind.READY:
                self._is_serving = True
                self._on_ready()
            elif done.kind == Kind.STOP:
                self._stop_number = done.number
            elif done.kind == Kind.FAIL and not self._is_refused:
                end_process("this member ends: the leader says that the group has failed", 1)
            self._enqueued.put((done.number, done.outputs))

    def _wait_for_device(self) -> None:
        while True:
            number, outputs = self._enqueued.get()
            for output in outputs.values():
                output.block_until_ready()
            self._num_done = number
            self._outstanding.end(number)

    def _watch(self) -> None:
        while True:
            # The order matters: after the last record the leader may be gone at once.
            lost = self._stream.lost_leader(ANSWER_SECONDS if self._stop_number is None else 0.01)
            self._stream.answer(self._num_done)
            if self._stop_number is not None and (lost or self._num_done >= self._stop_number):
                self._stream.close()
                end_process(f"the leader has stopped: {self._summary()}", 0)
            if lost is not None and not self._is_refused:
                end_process(f"this member ends: {lost}", VinferError.exit_code)
            self._check_times()

    def _check_times(self) -> None:
        silence = time.monotonic() - self._heard_seconds
        age = self._outstanding.age_seconds
        if age > self._config.stall_seconds:
            end_process(
                f"this member ends: record {self._num_done + 1} has taken {age:.1f} s "
                f"(server.distributed.stall_seconds is {self._config.stall_seconds:g}); the stacks of all "
                "threads follow",
                VinferError.exit_code,
                with_stacks=True,
            )
        # A record that takes long keeps others waiting, which is no silence of the leader. Nor is a thread
        # that waits while models are loaded; the end of the connection is noticed in any case.
        if self._is_serving and silence > self._config.heartbeat_seconds and age == 0.0:
            end_process(
                f"this member ends: the leader has been silent for {silence:.1f} s "
                f"(server.distributed.heartbeat_seconds is {self._config.heartbeat_seconds})",
                VinferError.exit_code,
            )

    def _summary(self) -> str:
        return ", ".join(filter(None, (f"{self._repeater.num_programs} programs repeated", self.on_stop())))
