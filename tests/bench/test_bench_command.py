"""`vinfer bench` as a process, against the real server with a fake engine whose tokens are bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server.server_processes import server_process

from vinfer.errors import AnswerError, ConfigError

# Words of 3 to 9 bytes: prompts stay below the 128 tokens of the fake model.
pytestmark = pytest.mark.processes
SHORT = ("--streams", "1,3", "--requests", "2", "--prompt-tokens", "2-5", "--output-tokens", "4")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server_process(tmp_path_factory.mktemp("server"), server={"port": 0}) as (_, address):
        yield address


def bench(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vinfer", "bench", target, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_every_token_is_counted(url: str) -> None:
    metric = "vinfer:generation_tokens_total"
    before = generated(url, metric)
    done = bench(f"{url}/v1", *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)["run"]
    assert (run["model"], run["errors"]) == ("fake", {})
    assert [load["streams"] for load in run["loads"]] == [1, 3]
    assert [load["num_requests"] for load in run["loads"]] == [2, 6]
    assert [load["num_tokens"] for load in run["loads"]] == [8, 24]
    # A negotiation of 2 tokens, warm-ups of 8 per stream, and the loads.
    assert generated(url, metric) - before == 2 + 4 * 8 + 8 + 24
    for load in run["loads"]:
        # An event with a token every 0.1 s.
        assert 0.05 < load["itl_seconds"]["p50"] <= load["itl_seconds"]["p99"]
        assert 10 < load["prompt_tokens"] < 60


def generated(url: str, metric: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(metric))


def test_a_saved_run_is_shown_and_compared(url: str, tmp_path: Path) -> None:
    saved = tmp_path / "run.json"
    done = bench(url, *SHORT, "--chat", "--save", str(saved))
    assert done.returncode == 0, done.stderr
    assert "fake at http://127.0.0.1" in done.stdout
    assert "ITL, percentiles 10 to 99" in done.stdout
    assert "3 streams: " in done.stderr
    again = bench(str(saved), "--against", str(saved))
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(done.stdout)
    assert again.stdout.count("100 %") >= 2 * 7


def test_requests_that_fail_are_counted_and_fail_the_command(url: str) -> None:
    # Most prompts of 1 to 60 words are longer than the model's context of 128 bytes.
    done = bench(
        url, "--streams", "2", "--requests", "20", "--prompt-tokens", "1-60", "--output-tokens", "2", "--json"
    )
    assert done.returncode == AnswerError.exit_code
    [load] = (run := json.loads(done.stdout)["run"])["loads"]
    assert load["num_requests"] > 0
    assert load["num_errors"] == sum(run["errors"].values()) == 40 - load["num_requests"] > 0
    [line] = [line for line in done.stderr.splitlines() if line.startswith("vinfer: error")]
    assert f"{load['num_errors']} requests failed" in line


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("http://127.0.0.1:1",), AnswerError.exit_code, "Connection refused"),
        (("http://",), AnswerError.exit_code, "http:/v1/models is no URL of a server"),
        (("none.json",), ConfigError.exit_code, "none.json: No such file"),
        (("pyproject.toml",), ConfigError.exit_code, "pyproject.toml is no run of this vinfer bench"),
        (("http://h", "--streams", "1,0"), ConfigError.exit_code, "--streams is 1,0: write numbers"),
        (
            ("http://h", "--prompt-tokens", "9-2"),
            ConfigError.exit_code,
            "--prompt-tokens is 9-2: write a range",
        ),
        (("http://h", "--field", "stream=false"), ConfigError.exit_code, "--field is stream=false: write"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], code: int, message: str) -> None:
    done = bench(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    [line] = done.stderr.splitlines()
    assert message in line


def test_no_half_of_the_server_is_loaded() -> None:
    source = (
        "import sys; import vinfer.bench.run, vinfer.bench.tables\n"
        "print({'jax', 'numpy', 'starlette', 'httpx', 'uvicorn'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_load_needs_the_standard_library_alone() -> None:
    """scripts/bench runs where nothing is installed."""
    source = (
        "import sys; sys.path.insert(0, '.'); import vinfer.bench.figures, vinfer.bench.load\n"
        "known = {'vinfer', '__main__', *sys.stdlib_module_names}\n"
        "print({name.split('.')[0] for name in sys.modules} - known)"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
