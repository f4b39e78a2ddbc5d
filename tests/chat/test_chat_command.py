"""`vinfer chat` as a process, against the real server with a fake engine: one question, and a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server.server_processes import server_process

from vinfer.errors import AnswerError, ConfigError

pytestmark = pytest.mark.processes
VINFER = [sys.executable, "-m", "vinfer", "chat"]
# Sums of the ids of prompts are not worked out here: the fake engine answers in capital letters.
LETTERS = re.compile(r"[A-Z]{4,}")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server_process(tmp_path_factory.mktemp("server"), server={"port": 0}) as (_, address):
        yield address


def asked(url: str, *arguments: str, piped: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VINFER, url, *arguments], input=piped, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_pipe_gets_the_answer_alone(url: str) -> None:
    process = asked(url, "hi", "--field", "max_tokens=5", "--stats")
    assert process.returncode == 0, process.stderr
    assert re.fullmatch(r"[A-Z]{5}\n", process.stdout)
    assert "the answer was cut off: raise max_tokens" in process.stderr
    figures = (
        r"first token after \d\.\d\d s; [\d.]+ tokens/s; 5 tokens; prompt of \d+ tokens, \d+ of them cached"
    )
    assert re.search(figures, process.stderr)
    assert "\x1b" not in process.stderr


def test_piped_text_is_part_of_the_question(url: str) -> None:
    counts = []
    for arguments, piped in ((["hi"], ""), (["hi"], "a file\n"), ([], "a file\n")):
        process = asked(url, *arguments, "--field", "max_tokens=1", "--stats", piped=piped)
        assert process.returncode == 0, process.stderr
        [count] = re.findall(r"prompt of (\d+) tokens", process.stderr)
        counts.append(int(count))
    # Each byte is a token: "hi", "hi\n\na file", "a file".
    assert [count - counts[0] for count in counts] == [0, 8, 4]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "none", "hi"], ConfigError.exit_code, "--model is none; the server has fake"),
        (["--field", "temperature=9", "hi"], AnswerError.exit_code, "answers 400: temperature"),
        (["--field", "stream=false", "hi"], ConfigError.exit_code, "stream is no field to set"),
        (["--image", "none.png", "hi"], ConfigError.exit_code, "image none.png: No such file"),
        ([], ConfigError.exit_code, "standard input is empty: give a question"),
    ],
)
def test_errors_are_one_line(url: str, arguments: list[str], code: int, message: str) -> None:
    process = asked(url, *arguments)
    assert (process.returncode, process.stdout) == (code, "")
    [line] = process.stderr.splitlines()
    assert message in line


def test_a_target_that_is_neither() -> None:
    process = asked("localhost:8000", "hi")
    assert process.returncode == ConfigError.exit_code
    assert "localhost:8000 is neither a file nor a URL" in process.stderr
    process = asked("http://127.0.0.1:1", "hi")
    assert process.returncode == AnswerError.exit_code
    assert "cannot be reached" in process.stderr


def test_a_config_that_cannot_be_served_shows_the_end_of_the_log(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"models: [{{name: m, source: {tmp_path}/none}}]\ncache_dir: {tmp_path}\n", encoding="utf-8"
    )
    process = asked(str(config), "hi")
    assert process.returncode == AnswerError.exit_code
    assert "the server ended with exit code 3" in process.stderr
    assert f"{tmp_path}/none does not exist" in process.stderr


# The first terminal that the leader of a session opens is the one whose Ctrl-C it gets. What a shell runs in
# the background ignores that signal, and so do its children.
LEADER = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.open(os.ttyname(0), os.O_RDWR); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A process whose standard streams are a terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._fd, slave = pty.openpty()
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        self._process = subprocess.Popen(
            [sys.executable, "-c", LEADER, *command], env=environment, start_new_session=True, **streams
        )
        os.close(slave)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Read until a pattern is there, and return the text up to its end; it is not searched again."""
        until = time.monotonic() + 20
        while not (found := re.search(pattern, self.text)):
            assert select.select([self._fd], [], [], until - time.monotonic())[0], self.text
            self.text += os.read(self._fd, 4096).decode(errors="replace")
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def exit_code(self) -> int:
        with contextlib.suppress(OSError):
            while os.read(self._fd, 4096):
                pass
        os.close(self._fd)
        return self._process.wait(20)


def test_a_conversation_in_a_terminal(url: str, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "dumb"}
    terminal = Terminal([*VINFER, url], environment)
    terminal.wait_for(r"fake at http[^>]*> ")
    terminal.type("/set max_tokens 6\n")
    terminal.wait_for("> ")
    terminal.type("hi\n")
    terminal.wait_for(r"[A-Z]{6}\r\n")
    terminal.type("/stats\n")
    terminal.wait_for("6 tokens; prompt of")
    terminal.type("/nothing\n")
    terminal.wait_for("/nothing is no command: see /help")
    terminal.type("/set temperature 9\n")
    terminal.type("again\n")
    terminal.wait_for("answers 400: temperature")
    terminal.type("/set temperature\n/set max_tokens 100\n/set\n")
    terminal.wait_for(r'\{"max_tokens": 100\}')
    cancelled = num_cancelled(url)
    terminal.type("two \\\nlines\n")
    terminal.wait_for(LETTERS.pattern)
    # Ten tokens a second: the answer is far from its end.
    terminal.type("\x03")
    terminal.wait_for("stopped\r\n> ")
    # The server noticed, long before the 10 s that 100 tokens take.
    until = time.monotonic() + 5
    while num_cancelled(url) == cancelled and time.monotonic() < until:
        time.sleep(0.05)
    assert num_cancelled(url) == cancelled + 1
    terminal.type("/exit\n")
    assert terminal.exit_code() == 0
    history = tmp_path / "vinfer" / "chat_history"
    assert "/set max_tokens 6" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def num_cancelled(url: str) -> float:
    """Return how many requests the server gave up because their client left."""
    metric = r'^vinfer:requests_total\{.*outcome="aborted".*\} (\S+)$'
    return sum(map(float, re.findall(metric, httpx.get(f"{url}/metrics").text, re.MULTILINE)))
