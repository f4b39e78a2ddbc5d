"""The page in headless Chromium against a server with a fake engine."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import PROGRAM, Browser, Tab, open_browser
from fake_engine import EOS, FakeEngine, fake_images, ids_of, served_model, with_manifest
from PIL import Image
from running_server import RunningServer, Start, run
from tool_requests import CALL, TOOLS

from vinfer.config import ServerConfig
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{% if part.type == 'image' %}<s>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
)
# In no package of Python: scripts/test installs it where npm is.
AXE = Path(__file__).parents[3] / ".venv/axe/node_modules/axe-core/axe.min.js"

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    """A model that reasons, calls tools and takes images."""
    engine, models = FakeEngine(max_model_len=8192), ModelTable(["fake"])
    model = served_model(engine, tokenizer, chat_template=TEMPLATE)
    form = dataclasses.replace(model.answer_form, has_reasoning=True)
    models.serve(with_manifest(dataclasses.replace(model, answer_form=form), images=fake_images(4)))
    with run(ServerConfig(port=0), models, engine) as running:
        yield running


@pytest.fixture
def server(shared: RunningServer) -> RunningServer:
    shared.engine.reset()
    return shared


def opened(browser: Browser, server: RunningServer, width: int = 1100, scheme: str = "light") -> Tab:
    tab = browser.open(f"{server.url}/", width, scheme=scheme)
    tab.wait("document.querySelector('#model').value === 'fake'")
    return tab


def ask(tab: Tab, text: str, num_answers: int = 1) -> None:
    tab.type("#prompt", text)
    tab.press("Enter")
    ended(tab, num_answers)


def ended(tab: Tab, num_answers: int = 1) -> None:
    answers = "document.querySelectorAll('.assistant')"
    tab.wait(f"{answers}.length === {num_answers} && document.querySelector('#stop-answer').hidden")


def says(server: RunningServer, text: str) -> None:
    server.engine.script = [*ids_of(text), EOS]


def copied(tab: Tab, selector: str) -> str:
    """Press a button that copies, and return what it copies."""
    tab.value("navigator.clipboard.writeText = async (text) => { window.copied = text; }; window.copied = ''")
    tab.click(selector)
    tab.wait("window.copied")
    found: str = tab.value("window.copied")
    return found


def test_an_answer_in_markdown(browser: Browser, server: RunningServer) -> None:
    says(
        server, "<think>hm</think># Title\n\n- **a**\n\n|x|\n|-|\n|1|\n\n```py\ncode\n```\n[l](https://x.org)"
    )
    tab = opened(browser, server)
    ask(tab, "hi")
    assert tab.text("#live").startswith("fake: # Title")
    shown = tab.value("document.querySelector('.markdown').innerHTML")
    assert shown.startswith("<h4>Title</h4><ul><li><strong>a</strong></li></ul>")
    assert tab.text(".markdown td") == "1"
    assert tab.text(".markdown pre") == "code"
    assert copied(tab, ".code button") == "code"
    assert tab.value("document.querySelector('.markdown a').rel") == "noopener noreferrer"
    assert tab.text(".reasoning div") == "hm"
    assert tab.value("document.querySelector('.reasoning').open") is False
    assert "tokens/s" in tab.text(".meta")
    assert tab.complaints() == []
    assert all(url.startswith(server.url) for url in tab.requested())


HOSTILE = """<script>window.bad = 1</script><img src=x onerror="window.bad = 1">
[a](javascript:window.bad=1) ![b](http://192.0.2.1/x.png) <a href="javascript:1">c</a>
| <b onmouseover=x> |
|---|
| <iframe srcdoc="x"> |
"""


def test_hostile_text_stays_text(browser: Browser, server: RunningServer) -> None:
    says(server, f"<think>{HOSTILE}</think>{HOSTILE}")
    tab = opened(browser, server)
    ask(tab, HOSTILE)
    inside = "document.querySelectorAll('#messages :is(script, img, iframe, b, [onerror])').length"
    assert tab.value(inside) == 0
    assert tab.value("[...document.querySelectorAll('#messages a')].map((a) => a.href)") == [
        "http://192.0.2.1/x.png"
    ]
    assert tab.value("window.bad") is None
    assert "<script>window.bad = 1</script>" in tab.text(".markdown")
    assert tab.complaints() == []
    assert all(url.startswith(server.url) for url in tab.requested())


def test_the_policy_holds_in_the_browser(browser: Browser, server: RunningServer) -> None:
    tab = opened(browser, server)
    tab.value(
        "{const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
        "document.body.append(s); const i = new Image(); i.src = 'http://192.0.2.1/x.png'}"
    )
    tab.value("fetch('http://192.0.2.1/').catch(() => 0)")
    assert tab.value("window.bad") is None
    assert sum("Content Security Policy" in text for text in tab.complaints()) >= 3


def test_settings_reach_the_request(browser: Browser, server: RunningServer) -> None:
    tab = opened(browser, server)
    for field, text in (("system", "be short"), ("temperature", "0.5"), ("seed", "7"), ("max_tokens", "3")):
        tab.type(f"#{field}", text)
    ask(tab, "hi")
    (request,) = server.engine.requests
    assert (request.params.temperature, request.params.seed, request.params.max_tokens) == (0.5, 7, 3)
    assert bytes(token - 4 for token in request.prompt_ids if token >= 4).startswith(b"system\nbe short")
    assert "cut off" in tab.text(".meta")
    tab.type("#schema", "{")
    tab.type("#prompt", "again")
    tab.press("Enter")
    assert "not JSON" in tab.text("#settings-problem")
    assert tab.value("document.activeElement.id") == "schema"
    assert len(server.engine.requests) == 1


def test_a_refusal_is_shown(browser: Browser, server: RunningServer) -> None:
    tab = opened(browser, server)
    tab.type("#temperature", "9")
    ask(tab, "hi")
    assert "temperature" in tab.text(".assistant .problem")


def test_stop_and_regenerate(browser: Browser, server: RunningServer) -> None:
    server.engine.seconds_per_event = 0.05
    tab = opened(browser, server)
    tab.type("#prompt", "hi")
    tab.press("Enter")
    tab.wait("document.querySelector('.markdown')?.textContent.length > 3")
    assert tab.value("document.querySelector('#send').disabled") is True
    tab.press("Escape")
    ended(tab)
    assert tab.text(".assistant .problem") == "Stopped."
    server.engine.wait_until_cancelled(1)
    server.engine.seconds_per_event = 0.0
    says(server, "second")
    tab.click("#again")
    tab.wait("document.querySelector('.markdown').textContent === 'second'")
    ended(tab)
    first, second = server.engine.requests
    assert first.prompt_ids == second.prompt_ids
    says(server, "third")
    ask(tab, "more", num_answers=2)
    assert b"second" in bytes(token - 4 for token in server.engine.requests[-1].prompt_ids if token >= 4)


def test_tools(browser: Browser, server: RunningServer) -> None:
    says(server, CALL)
    tab = opened(browser, server)
    tab.type("#tools", json.dumps(TOOLS))
    ask(tab, "weather?")
    assert tab.text(".call code") == "get_weather"
    assert json.loads(tab.text(".call pre")) == {"city": "Oslo"}
    says(server, "It rains.")
    tab.type(".call textarea", "rain-result")
    tab.value("[...document.querySelectorAll('.assistant button')].at(-1).click()")
    ended(tab, 2)
    assert tab.value("[...document.querySelectorAll('.markdown')].at(-1).textContent") == "It rains."
    prompt = bytes(token - 4 for token in server.engine.requests[-1].prompt_ids if token >= 4)
    assert b"rain-result" in prompt


def test_an_image_is_dropped(browser: Browser, server: RunningServer) -> None:
    file = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    tab = opened(browser, server)
    tab.value(
        f"{{const bytes = Uint8Array.from(atob('{data}'), (c) => c.charCodeAt(0));"
        "const dropped = new DataTransfer();"
        "dropped.items.add(new File([bytes], 'a.png', {type: 'image/png'}));"
        "document.querySelector('#composer').dispatchEvent("
        "new DragEvent('drop', {dataTransfer: dropped, bubbles: true, cancelable: true}))}"
    )
    tab.wait("document.querySelector('#images img')?.naturalWidth === 9")
    assert tab.value("document.querySelector('#attach').hidden") is False
    ask(tab, "what is it?")
    assert tab.text(".assistant .problem") == ""
    assert len(server.engine.requests[0].images) == 1
    assert tab.value("document.querySelector('.user img').naturalWidth") == 9
    assert tab.value("document.querySelectorAll('#images img').length") == 0
    assert tab.complaints() == []


def test_the_key_is_kept_in_the_tab_and_nowhere_else(browser: Browser, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("secret-key\n")
    path.chmod(0o600)
    with start(api_keys_file=path) as server:
        tab = browser.open(f"{server.url}/")
        tab.wait("document.querySelector('#settings-problem').textContent.includes('needs an API key')")
        tab.type("#key", "secret-key")
        tab.press("Tab")
        tab.wait("document.querySelector('#model').value === 'fake'")
        for kind in ("curl", "python", "javascript"):
            text = copied(tab, f"[data-sample={kind}]")
            assert "YOUR_API_KEY" in text
            assert "secret-key" not in text
        ask(tab, "hi")
        assert tab.text(".assistant .problem") == ""
        assert tab.value("Object.values(sessionStorage)") == ["secret-key"]
        assert tab.value("localStorage.length") == 0
        assert tab.value("document.cookie") == ""
        assert not any("secret-key" in url for url in tab.requested())


@pytest.mark.parametrize("width", [390, 1100])
def test_status(browser: Browser, server: RunningServer, width: int) -> None:
    tab = opened(browser, server, width)
    ask(tab, "hi")
    tab.click("#show-status")
    tab.wait("document.querySelectorAll('#model-rows tr').length === 1")
    # The fake counts a request until it is cancelled, which comes soon after its end.
    assert re.search("[01] of 4", tab.text("#model-rows"))
    assert "25 %" in tab.text("#model-rows")
    tab.wait("document.querySelector('figure .line').getAttribute('d')")
    label = tab.value("document.querySelector('figure svg').getAttribute('aria-label')")
    assert re.search("now [01], from [01] to [01]", label)
    assert tab.value("document.documentElement.scrollWidth") == width
    # The table scrolls in itself, if its names are long.
    tab.value("document.querySelector('#model-rows th').textContent = 'a-long-name/'.repeat(9)")
    assert tab.value("document.querySelector('#status').scrollWidth") <= width


def test_without_metrics(browser: Browser, start: Start) -> None:
    with start(metrics=False) as server:
        tab = opened(browser, server)
        tab.wait("document.querySelector('#status-problem').textContent")
        assert "server.metrics is false" in tab.text("#status-problem")
        time.sleep(4.5)
        assert sum(url.endswith("/metrics") for url in tab.requested()) == 1


def test_the_keyboard_reaches_everything(browser: Browser, server: RunningServer) -> None:
    tab = opened(browser, server)
    tab.value("document.activeElement.blur()")
    reached = []
    for _ in range(25):
        tab.press("Tab")
        reached.append(tab.value("document.activeElement.id || document.activeElement.textContent.trim()"))
    order = [
        "Skip to the message field",
        "show-chat",
        "show-status",
        "key",
        "model",
        "system",
        "prompt",
        "send",
    ]
    assert [name for name in reached if name in order][: len(order)] == order


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed: see scripts/test")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1100])
def test_axe_finds_nothing(browser: Browser, server: RunningServer, width: int, scheme: str) -> None:
    says(server, f"<think>hm</think># Title\n\n|x|\n|-|\n|1|\n\n```py\ncode\n```\n[l](https://x.org)\n{CALL}")
    tab = opened(browser, server, width, scheme)
    tab.type("#tools", json.dumps(TOOLS))
    ask(tab, "hi")
    tab.value(f"{AXE.read_text()};0")
    for view in ("chat", "status"):
        tab.click(f"#show-{view}")
        found = tab.value("axe.run().then((run) => run.violations.map((v) => `${v.impact} ${v.id}`))")
        assert found == [], view
