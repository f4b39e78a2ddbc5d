"""Every `curl` and every program of the documents, as it stands there, against the server of the quickstart.

A block that cannot run here says why in a comment before it: `<!-- not run: reason -->`. The static tests of
`tests/docs` check those too, as far as that is possible without a server.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from docs.pages import Block, blocks_of, written_pages
from docs.shell import SERVER, commands, http_call
from server_process import ServerProcess

# Generous: a small model on a busy machine, and at most a few hundred tokens.
SECONDS = 300


def _examples(language: str) -> list[Block]:
    return [block for block in blocks_of(written_pages(), language) if not block.not_run]


CALLS = [block for block in _examples("sh") if re.search("^curl ", block.text, re.MULTILINE)]
PROGRAMS = _examples("python")
# Three lines lie between two blocks that only an empty line separates.
ANSWERS = [
    (call, shown)
    for page in written_pages()
    for call, shown in itertools.pairwise(page.blocks)
    if call in CALLS and shown.language == "json"
    if shown.line == call.line + len(call.text.splitlines()) + 3
]


def expected_status(block: Block) -> int:
    """Return the status that the sentence before a block announces: `This answers 400:`; else 200."""
    announced = re.search(r"\b(?:answers|gets|returns)(?: with)? (\d{3})\b[^.]*:$", block.before)
    return int(announced[1]) if announced else 200


def _status(words: list[str], scratch: Path) -> tuple[int, str]:
    """Run one `curl` command; without curl, send what it would."""
    if curl := shutil.which("curl"):
        body = scratch / "body"
        output = ["--silent", "--show-error", "--output", str(body), "--write-out", "%{http_code}"]
        done = subprocess.run(
            [curl, *output, *words[1:]], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout), body.read_text()
    call = http_call(words)
    response = httpx.request(
        call.method, call.url, headers=dict(call.headers), content=call.body, timeout=SECONDS
    )
    return response.status_code, response.text


@pytest.mark.parametrize("block", CALLS, ids=lambda block: block.place)
def test_calls(block: Block, server: ServerProcess, tmp_path: Path) -> None:
    for words in commands(block.text.replace(SERVER, server.url)):
        if words[0] == "curl":
            status, answer = _status(words, tmp_path)
            assert status == expected_status(block), answer
            # A stream that fails has the status 200 all the same.
            assert 'data: {"error"' not in answer, answer


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.place)
def test_programs(block: Block, server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(block.text.replace(SERVER, server.url))
    done = subprocess.run(
        [sys.executable, file], capture_output=True, text=True, timeout=SECONDS, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("call", "shown"), ANSWERS, ids=[shown.place for _, shown in ANSWERS])
def test_answers(call: Block, shown: Block, server: ServerProcess, tmp_path: Path) -> None:
    """JSON right after a call is its answer, every field of it."""
    _, answer = _status(commands(call.text.replace(SERVER, server.url))[0], tmp_path)
    assert json.loads(answer) == json.loads(shown.text)


def test_the_answer_about_france(server: ServerProcess) -> None:
    """The answer that several pages print is the one that the model gives."""
    call = next(block for block in CALLS if block.page == "README.md")
    sent = http_call(commands(call.text)[0])
    answer = server.http.post(sent.path, headers=dict(sent.headers), content=sent.body).json()
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."


def test_there_are_examples_of_each_kind() -> None:
    assert len(CALLS) > 15
    assert len(PROGRAMS) > 5
    assert len(ANSWERS) > 2


@pytest.mark.parametrize(
    ("before", "status"),
    [
        ("", 200),
        ("Ask it:", 200),
        ("A long prompt answers 400:", 400),
        ("It answers 503 while it starts.", 200),
    ],
)
def test_a_sentence_announces_another_status(before: str, status: int) -> None:
    assert expected_status(Block("docs/x.md", 1, "sh", "", None, before)) == status
