"""A short run of scripts/bench against the real server: what it counts, and the JSON in its last line."""

from __future__ import annotations

import json

from server_process import ServerProcess, bench

SHORT = ("--streams", "1,3", "--rounds", "2", "--repeats", "2", "--new-tokens", "9")


def test_it_counts_every_token_and_prints_json_last(server: ServerProcess) -> None:
    before = server.metrics()["generation_tokens_total"]
    done = bench("--url", server.url, "--sampled", *SHORT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["load"]["sampling"]["temperature"] == 0.7
    runs = report["runs"]
    assert [run["streams"] for run in runs] == [1, 3]
    assert [run["num_requests"] for run in runs] == [2, 6]
    assert [run["num_tokens"] for run in runs] == [18, 54]
    # One negotiation request of 2 tokens, a warm-up of 8 tokens per stream, and each load twice.
    assert server.metrics()["generation_tokens_total"] - before == 2 + 4 * 8 + 2 * (18 + 54)
    for run in runs:
        assert 64 <= run["prompt_tokens"] <= 70
        assert 0 < run["itl_seconds"]["p50"] <= run["chunk_gap_seconds"]["p50"]
        assert run["ttft_seconds"]["p50"] < run["e2e_seconds"]["p50"] <= run["e2e_seconds"]["p99"]


def test_two_servers_are_compared_in_turns(server: ServerProcess) -> None:
    done = bench(
        "--pair", f"{server.url} {server.url}/v1", "--chat", *SHORT, "--rounds", "1", "--repeats", "1"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert [ratio["streams"] for ratio in report["ratios"]] == [1, 3]
    for place, ratio in enumerate(report["ratios"]):
        a, b = (report[side]["runs"][place]["tokens_per_second"] for side in "ab")
        assert ratio["tokens_per_second"] == a / b


def test_sampled_is_compared_with_greedy_in_turns(server: ServerProcess) -> None:
    done = bench("--url", server.url, "--against-greedy", *SHORT, "--rounds", "1", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert [report[side]["sampling"]["temperature"] for side in "ab"] == [0.7, 0]
    assert [ratio["streams"] for ratio in report["ratios"]] == [1, 3]
    for place, ratio in enumerate(report["ratios"]):
        a, b = (report[side]["runs"][place]["tokens_per_second"] for side in "ab")
        assert ratio["tokens_per_second"] == a / b


def test_a_server_that_is_not_there_is_one_line() -> None:
    done = bench("--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("bench: error: ")
    assert len(done.stderr.splitlines()) == 1
