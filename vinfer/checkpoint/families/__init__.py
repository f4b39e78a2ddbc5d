"""The model families that vinfer serves, by transformers' `model_type`; one rule per fact in each file.

To add one: translate its config.json here, name its EasyDeL classes in `compiler.easydel.families`, add a
tiny checkpoint to `tests/tiny/families`, and let the parity matrix (`scripts/parity`) say whether it is
right.
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
