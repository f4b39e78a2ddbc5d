"""lm-eval's `local-completions`: runs a small offline task and compares loglikelihoods with transformers.

python -m client_runs.programs.lm_eval_task URL
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from client_runs.places import ROOT, SERVER, python
from client_runs.raw import MODEL, RawServer
from client_runs.rows import NOT_RUN, Row, expect_equal, run_checks

TASK = "small"
LARGEST_DIFFERENCE = 1e-3
RAN = (
    f"`lm_eval --model local-completions`, loglikelihoods against transformers, limit {LARGEST_DIFFERENCE:g}"
)
TIMEOUT_SECONDS = 900

Pair = tuple[str, str]


def evaluate(raw: RawServer) -> str:
    pairs, found, accuracy = _harness(raw.url)
    expected = _transformers([_token_ids(raw, pair) for pair in pairs])
    largest = max(abs(own - other) for (own, _), (other, _) in zip(found, expected, strict=True))
    assert largest <= LARGEST_DIFFERENCE, f"the largest difference is {largest:.1e}"
    expect_equal([is_greedy for _, is_greedy in found], [is_greedy for _, is_greedy in expected])
    num_greedy = sum(is_greedy for _, is_greedy in found)
    return (
        f"{len(pairs)} continuations, largest difference {largest:.1e}, `is_greedy` equal (so {num_greedy}), "
        f"acc {accuracy}; tokenized by the server's `/tokenize`"
    )


def _harness(url: str) -> tuple[list[Pair], list[tuple[float, bool]], float]:
    """Run lm-eval; return (context, continuation) pairs, its result for each, and the accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        _run(
            [
                str(Path(sys.executable).with_name("lm_eval")),
                *("--model", "local-completions"),
                *(
                    "--model_args",
                    f"model={MODEL},base_url={url}/v1/completions,num_concurrent=4,max_length=1000",
                ),
                *("--tasks", TASK, "--include_path", "."),
                *("--output_path", folder, "--log_samples"),
            ],
            cwd=Path(__file__).parents[1] / "task",
            env={"HF_HOME": folder, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        )
        (samples,) = Path(folder).rglob("samples_*.jsonl")
        (results,) = Path(folder).rglob("results_*.json")
        documents = [json.loads(line) for line in samples.read_text().splitlines()]
        accuracy = json.loads(results.read_text())["results"][TASK]["acc,none"]
    pairs, found = [], []
    for document in documents:
        for place, [[logprob, is_greedy]] in enumerate(document["resps"]):
            arguments = document["arguments"][f"gen_args_{place}"]
            pairs.append((arguments["arg_0"], arguments["arg_1"]))
            found.append((float(logprob), is_greedy == "True"))
    return pairs, found, accuracy


def _token_ids(raw: RawServer, pair: Pair) -> tuple[list[int], int]:
    """Return the ids of a context with its continuation, and the number of context ids."""
    context, whole = (
        raw.post("/tokenize", prompt=text, add_special_tokens=False)["tokens"]
        for text in (pair[0], "".join(pair))
    )
    return whole, len(context)


def _transformers(asked: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("scripts", "tests/e2e"))
    printed = _run(
        [str(python(SERVER)), "-m", "client_runs.loglikelihoods"],
        cwd=ROOT,
        env={"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        stdin=json.dumps(asked),
    )
    return [(total, is_greedy) for total, is_greedy in json.loads(printed)]


def _run(command: list[str], *, cwd: Path, env: dict[str, str], stdin: str = "") -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **env},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
    assert done.returncode == 0, f"{command[0]}: {done.stderr.strip().splitlines()[-1:]}"
    return done.stdout


CHECKS: dict[str, Callable[[RawServer], Any]] = {RAN: evaluate}


def main(url: str) -> None:
    has_torch = subprocess.run([python(SERVER), "-c", "import torch"], capture_output=True, check=False)
    if has_torch.returncode:
        Row("lm-eval", version("lm-eval"), RAN, NOT_RUN, "no torch to compare with: run scripts/test").print()
    else:
        run_checks("lm-eval", CHECKS, RawServer(url))


if __name__ == "__main__":
    main(sys.argv[1])
