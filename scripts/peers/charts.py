"""Draws the growth charts, in an environment of its own: nothing else here has matplotlib."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peers.environments import install
from peers.places import CHARTS, python
from peers.turns import say
from vinfer.errors import AnswerError


def draw_charts(document: Mapping[str, Any]) -> None:
    """Write one PNG per axis into docs/reports/speed/; without matplotlib the page has its tables only."""
    growth = document["parts"].get("growth")
    if not growth:
        return
    titles = {name: facts["title"] for name, facts in document["servers"].items()}
    try:
        install("charts")
    except AnswerError as error:
        say(f"no charts: {error.message}")
        return
    CHARTS.mkdir(exist_ok=True)
    program = Path(__file__).with_name("draw.py")
    for axis, points in growth.items():
        titled = {
            value: {titles.get(name, name): side for name, side in sides.items()}
            for value, sides in points.items()
        }
        command = [str(python("charts")), str(program), axis, str(CHARTS / f"{axis}.png")]
        subprocess.run(command, input=json.dumps(titled), text=True, check=True)
