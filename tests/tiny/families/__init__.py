"""One tiny checkpoint per supported family, for the parity matrix; more of one where its config has a choice.

Prompts of the matrix are longer than every window and `original_max_position_embeddings` here.
"""

from __future__ import annotations

from tiny.families import glm, gpt, llama, stablelm
from tiny.models import TinyModel

FAMILY_MODELS: dict[str, TinyModel] = {
    **llama.MODELS,
    **glm.MODELS,
    **gpt.MODELS,
    **stablelm.MODELS,
}
