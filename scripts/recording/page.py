"""Screenshots of the page of a real server: chat and status, light and dark, on a desktop and a phone."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from chromium import Tab

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

QUESTION = (
    "What is the capital of France? Answer in one sentence, and add a short list of three of its museums."
)
SIZES = {"": (1100, 760), "-phone": (390, 760)}
# Of the status: enough requests for a while, so that charts have lines.
_BUSY = {"prompt": "Once upon a time", "max_tokens": 160, "ignore_eos": True}
_SECONDS_OF_CHARTS = 12
_ANSWER_SECONDS = 300


def take_screenshots(url: str, directory: Path) -> list[Path]:
    """Take every screenshot of the page of a server; return the files.

    Args:
        url: of a ready server whose first model chats.
    """
    from chromium import open_browser

    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    written = []
    with tempfile.TemporaryDirectory() as profile, open_browser(Path(profile)) as browser:
        for scheme in ("light", "dark"):
            for suffix, (width, height) in SIZES.items():
                tab = browser.open(f"{url}/", width, height, scheme)
                tab.wait("document.querySelector('#model').value")
                tab.type("#prompt", QUESTION)
                tab.press("Enter")
                _wait(tab, "document.querySelector('.assistant')?.textContent.length > 40")
                _wait(tab, "document.querySelector('#stop-answer').hidden")
                written.append(directory / f"page-chat{suffix}{'' if scheme == 'light' else '-dark'}.png")
                tab.screenshot(written[-1])
                threads = [threading.Thread(target=_keep_busy, args=(url, model)) for _ in range(3)]
                tab.click("#show-status")
                for thread in threads:
                    thread.start()
                tab.value(f"new Promise((done) => setTimeout(done, {_SECONDS_OF_CHARTS * 1000}))")
                written.append(directory / f"page-status{suffix}{'' if scheme == 'light' else '-dark'}.png")
                tab.screenshot(written[-1])
                for thread in threads:
                    thread.join()
    return written


def _wait(tab: Tab, condition: str) -> None:
    """Wait for a real model, which may take its time."""
    until = time.monotonic() + _ANSWER_SECONDS
    while not tab.value(f"Boolean({condition})"):
        if time.monotonic() > until:
            raise TimeoutError(condition)
        time.sleep(0.2)


def _keep_busy(url: str, model: str) -> None:
    httpx.post(f"{url}/v1/completions", json={"model": model, **_BUSY}, timeout=300)
