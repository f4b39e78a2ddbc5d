"""Code in the documents is valid: JSON parses, Python compiles, and a body is one that its route takes.

`tests/e2e/test_documented_examples.py` runs what can be run.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from docs.pages import ROOT, Block, Page, all_pages, blocks_of, written_pages
from docs.shell import SERVER, HttpCall, commands, http_call

from vinfer.errors import RequestError
from vinfer.server.admin.app import ADMIN_ROUTES
from vinfer.server.fields.anthropic.messages import MESSAGES, MESSAGES_COUNT
from vinfer.server.fields.chat import CHAT
from vinfer.server.fields.completions import COMPLETION
from vinfer.server.fields.count import parse_count
from vinfer.server.fields.embeddings import EMBEDDING
from vinfer.server.fields.responses.body import RESPONSES
from vinfer.server.fields.tokenization import DETOKENIZE, parse_tokenize
from vinfer.server.route_table import ROUTES

LANGUAGES = {"sh", "python", "yaml", "json", "text"}

PARSERS: Mapping[str, Callable[[Mapping[str, Any], Any], object]] = {
    "/v1/chat/completions": CHAT.parse,
    "/v1/completions": COMPLETION.parse,
    "/v1/responses": RESPONSES.parse_as_chat,
    "/v1/messages": MESSAGES.parse_as_chat,
    "/v1/messages/count_tokens": MESSAGES_COUNT.parse_as_chat,
    "/v1/embeddings": EMBEDDING.parse,
    "/v1/count_tokens": parse_count,
    "/tokenize": parse_tokenize,
    "/detokenize": DETOKENIZE.parse,
}

# Blocks that show parts of several files, each under a comment with the file's path.
_EXCERPTS = "excerpts of several files"
_FILE_OF_EXCERPT = re.compile(r"^# ((?:vinfer|tests)/[\w/]+\.py)")


def _curl_commands(pages: Sequence[Page]) -> list[tuple[Block, list[str]]]:
    blocks = blocks_of(pages, "sh")
    return [(block, words) for block in blocks for words in commands(block.text) if words[0] == "curl"]


def _admin_problem(call: HttpCall) -> str | None:
    if not call.url.startswith("http://admin/"):
        return f"asks {call.url}, not http://admin"
    if (call.method, call.path) not in {(method, path) for method, path, _ in ADMIN_ROUTES}:
        return f"no such admin route: {call.method} {call.path}"
    return None if call.body is None or isinstance(json.loads(call.body), dict) else "no JSON object"


def _call_problem(call: HttpCall) -> str | None:
    if call.is_admin:
        return _admin_problem(call)
    if not call.url.startswith(f"{SERVER}/"):
        return f"asks {call.url}, not {SERVER}"
    if not any(
        call.method == method and re.fullmatch(path.replace("{id:path}", ".+"), call.path)
        for method, path in ROUTES
    ):
        return f"no such route: {call.method} {call.path}"
    if call.method == "GET":
        return None
    if call.headers.get("Content-Type") != "application/json":
        return "no Content-Type: application/json"
    try:
        PARSERS[call.path](json.loads(call.body or ""), "refuse")
    except (RequestError, json.JSONDecodeError) as error:
        return str(error)
    return None


def call_problems(pages: Sequence[Page]) -> list[str]:
    """Complain about `curl` commands that their route would refuse, whatever the model."""
    complaints = []
    for block, words in _curl_commands(pages):
        try:
            problem = _call_problem(http_call(words))
        except ValueError as error:
            problem = str(error)
        if problem:
            complaints.append(f"{block.place}: {problem}")
    return complaints


def syntax_problems(pages: Sequence[Page]) -> list[str]:
    """Complain about JSON and Python that do not parse, and about blocks without a known language."""
    complaints = []
    for block in (block for page in pages for block in page.blocks):
        if block.language not in LANGUAGES:
            complaints.append(f"{block.place}: language {block.language!r}")
        try:
            if block.language == "json":
                json.loads(block.text)
            elif block.language == "python" and block.not_run != _EXCERPTS:
                ast.parse(block.text)
        except (ValueError, SyntaxError) as error:
            complaints.append(f"{block.place}: {error}")
    return complaints


def excerpt_problems(pages: Sequence[Page]) -> list[str]:
    """Complain about lines that are not in the file that the comment above them names."""
    complaints = []
    for block in blocks_of(pages, "python"):
        if block.not_run != _EXCERPTS:
            continue
        source = ""
        for number, line in enumerate(block.text.splitlines(), block.line):
            if named := _FILE_OF_EXCERPT.match(line):
                file = ROOT / named[1]
                source = _squeezed(file.read_text()) if file.exists() else ""
            elif _squeezed(line) not in source:
                complaints.append(f"{block.page}:{number}: {line.strip()}")
    return complaints


def _squeezed(text: str) -> str:
    return re.sub(r",(?=[)\]}])|\s", "", text)


def test_every_body_is_one_that_its_route_takes() -> None:
    assert len(_curl_commands(written_pages())) > 15
    assert call_problems(written_pages()) == []


def test_json_and_python_parse() -> None:
    assert syntax_problems(all_pages()) == []


def test_excerpts_are_those_of_the_files() -> None:
    assert excerpt_problems(all_pages()) == []


def test_every_route_with_a_body_has_a_parser_here() -> None:
    assert {path for method, path in ROUTES if method == "POST"} == PARSERS.keys()


def test_a_documented_program_talks_to_the_documented_server() -> None:
    """Otherwise the test that runs it would ask a server of its own."""
    programs = [block for block in blocks_of(written_pages(), "python") if not block.not_run]
    assert len(programs) > 5
    # Anthropic's client adds `/v1` itself.
    urls = (f'base_url="{SERVER}/v1"', f'base_url="{SERVER}"')
    assert [block.place for block in programs if not any(url in block.text for url in urls)] == []


def test_wrong_calls_are_found() -> None:
    url, header = f"curl {SERVER}", "-H 'Content-Type: application/json'"
    bad = Page(
        "docs/bad.md",
        f"""```sh
{url}/v1/modles
curl http://localhost:8000/v1/models
curl --unix-socket s http://admin/drain
{url}/v1/models/a/b
{url}/v1/chat/completions -d '{{}}'
{url}/v1/chat/completions {header} -d '{{"model": "m"}}'
{url}/v1/chat/completions {header} -d '{{"model": m}}'
{url}/tokenize {header} -d '{{"prompt": "x", "add_special": true}}'
```

<!-- not run: no such model -->
```sh
{url}/v1/completions {header} -d '{{"model": "m", "prompt": "x", "temperature": 3}}'
```
""",
    )
    problems = [problem.partition(": ")[2] for problem in call_problems([bad])]
    assert problems[:4] == [
        "no such route: GET /v1/modles",
        f"asks http://localhost:8000/v1/models, not {SERVER}",
        "no such admin route: GET /drain",
        "no Content-Type: application/json",
    ]
    for problem, part in zip(
        problems[4:], ["messages", "Expecting value", "add_special", "temperature is 3"], strict=True
    ):
        assert part in problem


def test_wrong_syntax_is_found() -> None:
    bad = Page("docs/bad.md", "```json\n{'a': 1}\n```\n\n```python\nif x\n```\n\n```bash\nls\n```\n")
    problems = [problem.split(":")[1] for problem in syntax_problems([bad])]
    assert problems == ["2", "6", "10"]


def test_wrong_excerpts_are_found() -> None:
    bad = Page(
        "docs/bad.md",
        f"<!-- not run: {_EXCERPTS} -->\n```python\n# vinfer/server/route_table.py: ROUTES\n"
        "handler=health.version,\nhandler=health.versions,\n"
        "# vinfer/server/none.py\nx = 1\n```\n",
    )
    assert excerpt_problems([bad]) == [
        "docs/bad.md:5: handler=health.versions,",
        "docs/bad.md:7: x = 1",
    ]
