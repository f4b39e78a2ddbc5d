"""One tiny checkpoint per supported family, for the parity matrix; several if its config has variants.

The matrix's prompts are longer than every window and `original_max_position_embeddings` here.
"""

from __future__ import annotations

from tiny.families import (
    cohere,
    gemma,
    glm,
    gpt,
    llama,
    mistral,
    mixtures,
    olmo,
    phi,
    smollm,
    stablelm,
)
from tiny.models import TinyModel

_GROUPS = (llama, cohere, gemma, glm, gpt, mistral, mixtures, olmo, phi, smollm, stablelm)

FAMILY_MODELS: dict[str, TinyModel] = {
    name: model for group in _GROUPS for name, model in group.MODELS.items()
}

IN_EVERY_RUN = (
    "cohere2",
    "gemma2",
    "gemma3",
    "glm4",
    "gpt-neox",
    "gpt-oss",
    "gpt2",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3-yarn",
    "phi3-longrope",
    "qwen2-window",
    "qwen3-moe",
    "smollm3",
    "stablelm",
)
"""One per family; the others are only for `scripts/parity`. `test_parity.py` has Llama, Qwen2 and Qwen3."""
