"""Images sent to a server process: one encoder run each, no compiles, and hostile images cost nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

from server_process import ServerProcess, bench, started, tiny_environment
from tiny.bundles import build
from tiny.checkpoints import CACHE
from tiny.hostile_images import HOSTILE_IMAGES, HOSTILE_LIMITS
from tiny.images import animated, data_url, encoded, noise

MAX_PER_REQUEST = 4
YAML = """
server:
  max_body_bytes: 8388608
  images: {{allow_remote: true, max_per_request: 4, max_pixels: {max_pixels}, max_frames: {max_frames}, \
max_bytes: {max_bytes}}}
models:
  - {{name: seeing, source: {bundle}, dtype: float32, task: image-text, max_queue: 256}}
"""
MIB = 2**20


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yaml = tmp_path_factory.mktemp("images") / "seeing.yaml"
    yaml.write_text(YAML.format(bundle=build("llava"), **HOSTILE_LIMITS))
    # Where other tests keep the code of the same programs.
    code = CACHE / "test-code"
    with started(yaml, env=tiny_environment(VINFER_XLA_CACHE=str(code))) as server:
        server.wait_until_ready()
        yield server
        assert server.metrics()["post_ready_compiles_total"] == 0
        assert server.terminate() == 0, server.log


def body(images: Sequence[str], text: str = "What is it?", **fields: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
    greedy = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    return {"model": "seeing", "messages": messages, **greedy, **fields}


def post(server: ServerProcess, sent: dict[str, Any]) -> httpx.Response:
    return server.http.post("/v1/chat/completions", json=sent)


def post_all(server: ServerProcess, bodies: Sequence[dict[str, Any]]) -> list[httpx.Response]:
    """Send all bodies at once."""

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=sent) for sent in bodies))

    return asyncio.run(run())


def texts(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [choice["message"]["content"] for choice in answer.json()["choices"]]


def image(seed: int) -> str:
    return data_url(encoded(noise(40, 33, seed=seed)))


def resident_bytes(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024


def test_an_image_in_fifty_requests_is_encoded_once(seeing: ServerProcess) -> None:
    before = seeing.metrics()
    one = image(1)
    answers = post_all(seeing, [body([one], f"Question {i}?") for i in range(50)])
    assert [answer.status_code for answer in answers] == [200] * 50
    after = seeing.metrics()
    encoded_now = after["num_images_encoded_total"] - before["num_images_encoded_total"]
    asked_now = after["mm_cache_queries_total"] - before["mm_cache_queries_total"]
    hits_now = after["mm_cache_hits_total"] - before["mm_cache_hits_total"]
    assert (encoded_now, asked_now, hits_now) == (1, 50, 49)


def test_text_never_runs_the_encoder(seeing: ServerProcess) -> None:
    before = seeing.metrics()
    assert {answer.status_code for answer in post_all(seeing, [body([], f"{i}") for i in range(8)])} == {200}
    after = seeing.metrics()
    for name in ("num_images_encoded_total", "mm_cache_queries_total"):
        assert after[name] == before[name]


def test_any_mix_of_images_compiles_nothing_and_changes_no_answer(seeing: ServerProcess) -> None:
    """Any number of images, new and known, sampled and constrained, at any concurrency."""
    seeds = itertools.count(100)
    knobs: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 3},
        {"n": 2, "temperature": 0.8, "seed": 5},
        {"structured_outputs": {"regex": "[a-z ]{2,5}"}, "ignore_eos": False},
        {"logprobs": True, "top_logprobs": 3},
    ]
    bodies = [
        body([image(next(seeds)) for _ in range(num_images)], "x" * (7 * num_images + 1), **fields)
        for fields in knobs
        for num_images in range(MAX_PER_REQUEST + 1)
    ]
    alone = [texts(post(seeing, sent)) for sent in bodies]
    assert [texts(answer) for answer in post_all(seeing, bodies)] == alone
    assert seeing.metrics()["post_ready_compiles_total"] == 0


@pytest.fixture
def costs_no_memory(seeing: ServerProcess) -> Iterator[None]:
    """Assert that the process does not grow; the first test has already warmed its allocators."""
    post_all(seeing, [body([image(seed)]) for seed in range(16)])
    before = resident_bytes(seeing)
    yield
    assert resident_bytes(seeing) - before < 48 * MIB


def assert_refused(answer: httpx.Response, param: str) -> str:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    # No heap address, path or decoder message.
    assert not re.search(r"0x[0-9a-f]{4,}|Traceback|BytesIO|PIL|site-packages", answer.text)
    message: str = error["message"]
    return message


@pytest.mark.usefixtures("costs_no_memory")
def test_hostile_files_are_refused_and_cost_nothing(seeing: ServerProcess) -> None:
    for _ in range(3):
        for name, (data, reason) in HOSTILE_IMAGES.items():
            answer = post(seeing, body([data_url(data)]))
            message = assert_refused(answer, "messages[0].content[0].image_url.url")
            assert re.search(reason, message) or not data, name
    good = post(seeing, body([data_url(animated("GIF", 5))]))
    assert good.status_code == 200, good.text


def test_a_hostile_file_costs_nobody_else(seeing: ServerProcess) -> None:
    good = body([image(7)])
    alone = texts(post(seeing, good))
    hostile = [body([data_url(data)]) for data, _ in HOSTILE_IMAGES.values()]
    answers = post_all(seeing, [*hostile, *[good] * 8])
    assert {answer.status_code for answer in answers[: len(hostile)]} == {400}
    assert [texts(answer) for answer in answers[len(hostile) :]] == [alone] * 8


@pytest.mark.parametrize("size", [(1, 1), (16384, 1), (1, 16384), (3, 7), (1000, 300)])
def test_the_sizes_at_the_edges_are_answered(seeing: ServerProcess, size: tuple[int, int]) -> None:
    answer = post(seeing, body([data_url(encoded(noise(*size)))]))
    assert answer.status_code == 200, answer.text


def test_no_inner_address_is_asked(seeing: ServerProcess) -> None:
    """The tests of `vinfer.images.fetch` cover other spellings, redirects and DNS rebinding."""
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        port = canary.getsockname()[1]
        hosts = ("127.0.0.1", "localhost", "0x7f.1", "[::ffff:127.0.0.1]", "ok@127.0.0.1", "169.254.169.254")
        messages = {
            assert_refused(
                post(seeing, body([f"http://{host}:{port}/a.png"])), "messages[0].content[0].image_url.url"
            )
            for host in hosts
        }
        with pytest.raises(BlockingIOError):
            canary.accept()
    assert len(messages) == 1


def test_too_many_images_are_refused(seeing: ServerProcess) -> None:
    answer = post(seeing, body([image(seed) for seed in range(MAX_PER_REQUEST + 1)]))
    message = assert_refused(answer, f"messages[0].content[{MAX_PER_REQUEST}].image_url.url")
    assert "max_per_request" in message


def test_a_client_that_leaves_takes_its_image_along(seeing: ServerProcess) -> None:
    with (
        pytest.raises(httpx.ReadTimeout),
        httpx.Client(base_url=seeing.url, timeout=httpx.Timeout(60, read=0.02)) as client,
    ):
        client.post("/v1/chat/completions", json=body([image(seed) for seed in range(4)], max_tokens=300))
    assert post(seeing, body([image(0)])).status_code == 200


def test_the_benchmark_measures_text_beside_images(seeing: ServerProcess) -> None:
    before = seeing.metrics()["num_images_encoded_total"]
    short = ("--streams", "2", "--rounds", "2", "--repeats", "1", "--new-tokens", "9", "--prompt-words", "9")
    done = bench("--url", seeing.url, "--beside-images", "2", *short)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    beside, alone = (report[side]["runs"][0] for side in "ab")
    # Requests that are kept open alongside the load are not part of it.
    assert (beside["num_requests"], alone["num_requests"]) == (4, 4)
    assert report["ratios"][0]["itl_seconds_p99"] == (
        beside["itl_seconds"]["p99"] / alone["itl_seconds"]["p99"]
    )
    assert seeing.metrics()["num_images_encoded_total"] > before
