"""Members of a group as processes of this machine, each with one CPU device; and one process with as many."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from server_process import ROOT, SOON_SECONDS, free_port, tiny_environment, wait_until
from tiny.checkpoints import CACHE

READY_SECONDS = 900
HEARTBEAT_SECONDS = 4
STALL_SECONDS = 5
GONE_SECONDS = 10
"""What every death must be noticed within, by all members."""
SECRET = "0123456789abcdef" * 4


@dataclasses.dataclass
class Member:
    """A started process."""

    process: subprocess.Popen[str]
    http: httpx.Client
    log_path: Path
    failpoints: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def status(self, path: str) -> int:
        """Return the status of a probe; 0 if nobody answers."""
        with contextlib.suppress(httpx.TransportError):
            return self.http.get(path).status_code
        return 0

    def fail(self, line: str) -> None:
        """Ask for a failure; see `probe/failpoints.py`."""
        scratch = self.failpoints.with_suffix(".part")
        scratch.write_text(line)
        scratch.rename(self.failpoints)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        document: dict[str, Any] = response.json()
        return document


@dataclasses.dataclass
class Group:
    """The members; the first one is the leader."""

    members: Sequence[Member]

    @property
    def leader(self) -> Member:
        return self.members[0]

    @property
    def logs(self) -> str:
        return "\n".join(f"--- member {place}\n{member.log}" for place, member in enumerate(self.members))

    def wait_until_ready(self) -> None:
        """Wait for all probes."""

        def is_ready() -> bool:
            time.sleep(0.5)
            ended = [member.process.poll() for member in self.members]
            assert ended == [None] * len(ended), f"ended with {ended}:\n{self.logs}"
            return all(member.status("/readiness") == 200 for member in self.members)

        wait_until(is_ready, "readiness of all members", seconds=READY_SECONDS)

    def exit_codes(self, seconds: float) -> list[int]:
        """Wait until all members are gone; fail if one of them is not."""
        until = time.monotonic() + seconds
        codes = []
        for place, member in enumerate(self.members):
            try:
                codes.append(member.process.wait(max(until - time.monotonic(), 0.01)))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"member {place} is still there:\n{self.logs}") from None
        return codes

    def terminate(self) -> list[int]:
        """Send SIGTERM to all members and return their exit codes."""
        for member in self.members:
            member.process.send_signal(signal.SIGTERM)
        return self.exit_codes(SOON_SECONDS)


def written_config(
    folder: Path, bundles: Mapping[str, Path | str], distributed: Mapping[str, Any] | None
) -> Path:
    """Write a config of some bundles by name; of a group if `distributed` is given."""
    server: dict[str, Any] = {"drain_timeout_seconds": 60}
    if distributed is not None:
        secret = folder / "secret"
        secret.write_text(SECRET)
        secret.chmod(0o600)
        server["distributed"] = {
            "coordinator": f"127.0.0.1:{free_port()}",
            "stream_port": free_port(),
            "secret_file": str(secret),
            "heartbeat_seconds": HEARTBEAT_SECONDS,
            "stall_seconds": STALL_SECONDS,
            **distributed,
        }
    models = [
        {"name": name, "source": str(path), "dtype": "float32", "verify": "off"}
        for name, path in bundles.items()
    ]
    for model in models:
        if "llava" in model["name"]:
            model["task"] = "image-text"
    path = folder / "serve.yaml"
    path.write_text(json.dumps({"server": server, "models": models}))
    return path


@contextlib.contextmanager
def member(yaml: Path, folder: Path, *arguments: str, code: Path = CACHE / "test-code") -> Iterator[Member]:
    """Start `vinfer serve YAML ARGUMENTS`; kill it at the end if the test has not ended it."""
    folder.mkdir()
    port, log_path, failpoints = free_port(), folder / "log", folder / "failpoints"
    probe = Path(__file__).parents[1] / "probe"
    env = tiny_environment(
        VINFER_XLA_CACHE=str(code),
        VINFER_CACHE_DIR=str(folder / "cache"),
        FAILPOINTS_FILE=str(failpoints),
        PYTHONPATH=f"{probe}:{ROOT}",
    )
    command = [sys.executable, "-m", "vinfer", "serve", str(yaml), "--port", str(port), *arguments]
    with log_path.open("w") as log, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=env)
        try:
            yield Member(process, http, log_path, failpoints)
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def two_members(
    folder: Path,
    bundles: Mapping[str, Path | str],
    *,
    late_seconds: float = 0.0,
    of_follower: Sequence[str] = (),
    **distributed: Any,
) -> Iterator[Group]:
    """Start two processes of one group.

    Args:
        late_seconds: how much later the follower starts.
        of_follower: arguments that only the follower gets.
        distributed: keys of `server.distributed`.
    """
    yaml = written_config(folder, bundles, {"num_processes": 2, **distributed})
    place = "server.distributed.process_id"
    with contextlib.ExitStack() as stack:
        leader = stack.enter_context(member(yaml, folder / "leader", "--set", f"{place}=0"))
        if late_seconds:
            time.sleep(late_seconds)
            assert leader.status("/liveness") == 200
            assert leader.status("/readiness") == 503
        follower = member(yaml, folder / "follower", "--set", f"{place}=1", *of_follower)
        yield Group([leader, stack.enter_context(follower)])


@contextlib.contextmanager
def one_process(folder: Path, bundles: Mapping[str, Path | str]) -> Iterator[Group]:
    """Start one process with as many devices as two members have."""
    yaml = written_config(folder, bundles, None)
    with member(yaml, folder / "alone", "--devices", "cpu:2") as alone:
        yield Group([alone])
