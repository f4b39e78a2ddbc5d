"""The answers of transformers, from a separate process, so that torch is not loaded in the tests.

    python reference.py FILE.gguf
    < {"checked": [[prompt ids, answer ids], ...], "generated": [[prompt ids, length], ...]}

The weights come from transformers' own GGUF reader, in float32; its conversion of the tokenizer is not used.
`checked`: for each token of the answer, the reference's choice given the prompt and the answer so far, and by
how much it leads: (best id, second id, best logit - second logit). An answer that agrees at every step is the
greedy answer. `generated`: the reference's own greedy answers of that length.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


def load(file: Path) -> PreTrainedModel:
    """Load as `from_pretrained(..., gguf_file=...)` does, which requires accelerate without using it."""
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    weights = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=skeleton)["tensors"]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    left_out, unknown = model.load_state_dict(weights, strict=False)
    # The head is tied to the embedding by the config.
    assert set(left_out) <= {"lm_head.weight"}, left_out
    assert not unknown, unknown
    assert config.tie_word_embeddings or not left_out
    return model.eval()


def check(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> list[tuple[int, int, float]]:
    """Return the reference's choice for each token of an answer."""
    ids = torch.tensor([[*prompt, *answer]])
    # The logits at a position decide the next token.
    logits = model(ids).logits[0, len(prompt) - 1 : -1]
    values, indices = logits.topk(2)
    return [
        (int(best), int(second), float(value[0] - value[1]))
        for (best, second), value in zip(indices, values, strict=True)
    ]


def generate(model: PreTrainedModel, prompt: list[int], length: int) -> list[int]:
    """Return the reference's greedy answer, ignoring stop tokens."""
    ids = torch.tensor([prompt])
    answer = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=length,
        min_new_tokens=length,
        eos_token_id=None,
        pad_token_id=0,
    )
    return [int(token) for token in answer[0, len(prompt) :]]


if __name__ == "__main__":
    request = json.load(sys.stdin)
    model = load(Path(sys.argv[1]))
    with torch.inference_mode():
        json.dump(
            {
                "checked": [check(model, prompt, answer) for prompt, answer in request["checked"]],
                "generated": [generate(model, prompt, length) for prompt, length in request["generated"]],
            },
            sys.stdout,
        )
