"""The process around the engine: what it loads, how it starts, ends, fails and recovers.

Starts several servers, most of them from existing bundles; exit codes are those of `vinfer.errors`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from server_process import (
    CACHE,
    CONFIG,
    MODEL,
    ServerProcess,
    environment,
    failed_start,
    started,
    wait_until,
)
from tiny.checkpoints import checkpoint

BUILD_HALF = {"easydel", "eformer", "flax", "transformers", "torch", "ray", "wandb"}


def test_a_second_start_draws_the_same_has_no_build_half_in_it_and_drains(server: ServerProcess) -> None:
    with started(CONFIG) as second:
        second.wait_until_ready()
        assert "exporting" not in second.log
        # Only the seed decides, not the state of the process.
        assert second.draw(seed=11) == server.draw(seed=11)
        modules = second.modules()
        assert {"jax", "vinfer.engine.engine"} <= modules
        assert not BUILD_HALF & {name.partition(".")[0] for name in modules}
        # A request that is running at SIGTERM runs to its end, and no new request is accepted.
        body = {"model": MODEL, "prompt": "Once", "max_tokens": 150, "ignore_eos": True, "stream": True}
        with second.http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(line for line in lines if line)
            second.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "draining" in second.log, "the drain")
            late = second.complete(max_tokens=1)
            rest = [line for line in lines if line]
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "not_ready"
        assert rest[-1] == "data: [DONE]"
        events = [json.loads(line.removeprefix("data: ")) for line in [first, *rest[:-1]]]
        assert [event["choices"][0]["finish_reason"] for event in events if event["choices"]][-1] == "length"
        assert second.process.wait(180) == 0


@dataclasses.dataclass
class Crash:
    """A start that was killed during its build, and the next start."""

    left_behind: list[str]
    server: ServerProcess
    yaml: Path
    cache_dir: Path


@pytest.fixture(scope="module")
def crash(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crash]:
    """A config of two models: a bundle, and a tiny model whose build is killed halfway and started again."""
    folder = tmp_path_factory.mktemp("two-models")
    yaml = folder / "two.yaml"
    yaml.write_text(
        f"""
models:
  - name: tiny
    source: {checkpoint("llama")}
    dtype: float32
    mesh: {{tp: 1}}
    max_model_len: 128
    num_slots: 2
    precompile: [{{prefill_length: 32}}]
    prompt_logprobs: true
    embeddings: mean
    sampling: {{max_tokens: 5, temperature: 0}}
  - name: {MODEL}
    source: {bundle}
    dtype: float32
    sampling: {{max_tokens: 7, temperature: 0}}
"""
    )
    cache_dir = folder / "cache"
    bundles = cache_dir / "bundles"
    env = environment(VINFER_CACHE_DIR=str(cache_dir), VINFER_XLA_CACHE=str(CACHE / "test-code"))

    def is_half_written() -> bool:
        return any(path.is_file() for path in bundles.glob(".*-*/**/*")) if bundles.is_dir() else False

    with started(yaml, env=env) as killed:
        wait_until(is_half_written, "a half-written bundle", seconds=600)
        killed.process.kill()
        killed.process.wait()
    left_behind = [path.name for path in bundles.iterdir() if not path.name.startswith(".") and path.is_dir()]
    with started(yaml, env=env) as server:
        server.wait_until_ready()
        yield Crash(left_behind, server, yaml, cache_dir)
        assert server.terminate() == 0


def test_a_killed_build_leaves_no_bundle_and_the_next_start_builds_it(crash: Crash) -> None:
    assert crash.left_behind == []
    assert "tiny: exporting programs" in crash.server.log
    whole = list((crash.cache_dir / "bundles").glob("*/manifest.json"))
    assert len(whole) == 1


def test_two_models_answer_each_with_its_own_defaults(crash: Crash) -> None:
    models = [model["id"] for model in crash.server.http.get("/v1/models").json()["data"]]
    assert models == ["tiny", MODEL]
    answers = {}
    for name in models:
        body = {"model": name, "prompt": "Once upon a time", "ignore_eos": True}
        answers[name] = crash.server.http.post("/v1/completions", json=body).json()
    assert {name: answer["usage"]["completion_tokens"] for name, answer in answers.items()} == {
        "tiny": 5,
        MODEL: 7,
    }
    texts = {name: answer["choices"][0]["text"] for name, answer in answers.items()}
    assert texts["tiny"] != texts[MODEL]


def complete_tiny(crash: Crash, **fields: Any) -> dict[str, Any]:
    response = crash.server.http.post("/v1/completions", json={"model": "tiny", **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_prompts_scored_and_shared_compile_nothing(crash: Crash) -> None:
    """Chunks of 32 tokens; lm-eval's own request, and one that ends in the last row and generates nothing."""
    prompts = [[3 + (7 * place + length) % 200 for place in range(length)] for length in (1, 2, 32, 33, 100)]
    scored = complete_tiny(
        crash, prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    )
    for prompt, choice in zip(prompts, scored["choices"], strict=True):
        logprobs, tops = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
        assert len(logprobs) == len(tops) == len(choice["logprobs"]["tokens"]) == len(prompt) + 1
        assert logprobs[0] is tops[0] is None
        assert all(logprob <= max(top.values()) for logprob, top in zip(logprobs[1:], tops[1:], strict=True))
        # The generated token is greedy, so it is exactly the same float.
        assert logprobs[-1] == max(tops[-1].values())
    whole = complete_tiny(crash, prompt=[5] * 128, echo=True, logprobs=20, max_tokens=0)
    assert len(whole["choices"][0]["logprobs"]["tokens"]) == 128
    assert whole["usage"]["completion_tokens"] == 0
    for n in (2, 5):
        shared = complete_tiny(crash, prompt=prompts[-1], n=n, temperature=1.0, seed=n)
        assert shared["usage"]["prompt_tokens_details"] == {"cached_tokens": 99}
    together = complete_tiny(crash, prompt=[prompts[-1], prompts[-2], prompts[-1]], temperature=0)
    assert together["choices"][0]["text"] == together["choices"][2]["text"]
    assert crash.server.metrics()["post_ready_compiles_total"] == 0


def test_embeddings_compile_nothing(crash: Crash) -> None:
    """Alone, batched, and alongside generating requests; each time more requests than slots."""
    prompts = [[3 + (5 * place + length) % 200 for place in range(length)] for length in (1, 31, 32, 33, 128)]
    with openai.OpenAI(base_url=f"{crash.server.url}/v1", api_key="unused", max_retries=0) as client:

        def embed(sent: Any) -> list[list[float]]:
            answer = client.embeddings.create(model="tiny", input=sent)
            return [item.embedding for item in answer.data]

        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(complete_tiny, crash, prompt=[prompts[1], prompts[3]] * 4, max_tokens=9)
            together = embed(prompts)
            beside.result()
        alone = [embed(prompt)[0] for prompt in prompts]
        numbers = client.embeddings.create(model="tiny", input=prompts[3], encoding_format="float")
        assert numbers.data[0].embedding == alone[3]
    for one, other in zip(alone, together, strict=True):
        assert math.isclose(sum(number**2 for number in one), 1, rel_tol=1e-5)
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 1e-5
    assert alone[1] != alone[2]
    assert crash.server.metrics()["post_ready_compiles_total"] == 0


def test_a_model_without_embed_programs_says_so(crash: Crash) -> None:
    refused = crash.server.http.post("/v1/embeddings", json={"model": MODEL, "input": "Once"})
    assert refused.status_code == 400
    assert "models[1].embeddings: mean" in refused.json()["error"]["message"]


def test_a_model_without_score_programs_says_so(crash: Crash) -> None:
    refused = crash.server.complete(echo=True, logprobs=1)
    assert refused.status_code == 400
    assert "models[1].prompt_logprobs: true" in refused.json()["error"]["message"]
    assert crash.server.complete(echo=True).json()["choices"][0]["text"].startswith("Once upon a time")


def test_the_second_model_is_the_one_that_is_served_alone(crash: Crash, server: ServerProcess) -> None:
    def answer(to: ServerProcess) -> str:
        text: str = to.complete(max_tokens=7).json()["choices"][0]["text"]
        return text

    assert answer(crash.server) == answer(server)


def test_an_unknown_model_is_openais_404(crash: Crash) -> None:
    response = crash.server.chat("hi", model="gpt-4o")
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "gpt-4o" in error["message"]
    assert "tiny" in error["message"]


# Only the tiny model, which compiles in seconds if the cache is unusable.
ONLY_TINY = """
models:
  - {{name: tiny, source: {source}, mesh: {{tp: 1}}}}
"""


def corrupt(code: Path) -> None:
    for file in code.rglob("*.code"):
        file.write_bytes(b"no machine code")


def read_only(code: Path) -> None:
    shutil.rmtree(code, ignore_errors=True)
    code.mkdir(mode=0o500)


def a_file(code: Path) -> None:
    shutil.rmtree(code, ignore_errors=True)
    code.write_text("")


@pytest.mark.parametrize("damage", [corrupt, read_only, a_file])
def test_useless_machine_code_warns_and_serves(
    crash: Crash, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    if damage is read_only and os.geteuid() == 0:
        pytest.skip("root writes into read-only directories")
    (built,) = (path.parent for path in (crash.cache_dir / "bundles").glob("*/manifest.json"))
    bundle = Path(shutil.copytree(built, tmp_path / "bundle"))
    cache = tmp_path / "cache"
    for code in (bundle / "code", cache):
        damage(code)
    yaml = tmp_path / "tiny.yaml"
    yaml.write_text(ONLY_TINY.format(source=bundle))
    with started(yaml, env=environment(VINFER_XLA_CACHE=str(cache))) as server:
        server.wait_until_ready()
        expected = "is not used: it is damaged" if damage is corrupt else "machine code cannot be stored in"
        assert expected in server.log, server.log
        assert ", 0 of them loaded as machine code" in server.log
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 3, "ignore_eos": True}
        answer = server.http.post("/v1/completions", json=body).json()
        assert answer["usage"]["completion_tokens"] == 3
        assert server.terminate() == 0


def test_an_unknown_key_is_named_with_its_line_and_a_guess(tmp_path: Path) -> None:
    yaml = tmp_path / "x.yaml"
    yaml.write_text("models:\n  - name: a\n    source: b\n    num_slot: 4\n")
    code, line = failed_start(yaml)
    assert code == 2
    assert "x.yaml:4" in line
    assert "num_slots" in line


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    yaml = tmp_path / "x.yaml"
    yaml.write_text("models:\n  - {name: a, source: ./missing.gguf, mesh: {tp: 1}}\n")
    code, line = failed_start(yaml, "--port", 0)
    assert code == 3
    assert "missing.gguf" in line


def test_a_missing_config_is_named() -> None:
    code, line = failed_start("no-such.yaml")
    assert code == 2
    assert "no-such.yaml" in line


def test_a_port_in_use_is_named(server: ServerProcess) -> None:
    port = server.url.rpartition(":")[2]
    code, line = failed_start(CONFIG, "--port", port)
    assert code == 6
    assert port in line
    assert server.complete(max_tokens=1).status_code == 200


def test_a_mesh_that_does_not_divide_the_heads_is_refused() -> None:
    code, line = failed_start(CONFIG, "--port", 0, "--set", "models[0].mesh.tp=2", "--devices", "cpu:2")
    assert code == 2
    assert "9 attention heads and 3 KV heads" in line
    assert "legal tp: 1, 3, 9" in line


def test_a_mesh_larger_than_the_machine_is_refused() -> None:
    code, line = failed_start(CONFIG, "--port", 0, "--set", "models[0].mesh.tp=3")
    assert code == 7
    assert "--devices cpu:3" in line


def test_a_bind_beyond_this_machine_needs_keys() -> None:
    code, line = failed_start(CONFIG, "--host", "0.0.0.0", "--port", 0)
    assert code == 2
    assert "api_keys_file" in line


@pytest.fixture
def copy(bundle: Path) -> Iterator[Path]:
    """A copy of the bundle whose files are links: replace a file, never write into it."""
    with tempfile.TemporaryDirectory(prefix=".damaged-", dir=CACHE) as folder:
        target = Path(folder) / "copy"
        shutil.copytree(bundle, target, copy_function=os.link)
        yield target


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def flip_a_byte_of_a_program(bundle: Path) -> None:
    program = min((bundle / "programs").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(program.read_bytes())
    content[len(content) // 2] ^= 1
    replace(program, content)


def cut_the_weights_short(bundle: Path) -> None:
    weights = max((bundle / "weights").iterdir(), key=lambda path: path.stat().st_size)
    replace(weights, weights.read_bytes()[:-4096])


def lose_a_program(bundle: Path) -> None:
    next((bundle / "programs").iterdir()).unlink()


def edit_manifest(bundle: Path, edit: Callable[[dict], object]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    replace(path, json.dumps(manifest).encode())


DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a flipped byte": (flip_a_byte_of_a_program, ("programs/", "changed after the build")),
    "weights cut short": (cut_the_weights_short, ("weights/",)),
    "a lost program": (lose_a_program, ("programs/", "lacks")),
    "no JSON": (
        lambda bundle: replace(bundle / "manifest.json", b'{"format_version": 2,'),
        ("manifest.json",),
    ),
    "an unknown field": (
        lambda bundle: edit_manifest(bundle, lambda manifest: manifest.update(colour="red")),
        ("manifest.json", "colour"),
    ),
    "a newer format": (
        lambda bundle: edit_manifest(bundle, lambda manifest: manifest.update(format_version=99)),
        ("format_version is 99",),
    ),
    "another jax": (
        lambda bundle: edit_manifest(bundle, lambda manifest: manifest["versions"].update(jax="0.1.0")),
        ("versions.jax is 0.1.0; this process has",),
    ),
    "another platform": (
        lambda bundle: edit_manifest(bundle, lambda manifest: manifest.update(platform="tpu")),
        ("platform is tpu; this process has cpu",),
    ),
    "a larger mesh": (
        lambda bundle: edit_manifest(bundle, lambda manifest: manifest["mesh"].update(dp=4)),
        ("dp=4", "needs 4 devices"),
    ),
}


IN_EVERY_RUN = ("a flipped byte", "weights cut short", "a larger mesh")
"""Found before, during and instead of a load; `tests/bundle` has a test of what finds each of the others."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in IN_EVERY_RUN else pytest.mark.whole_matrix) for name in DAMAGES],
)
def test_a_damaged_or_foreign_bundle_is_refused(copy: Path, name: str) -> None:
    damage, words = DAMAGES[name]
    damage(copy)
    code, line = failed_start(copy, "--port", 0)
    assert code == 5
    for word in (*words, "run vinfer precompile"):
        assert word in line
