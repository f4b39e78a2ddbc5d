"""What `vinfer --help` loads: the time that it takes is the imports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from on_terminal import on_terminal

pytestmark = pytest.mark.processes
LOADED = """
import sys
from pathlib import Path
from vinfer.cli import main
sys.argv = ["vinfer", *sys.argv[1:]]
try:
    main()
finally:
    print(*sys.modules, sep="\\n", file=sys.stderr)
"""
HEAVY = {
    "asyncio", "httpx", "huggingface_hub", "jax", "jinja2", "markdown_it", "numpy", "PIL", "pygments", "rich",
    "starlette", "tokenizers", "uvicorn", "yaml",
}  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["serve", "--help"],
        ["plan", "--help"],
        ["chat", "--help"],
        ["bench", "--help"],
        ["config", "--help"],
        ["bundle", "--help"],
        ["models", "--help"],
        ["doctor", "--help"],
        ["serve"],
        [],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    process = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=False
    )
    loaded = set(process.stderr.splitlines())
    assert "typer" in loaded, process.stderr
    assert HEAVY & loaded == set()
    # Typer itself reads a command's arguments with pydantic.
    assert "pydantic" not in loaded or {*arguments} - {"--help", "--version"}
    ours = {name for name in loaded if name.startswith("vinfer.")}
    assert {name for name in ours if not name.startswith("vinfer.cli")} == {"vinfer.errors", "vinfer.version"}


def test_help_lists_every_command_in_whole_sentences() -> None:
    """Where a summary does not fit its line, it is cut with three dots."""
    for arguments in (["--help"], ["config", "--help"], ["bundle", "--help"], ["models", "--help"]):
        process = subprocess.run(
            [sys.executable, "-m", "vinfer", *arguments], capture_output=True, text=True, check=True
        )
        listed = process.stdout.split("Commands:\n")[1].splitlines()
        assert all(line.endswith(".") and not line.endswith("...") for line in listed), listed


def test_a_terminal_gets_panels_and_a_pipe_plain_lines() -> None:
    command = [sys.executable, "-m", "vinfer", "serve", "--help"]
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal(command, columns=80, TERM="xterm"))
    for panel in ("Arguments", "Server", "Configuration", "Devices"):
        assert f"─ {panel} ─" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.index("Example: vinfer serve") < shown.index("Server")
    piped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "─" not in piped
    assert all(option in piped and option in shown for option in ("--host", "--set", "--devices"))


def test_help_on_a_terminal_loads_nothing_of_a_server() -> None:
    """Rich takes a tenth of a second, and so is all that comes on top."""
    loaded = set(on_terminal([sys.executable, "-c", LOADED, "serve", "--help"], TERM="xterm").split())
    assert "rich" in loaded
    assert (HEAVY - {"rich", "pygments", "markdown_it"}) & loaded == set()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vinfer be", {"bench"}),
        ("vinfer bundle ", {"list", "inspect", "verify", "prune"}),
        ("vinfer serve --in", {"--insecure"}),
    ],
)
def test_shells_complete_commands_and_options(line: str, expected: set[str]) -> None:
    source = "import sys; from vinfer.cli import main; sys.argv = ['vinfer']; main()"
    words = {"_VINFER_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **words},
    )
    assert expected <= set(done.stdout.split())


def test_sigterm_ends_the_process_from_the_beginning() -> None:
    """As process 1 of a container, a process is not sent a signal that it has no handler for."""
    script = (
        "import time\nfrom vinfer import cli\n"
        "cli.app = lambda **_: (print('started', flush=True), time.sleep(60))\ncli.main()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        # Without a handler it would be -15.
        assert process.wait(20) == 128 + signal.SIGTERM


def test_config_diff_says_what_a_hangup_applies(tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text("models: [{name: m, source: org/m}]\n", encoding="utf-8")
    new.write_text(
        "server: {port: 9000, max_n: 3}\nmodels: [{name: m, source: org/m}, {name: n, source: org/n}]\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "vinfer", "config", "diff", str(old), str(new)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[:2] == ["server.port: 8000 -> 9000 (restart)", "server.max_n: 8 -> 3 (SIGHUP)"]
    assert lines[2].startswith('models[1]: null -> {"name": "n", "source": "org/n", ')
    assert lines[2].endswith("} (rebuild: another model)")
    assert len(lines) == 3
    command[-1] = str(old)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vinfer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_config_diff_as_json(tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text("models: [{name: m, source: org/m}]\n", encoding="utf-8")
    new.write_text(
        "server: {max_n: 3}\nmodels: [{name: m, source: org/m, mesh: {tp: 1}, prefix_cache: 'off'}]\n",
        encoding="utf-8",
    )
    assert json.loads(run("config", "diff", str(old), str(new), "--json").stdout) == [
        {"key": "server.max_n", "old": 8, "new": 3, "applied_by": "SIGHUP", "why": None},
        {
            "key": "models[0].mesh.tp",
            "old": -1,
            "new": 1,
            "applied_by": "rebuild",
            "why": "weights and programs are divided by it",
        },
        {
            "key": "models[0].prefix_cache",
            "old": "per_key",
            "new": "off",
            "applied_by": "restart",
            "why": None,
        },
    ]


def test_config_check(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("models: [{name: m, source: org/m}]\n", encoding="utf-8")
    process = run("config", "check", str(config))
    assert (process.returncode, process.stdout) == (0, f"{config}: right; models: m\n")
    assert json.loads(run("config", "check", str(config), "--json").stdout) == {"models": ["m"]}
    process = run("config", "check", str(config), "--set", "server.prot=1")
    assert (process.returncode, process.stdout) == (2, "")
    assert "did you mean port" in process.stderr
