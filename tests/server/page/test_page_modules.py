"""The page's pure modules under Node, and its samples of code run against a server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_engine import START, letters
from running_server import RunningServer

from vinfer.server import page

NODE = shutil.which("node")
STATIC = Path(page.__file__).parent / "static"
MAX_LINES = 300

pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed")


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay the modules where Node takes `.js` as modules, beside their test."""
    folder = tmp_path_factory.mktemp("modules")
    for file in (*STATIC.glob("*.js"), Path(__file__).with_name("modules.test.mjs")):
        shutil.copy(file, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


def node(folder: Path, *arguments: str) -> str:
    assert NODE is not None
    done = subprocess.run([NODE, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def test_the_pure_modules(modules: Path) -> None:
    assert "# fail 0" in node(modules, "--test", "--test-reporter=tap", "modules.test.mjs")


def sample(folder: Path, kind: str, url: str, body: dict[str, object]) -> str:
    given = json.dumps([kind, url, body, False])
    return node(
        folder,
        "--input-type=module",
        "--eval",
        f'import {{ codeSample }} from "./samples.js"; process.stdout.write(codeSample(...{given}));',
    )


@pytest.mark.parametrize(("kind", "program"), [("curl", "bash"), ("python", sys.executable)])
def test_a_sample_runs_and_sends_the_same_body(
    modules: Path, server: RunningServer, kind: str, program: str
) -> None:
    """Quotes of each language in the text must survive."""
    hostile = "it's \"x\" $HOME `id` \\n JSON\nJSON\n'''é\u2028"
    body = {
        "model": "fake",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 3,
        "top_k": 2,
        "stop": [hostile],
    }
    text = sample(modules, kind, server.url + "/", body)
    done = subprocess.run([program], input=text, capture_output=True, text=True, timeout=60)
    assert letters(START, 3) in done.stdout, done.stderr
    (request,) = server.engine.requests
    assert request.params.top_k == 2


def test_files_stay_small() -> None:
    lengths = {file.name: len(file.read_text().splitlines()) for file in STATIC.iterdir()}
    assert len(lengths) <= 20
    assert max(lengths.values()) <= MAX_LINES
