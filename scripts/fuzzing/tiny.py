"""The fuzzed server: a tiny random model under two names, for which every route answers.

Knows the metrics that show whether it is healthy afterwards; knows nothing of schemathesis.
"""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.process import serving, vinfer_command
from tiny.checkpoints import checkpoint

READY_SECONDS = 1800.0

# Answers are short by default, so that time goes into cases; a case may still request more.
YAML = """\
server: {{max_n: 4}}
models:
  - {{name: tiny, source: {source}, sampling: {{max_tokens: 8}}, {common}}}
  - {{name: terse, source: {source}, sampling: {{max_tokens: 3, temperature: 0}}, {common}}}
"""
COMMON = (
    "dtype: float32, max_model_len: 1024, num_slots: 8, streaming_chunks: 4, verify: 'off', "
    "prompt_logprobs: true, embeddings: mean, tool_parser: hermes, "
    "precompile: [{batch_size: 1, prefill_length: [32, 256]}, {batch_size: 4, prefill_length: 32}]"
)
# Metrics of each model; all must be zero once every client has its answer.
IDLE_METRICS = (
    "vinfer:num_requests_running",
    "vinfer:num_requests_waiting",
    "vinfer:post_ready_compiles_total",
)


@contextlib.contextmanager
def tiny_server(folder: Path) -> Iterator[str]:
    """Serve the model from a config in `folder`; yield its address."""
    config = folder / "tiny.yaml"
    config.write_text(YAML.format(source=checkpoint("llama"), common=COMMON))
    command = vinfer_command(config, None)
    with serving(command, ready_path="/readiness", timeout_seconds=READY_SECONDS) as (url, _):
        yield url


def fetch_json(url: str | urllib.request.Request) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def complaints_about_health(url: str) -> list[str]:
    """List what is wrong with the server: it must be ready, idle, without new compiles, and answering."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
            samples = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
        complaints = [
            sample for sample in samples if sample.startswith(IDLE_METRICS) and float(sample.rsplit(" ")[-1])
        ]
        # Any status other than 200 raises.
        fetch_json(f"{url}/readiness")
        body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 2, "ignore_eos": True}).encode()
        request = urllib.request.Request(
            f"{url}/v1/completions", body, headers={"Content-Type": "application/json"}
        )
        if fetch_json(request)["usage"]["completion_tokens"] != 2:
            complaints.append("a completion does not have the requested number of tokens")
    except OSError as error:
        return [f"{url} does not answer: {error}"]
    return complaints
