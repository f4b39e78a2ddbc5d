"""The reference child: transformers in float32, `python -m vinfer.parity.reference FD`. Only it knows torch.

A separate process, so that torch is never loaded in a server; see `vinfer.child_process`. It is sent the
source, then one question each, and answers each. Logits are passed in `.npy` files without pickle.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vinfer.checkpoint.checkpoint import Checkpoint, open_checkpoint
from vinfer.checkpoint.family import ONE_ROPE
from vinfer.checkpoint.safety import without_code
from vinfer.checkpoint.source import ResolvedSource
from vinfer.child_process import Say, child_main
from vinfer.errors import ReferenceUnavailableError
from vinfer.parity.figures import Logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _answer(say: Say) -> None:
    """Load the source, and answer questions until the input ends."""
    source = json.loads(sys.stdin.readline())
    model = load(ResolvedSource(**{**source, "path": Path(source["path"])}))
    say(versions={name: importlib.metadata.version(name) for name in ("transformers", "torch")})
    for line in sys.stdin:
        question = json.loads(line)
        found = answer_logits(model, question["prompt_ids"], question["answer_ids"])
        np.save(question["file"], found, allow_pickle=False)
        say(done=True)


def load(source: ResolvedSource) -> PreTrainedModel:
    """Load a checkpoint with transformers: float32, eager attention, none of the checkpoint's own code.

    Raises:
        CheckpointError: vinfer refuses the checkpoint; transformers has not read any of it.
        ReferenceUnavailableError: transformers builds a different model from the checkpoint.
    """
    checkpoint = open_checkpoint(source)
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if source.kind == "gguf":
        return _from_tensors(checkpoint)
    auto = AutoModelForCausalLM if checkpoint.vision is None else AutoModelForImageTextToText
    config = _without_unknown_padding(checkpoint.hugging_face_config, checkpoint.facts.vocab_size)
    with without_code(source.path, config) as directory:
        model: PreTrainedModel = auto.from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    correct_model(model)
    return model.eval()


def _without_unknown_padding(config: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Return a config whose padding is in the vocabulary, or torch would not make the embedding."""
    config = {
        key: _without_unknown_padding(value, vocab_size) if isinstance(value, dict) else value
        for key, value in config.items()
    }
    padding = config.get("pad_token_id")
    return {**config, "pad_token_id": None} if isinstance(padding, int) and padding >= vocab_size else config


def answer_logits(model: PreTrainedModel, prompt_ids: list[int], answer_ids: list[int]) -> Logits:
    """Return float32 [steps, vocab], the logits from which each token of an answer is chosen.

    Uses one forward pass over prompt and answer, without a cache.
    """
    import torch

    ids = torch.tensor([[*prompt_ids, *answer_ids[:-1]]])
    with torch.inference_mode():
        logits = model(ids, use_cache=False, logits_to_keep=len(answer_ids)).logits
    result: Logits = logits[0].float().numpy()
    return result


def _from_tensors(checkpoint: Checkpoint) -> PreTrainedModel:
    """Build transformers' model from the checkpoint's config and fill it with the checkpoint's own tensors.

    GGUF files may contain divisors of the rotary frequencies, which transformers' configs cannot express.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.for_model(**checkpoint.hugging_face_config)
    tensors = {
        name: torch.from_numpy(np.array(checkpoint.read(name), np.float32))
        for name in checkpoint.tensor_names()
    }
    model, loading = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    odd = {name: sorted(loading[name])[:3] for name in _ODDITIES if loading[name]}
    if odd:
        raise ReferenceUnavailableError(f"transformers does not accept the checkpoint's tensors: {odd}")
    rope = checkpoint.ropes.get(ONE_ROPE)
    if rope is not None and rope.frequency_divisors is not None:
        model.model.rotary_emb.inv_freq = torch.from_numpy(
            rope.inverse_frequencies(checkpoint.facts.num_positions)
        )
    evaluated: PreTrainedModel = model.eval()
    return evaluated


_ODDITIES = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def correct_model(model: PreTrainedModel) -> None:
    """Fix bugs of transformers 5.5.4 in a loaded model."""
    if model.config.model_type == "olmo3" and model.config.rope_parameters["rope_type"] != "default":
        _unscale_sliding_layers(model)


def _unscale_sliding_layers(model: PreTrainedModel) -> None:
    """Rotate the sliding layers of OLMo 3 with an unscaled table: see `vinfer.checkpoint.families.olmo`."""
    from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding

    config = copy.deepcopy(model.config)
    config.rope_parameters = {"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]}
    for layer, layer_type in zip(model.model.layers, config.layer_types, strict=True):
        if layer_type == "sliding_attention":
            layer.unscaled_rotary = Olmo3RotaryEmbedding(config)
            layer.register_forward_pre_hook(_rotate_unscaled, with_kwargs=True)


def _rotate_unscaled(layer: Any, arguments: Any, options: dict[str, Any]) -> Any:
    options["position_embeddings"] = layer.unscaled_rotary(arguments[0], options["position_ids"])
    return arguments, options


if __name__ == "__main__":
    sys.exit(child_main(_answer, failure=ReferenceUnavailableError, what="the reference failed: "))
