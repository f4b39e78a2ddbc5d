"""`vinfer models inspect`: what a checkpoint is, from its headers and its tokenizer; weights are not read."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from vinfer.checkpoint.checkpoint import Checkpoint, num_parameters, open_checkpoint
from vinfer.checkpoint.source import resolve_source
from vinfer.compiler.plan import DTYPE_BYTES, default_model_len
from vinfer.errors import VinferError
from vinfer.text.chat_form import load_chat_forms
from vinfer.text.tokenizer import Tokenizer


def model_facts(source: str, *, revision: str | None) -> dict[str, Any]:
    """Return what vinfer reads from a checkpoint, as plain data.

    Raises:
        CheckpointError: what vinfer refuses of it, as a build would.
    """
    found = resolve_source(source, revision=revision)
    checkpoint = open_checkpoint(found)
    facts = checkpoint.facts
    count = num_parameters(checkpoint)
    return {
        "source": source,
        "path": str(found.path),
        "format": {"hf": "safetensors"}.get(found.kind, found.kind),
        "model_type": checkpoint.model_type,
        "num_parameters": count,
        "weights_bytes": {dtype: count * size for dtype, size in DTYPE_BYTES.items()},
        "stored_dtype": _stored_dtype(checkpoint),
        "num_layers": facts.num_layers,
        "hidden_size": facts.hidden_size,
        "num_attention_heads": facts.num_attention_heads,
        "num_kv_heads": facts.num_kv_heads,
        "vocab_size": facts.vocab_size,
        "num_positions": facts.num_positions,
        "default_max_model_len": default_model_len(checkpoint),
        "windows": sorted({window for window in facts.windows if window is not None}),
        "is_mixture": facts.is_mixture,
        "takes_images": checkpoint.vision is not None,
        "has_head": facts.has_head,
        "sampling_defaults": {
            name: value for name, value in checkpoint.generation.sampling.items() if name != "max_new_tokens"
        },
        **_chat_facts(checkpoint),
        "notes": list(checkpoint.notes),
    }


def _stored_dtype(checkpoint: Checkpoint) -> str | None:
    keys = checkpoint.hugging_face_config
    stated = keys.get("dtype") or keys.get("torch_dtype")
    return None if stated is None else str(stated)


def _chat_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the chat template and the tokenizer decide; a template that does not work is named."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        checkpoint.write_tokenizer(directory)
        try:
            forms = load_chat_forms(
                directory, Tokenizer.load(directory), tool_parser="auto", reasoning_parser="auto"
            )
        except VinferError as error:
            return {"chat_template": error.message}
    return {
        "chat_template": "found" if forms.template is not None else "none: only completions and embeddings",
        "calls_tools": forms.answers.tool_format is not None,
        "has_reasoning": forms.answers.has_reasoning,
    }
