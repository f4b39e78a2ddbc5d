"""Runs a follower of a group: loads the same bundles as the leader, and repeats its dispatches.

The main thread serves the probes. Whatever happens ends the process at once: JAX would wait for all members
at exit.
"""

from __future__ import annotations

import functools
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vinfer.bundle.verification import check_spans
from vinfer.config import Config, ModelConfig
from vinfer.errors import BundleError, VinferError
from vinfer.hosts.follower import Follower, end_process
from vinfer.hosts.membership import Membership
from vinfer.launch.bundles import find_or_build
from vinfer.launch.devices import Target, WantedDevices, group_devices
from vinfer.launch.engine_start import load_checked, load_phase
from vinfer.server.http.probes import ProbeServer
from vinfer.server.http.serve import bind

if TYPE_CHECKING:
    from vinfer.engine.loading.compile_count import CompileCounter

logger = logging.getLogger(__name__)


def follow(
    config: Config, membership: Membership, *, wanted: WantedDevices | None, code_cache: Path
) -> NoReturn:
    """Follow the leader, and end the process with it.

    Raises:
        ConfigError, BindError: before anything has begun.
    """
    probes = ProbeServer(config.server, bind(config.server.host, config.server.port))
    follower = Follower(membership, config.server.distributed, on_ready=probes.be_ready)
    member = _Member(config, follower, wanted=wanted, code_cache=code_cache, probes=probes)
    threading.Thread(target=member.run, name="member", daemon=True).start()
    end_process("this member was told to end", probes.serve_until_end())


class _Member:
    """What a follower loads."""

    def __init__(
        self,
        config: Config,
        follower: Follower,
        *,
        wanted: WantedDevices | None,
        code_cache: Path,
        probes: ProbeServer,
    ) -> None:
        self._config = config
        self._follower = follower
        self._wanted = wanted
        self._code_cache = code_cache
        self._probes = probes
        self._dispatch_lock = threading.Lock()

    def run(self) -> None:
        """Join and load; on this thread nothing remains to be done afterwards."""
        try:
            self._load_all()
        except VinferError as error:
            end_process(f"this member ends: {error.message}", error.exit_code)
        except BaseException as error:
            logger.exception("this member could not load its models")
            end_process(f"this member ends: {type(error).__name__}", VinferError.exit_code)

    def _load_all(self) -> None:
        from vinfer.engine.loading.compile_count import CompileCounter

        counter = CompileCounter()
        # What is compiled for a model that is still being loaded does not count.
        counter.mark_ready()
        self._follower.on_stop = functools.partial(_tell_compiles, counter)
        self._follower.join([model.name for model in self._config.models])
        self._probes.has_joined()
        target = group_devices(self._wanted)
        for position, model in enumerate(self._config.models):
            self._load(position, model, target)

    def _load(self, position: int, model: ModelConfig, target: Target) -> None:
        try:
            bundle = find_or_build(
                model,
                where=f"models[{position}]",
                target=target,
                bundles_dir=self._config.bundles_dir,
                progress=lambda *_: None,
                builds=False,
            )
            manifest = bundle.manifest
            check_spans(bundle.directory, manifest, target.num_devices)
        except BundleError as error:
            self._follower.lacks(position, model.name, error.message)
        num_pages = self._follower.prepare(position, model.name, manifest)
        with load_phase():
            loaded = load_checked(
                bundle,
                target,
                num_pages=num_pages,
                code_roots=bundle.code_roots(self._code_cache),
                dispatch_lock=self._dispatch_lock,
                progress=lambda *_: None,
                verify_weights=model.verify_weights,
            )
        self._follower.add(position, manifest, loaded)
        logger.info("model %s is loaded on all members", model.name)


def _tell_compiles(counter: CompileCounter) -> str:
    return f"{counter.num_post_ready} programs compiled after they were loaded"
