"""Supported model families by transformers' `model_type`; each file states one rule per fact.

To add a family: translate its config.json here, name its EasyDeL classes in `compiler.easydel.families`,
add a tiny checkpoint to `tests/tiny/families`, and check it with the parity matrix (`scripts/parity`).
"""

from __future__ import annotations

from vinfer.checkpoint.families import (
    cohere,
    gemma,
    gemma3,
    glm,
    gpt,
    llama,
    llava,
    mistral,
    mixtures,
    olmo,
    phi,
    qwen2_vl,
    smollm,
    stablelm,
)
from vinfer.checkpoint.family import Family

_GROUPS = (
    llama,
    cohere,
    gemma,
    gemma3,
    glm,
    gpt,
    llava,
    mistral,
    mixtures,
    olmo,
    phi,
    qwen2_vl,
    smollm,
    stablelm,
)

FAMILIES: dict[str, Family] = {family.model_type: family for group in _GROUPS for family in group.FAMILIES}
