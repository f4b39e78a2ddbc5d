"""Two replicas behind HAProxy: a rolling restart under load, and a stream that arrives piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
from benchmark.process import free_port

from reliability_runs.client import Answer, completion, post
from reliability_runs.figure import Figure, Run, judged, skipped
from reliability_runs.server import tiny_server, wait_until

NUM_REQUESTS = 2000
CONCURRENCY = 8
# Probes: every half second, two failures.
DELAY_SECONDS = 3
CONFIG = """\
defaults
    mode http
    timeout connect 2s
    timeout client 120s
    timeout server 120s
frontend all
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    balance leastconn
    option httpchk GET /readiness
    default-server inter 500ms fall 2 rise 1
{servers}
"""


@contextlib.contextmanager
def _haproxy(tool: str, folder: Path, replicas: list[int]) -> Iterator[int]:
    port = free_port()
    servers = "\n".join(f"    server r{i} 127.0.0.1:{each} check" for i, each in enumerate(replicas))
    config = folder / "haproxy.cfg"
    config.write_text(CONFIG.format(port=port, servers=servers))
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([tool, "-db", "-f", str(config)], stdout=log, stderr=log)
        try:
            yield port
        finally:
            process.kill()
            process.wait()


class _Load:
    """Requests until the test says so, at least `NUM_REQUESTS`."""

    def __init__(self, port: int) -> None:
        self.answers: list[Answer] = []
        self.may_end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(port)))
        self._thread.start()

    async def _run(self, port: int) -> None:
        async def client(i: int) -> None:
            while not (self.may_end.is_set() and len(self.answers) >= NUM_REQUESTS):
                # Half of them as streams.
                body = completion(max_tokens=16, stream=len(self.answers) % 2 == 0)
                self.answers.append(await post(port, body))
                # So that the restarts lie within the requests, whatever the machine's speed.
                await asyncio.sleep(0 if self.may_end.is_set() else 0.05)

        await asyncio.gather(*(client(i) for i in range(CONCURRENCY)))

    def end(self) -> list[Answer]:
        self.may_end.set()
        self._thread.join()
        return self.answers


def rolling_restart(run: Run) -> list[Figure]:
    """Measure the restart of both replicas, one after the other."""
    restart = f"two replicas behind HAProxy, each restarted under load: 0 of {NUM_REQUESTS} requests fail"
    stream = "a stream through HAProxy arrives piece by piece"
    tool = shutil.which("haproxy")
    if tool is None:
        why = "haproxy is not in PATH"
        return [skipped("rolling", restart, why), skipped("14", stream, why)]
    version = subprocess.run([tool, "-v"], capture_output=True, text=True, check=True).stdout.split()[2]
    ports = [free_port(), free_port()]
    folders = [run.folder / f"replica-{i}" for i in range(2)]
    settings = {"drain_delay_seconds": DELAY_SECONDS, "drain_timeout_seconds": 60}
    with contextlib.ExitStack() as stack:
        replicas = [
            stack.enter_context(tiny_server(folder, server=settings, port=port))
            for folder, port in zip(folders, ports, strict=True)
        ]
        proxy = stack.enter_context(_haproxy(tool, run.folder, ports))
        _wait_for(proxy)
        num_pieces = _pieces(proxy)
        load = _Load(proxy)
        codes = []
        for old, folder, port in zip(replicas, folders, ports, strict=True):
            old.signal(signal.SIGTERM)
            codes.append(old.wait())
            stack.enter_context(tiny_server(folder, server=settings, port=port))
            # Until the proxy has noticed that it is back.
            time.sleep(2)
        answers = load.end()
    statuses = Counter(answer.status for answer in answers)
    cut = sum(
        answer.headers.get("content-type", "").startswith("text/event-stream")
        and not answer.body.replace(b"\r\n0\r\n\r\n", b"").rstrip().endswith(b"data: [DONE]")
        for answer in answers
    )
    return [
        judged(
            "rolling",
            restart,
            f"HAProxy {version}: {dict(statuses)}, {cut} streams cut, exit codes {codes}",
            set(statuses) == {200} and not cut and codes == [0, 0],
        ),
        judged(
            "14",
            stream,
            f"{num_pieces} pieces of a stream of 400 tokens; delay and loss (tc netem) were not made",
            num_pieces > 10,
        ),
    ]


def _wait_for(proxy: int) -> None:
    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{proxy}/readiness").status_code == 200
        return False

    wait_until(answers, "an answer of the proxy")


def _pieces(proxy: int) -> int:
    with httpx.stream(
        "POST",
        f"http://127.0.0.1:{proxy}/v1/completions",
        content=completion(max_tokens=400, stream=True),
        headers={"content-type": "application/json"},
        timeout=60,
    ) as response:
        return sum(1 for _ in response.iter_raw())
