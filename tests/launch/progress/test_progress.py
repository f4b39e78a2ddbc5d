"""Expected times, what is said of them, and how bars and lines show it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from on_terminal import on_terminal

from vinfer.launch.progress import clock as module
from vinfer.launch.progress.clock import PhaseClock, PhaseReport
from vinfer.launch.progress.lines import ProgressLines, described
from vinfer.launch.progress.times import BUILD_PHASES, FILE, START_PHASES, PhaseTimes, Work

WORK = Work(platform="cpu", weight_bytes=2_000_000_000, num_weights=100, num_programs=10)
CODE = Work(platform="cpu", weight_bytes=2_000_000_000, num_weights=100, num_programs=10, has_code=True)
ON_TPU = Work(platform="tpu", weight_bytes=2_000_000_000, num_weights=100, num_programs=10)


def test_times_follow_from_what_there_is_to_do(tmp_path: Path) -> None:
    times = PhaseTimes(tmp_path)
    assert times.expected("converting weights", WORK) == pytest.approx(6)
    assert times.expected("preparing programs", WORK) == pytest.approx(14)
    assert times.expected("preparing programs", CODE) == pytest.approx(0.7)
    assert times.expected("comparing with transformers", WORK) is None
    start = times.together(START_PHASES, WORK)
    assert start == pytest.approx(2 + 5 + 14 + 1)
    # A build runs here; of the start on a TPU nothing is known.
    assert times.together(BUILD_PHASES, ON_TPU) == times.together(BUILD_PHASES, WORK)
    assert times.together(START_PHASES, ON_TPU) is None


def test_measured_times_are_kept_per_platform(tmp_path: Path) -> None:
    PhaseTimes(tmp_path).record("loading weights", WORK, 20.0)
    times = PhaseTimes(tmp_path)
    assert times.expected("loading weights", WORK) == pytest.approx(20)
    half = Work(platform="cpu", weight_bytes=1_000_000_000, num_weights=1, num_programs=1)
    assert times.expected("loading weights", half) == pytest.approx(10)
    assert times.expected("loading weights", ON_TPU) is None
    times.record("loading weights", WORK, 10.0)
    assert PhaseTimes(tmp_path).expected("loading weights", WORK) == pytest.approx(15)


@pytest.mark.parametrize("content", ["", "[]", '{"x": "y"}', "{"])
def test_a_broken_file_of_times_is_no_error(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert PhaseTimes(tmp_path).expected("loading weights", WORK) == pytest.approx(5)


def test_times_in_a_directory_that_cannot_be_written_are_lost(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    PhaseTimes(tmp_path / "file").record("loading weights", WORK, 1.0)


def test_the_clock_adds_times_and_records_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    reports: list[PhaseReport] = []
    clock = PhaseClock(PhaseTimes(tmp_path), reports.append)
    clock("m", "starting jax", 0, 1)
    clock.expect("m", WORK)
    now = 103.0
    clock("m", "exporting programs", 0, 10)
    now = 107.0
    clock("m", "exporting programs", 5, 10)
    now = 111.0
    clock("m", "ready", 1, 1)
    now = 120.0
    clock("other", "exporting programs", 5, 10)
    now = 122.0
    clock("other", "exporting programs", 5, 10)
    elapsed = [(report.phase, report.elapsed_seconds, report.start_seconds) for report in reports]
    assert elapsed == [
        ("starting jax", 0, 0),
        ("exporting programs", 0, 3),
        ("exporting programs", 4, 7),
        ("ready", 0, 11),
        ("exporting programs", 0, 20),
        ("exporting programs", 2, 22),
    ]
    # Of a model of which nothing is known, what is done says how long the rest takes.
    assert reports[-1].expected_seconds == 4
    assert reports[2].expected_seconds == pytest.approx(8)
    stored = json.loads((tmp_path / FILE).read_text())
    assert stored == {"cpu: starting jax": 3.0, "exporting programs": pytest.approx(8 / 1000)}


def report(phase: str, done: int, total: int, elapsed: float, expected: float | None = None) -> PhaseReport:
    return PhaseReport("m", phase, done, total, elapsed, expected, elapsed + 1)


def test_a_report_in_words() -> None:
    assert described(report("importing easydel", 0, 1, 0, 20)) == "importing easydel, about 20 s"
    assert described(report("importing easydel", 0, 1, 0)) == "importing easydel"
    half = report("loading weights", 2**29, 2**30, 2, 4.4)
    assert described(half) == "loading weights 0.50 GiB of 1.00 GiB, about 2 s"
    assert described(report("preparing programs", 8, 8, 4, 4)) == "preparing programs 8/8"


def test_a_log_has_one_line_for_a_short_phase_and_a_few_for_a_long_one() -> None:
    lines: list[str] = []
    show = ProgressLines(lines.append)
    for done in range(9):
        show(report("short", done, 8, done / 10))
    for done in range(101):
        show(report("long", done, 100, done))
    assert [line.split(" (")[0] for line in lines] == [
        *(
            "m: short 0/8",
            "m: long 0/100",
            "m: long 25/100",
            "m: long 50/100",
            "m: long 75/100",
            "m: long 100/100",
        )
    ]


BARS = """
import logging, sys
from vinfer.launch.progress.clock import PhaseReport
from vinfer.launch.progress.display import progress_display
from vinfer.launch.terminal import configure_logging

configure_logging("info")
display = progress_display()
print(type(display).__name__)
for done in range(3):
    display(PhaseReport("m", "loading weights", done * 2**28, 2**29, done + 1.0, 4.0, done + 1.0))
    logging.getLogger("vinfer").info("line %d", done)
display(PhaseReport("m", "warming up", 0, 1, 0.0, None, 4.0))
display(PhaseReport("m", "ready", 1, 1, 0.0, None, 4.0))
display.close()
display.close()
logging.getLogger("vinfer").info("after")
"""


def test_bars_on_a_terminal_leave_log_lines_whole() -> None:
    text = on_terminal([sys.executable, "-c", BARS], TERM="xterm")
    assert "ProgressBars" in text
    assert "of about 4 s" in text
    assert "0.50 GiB of 0.50 GiB" in text
    assert all(f"INFO    line {number}" in text for number in range(3))
    assert text.rstrip().endswith("INFO    after")
    # The cursor is there again.
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, None])
def test_lines_elsewhere(environment: dict[str, str] | None) -> None:
    if environment is None:
        done = subprocess.run([sys.executable, "-c", BARS], capture_output=True, text=True, check=True)
        text = done.stdout + done.stderr
    else:
        text = on_terminal([sys.executable, "-c", BARS], **environment)
    assert "ProgressLines" in text
    assert "\x1b" not in text
    assert "m: loading weights 0.0 MiB of 0.50 GiB, about 3 s" in text


def test_logging_is_not_left_to_rich() -> None:
    """Importing the displays changes nothing."""
    assert not any(type(handler).__module__.startswith("rich") for handler in logging.getLogger().handlers)
