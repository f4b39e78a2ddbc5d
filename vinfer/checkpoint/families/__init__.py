"""The model families that vinfer serves, by transformers' `model_type`; one rule per fact in each file.

To add one: translate its config.json here, name its EasyDeL classes in `vinfer.build.easydel_families`, add a
tiny checkpoint to `tests/tiny/checkpoints.py`, and let the parity matrix say whether it is right.
"""

from __future__ import annotations

from vinfer.checkpoint.families import glm, gpt, llama, stablelm
from vinfer.checkpoint.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *llama.FAMILIES,
        *glm.FAMILIES,
        *gpt.FAMILIES,
        *stablelm.FAMILIES,
    )
}
