"""The screen of scripts/record on what programs write, and the recordings in the documents."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))

from recording.capture import Frame, Step, record  # noqa: E402
from recording.screen import PLAIN, Screen, Style  # noqa: E402
from recording.svg import as_svg  # noqa: E402

SCENES = ("quickstart", "failed-config", "plan", "chat")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("one\r\ntwo", "one\ntwo"),
        ("three\rfo", "foree"),
        ("12345678", "12345\n678"),
        ("a\r\nb\x1b[1A\x1b[2Kc", " c\nb"),
        ("abc\b\b\x1b[K", "a"),
        ("abc\x1b[1Gx\x1b[2Cy", "xbcy"),
        ("\x1b]0;title\x07\x1b[?25lx\x07", "x"),
    ],
)
def test_the_screen_shows_what_a_terminal_does(written: str, shown: str) -> None:
    screen = Screen(5)
    screen.write(written)
    assert screen.text == shown
    # In pieces of one character, too.
    slow = Screen(5)
    for char in written:
        slow.write(char)
    assert slow.rows == screen.rows


def test_styles() -> None:
    screen = Screen(20)
    screen.write("\x1b[1;31ma\x1b[0mb\x1b[2mc\x1b[22;38;5;196md\x1b[39me")
    assert screen.rows[0] == (
        ("a", Style("#ff7b72", is_bold=True)),
        ("b", PLAIN),
        ("c", Style(is_dim=True)),
        ("d", Style("#ff0000")),
        ("e", PLAIN),
    )


def test_a_command_is_followed_and_typed_into(tmp_path: Path) -> None:
    source = "print('ready'); name = input('name? '); print('hello', name)"
    frames = record(
        [sys.executable, "-c", source],
        [Step(r"name\? $", "you\n")],
        shown="greet",
        columns=30,
        cwd=tmp_path,
        environment={},
        timeout_seconds=20,
    )
    texts = ["\n".join("".join(char for char, _ in row) for row in frame.rows) for frame in frames]
    assert texts[0] == "$ greet\n"
    assert "$ greet\nready\nname? " in texts
    assert texts[-1] == "$ greet\nready\nname? you\nhello you\n"


def test_each_frame_is_shown_in_its_turn() -> None:
    frames = [Frame(((("a", PLAIN),),), 1.0), Frame(((("<", Style("#ffffff")),),), 3.0)]
    svg = ET.fromstring(as_svg(frames, columns=80, title="x & y"))
    first, last = svg.findall(f"{SVG}g/{SVG}g")
    assert (first.get("visibility"), last.get("visibility")) == ("hidden", "visible")
    [timing] = last.findall(f"{SVG}animate")
    assert (timing.get("dur"), timing.get("values"), timing.get("keyTimes")) == (
        *("4.0s", "hidden;visible", "0.0000;0.2500"),
    )
    assert "".join(last.itertext()).strip() == "<"


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("scene", SCENES)
def test_the_recordings_are_there_and_name_no_machine(scene: str, columns: int) -> None:
    text = (ROOT / "docs" / "recordings" / f"{scene}-{columns}.svg").read_text()
    svg = ET.fromstring(text)
    shown = "".join(svg.itertext())
    assert "$ " in shown
    assert not any(place in shown for place in ("/tmp/", "/home/", "/root/", "Traceback"))
    width = float(svg.get("viewBox", "").split()[2])
    assert width == pytest.approx(columns * 8.4 + 28, abs=1)
