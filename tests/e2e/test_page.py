"""The page in headless Chromium against the real server with the small real model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium import PROGRAM, Browser, open_browser
from server_process import ServerProcess

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def test_a_question_and_the_status(server: ServerProcess, browser: Browser) -> None:
    tab = browser.open(f"{server.url}/")
    tab.wait("document.querySelector('#model').value === 'smollm2'")
    tab.type("#temperature", "0")
    tab.type("#prompt", "What is the capital of France?")
    tab.press("Enter")
    tab.wait("document.querySelector('.assistant') && document.querySelector('#stop-answer').hidden")
    assert "Paris" in tab.text(".markdown")
    assert "tokens/s" in tab.text(".meta")
    tab.click("#show-status")
    tab.wait("document.querySelector('figure .line').getAttribute('d')")
    assert "ready" in tab.text("#model-rows")
    assert tab.complaints() == []
    assert all(url.startswith(server.url) for url in tab.requested())
