"""Turns a config.json of transformers 4 or 5 into what EasyDeL 0.3 reads; one rule per fact.

Runs in the build half, on any thread. EasyDeL ignores unknown keys and then computes different
logits. So each key here is translated or known to be harmless; any other key stops the build.
Rules for every family are here, the rest in `families/`. Knows nothing of files and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families import FAMILIES
from vinfer.checkpoint.family import Family, NormalisedConfig
from vinfer.checkpoint.key_check import refuse_unknown_keys
from vinfer.checkpoint.unsupported import UNSUPPORTED_MODEL_TYPES


def normalise(raw: Mapping[str, object], where: str = "config.json") -> NormalisedConfig:
    """Translate a transformers config; `where` names its file in errors.

    Raises:
        CheckpointError: an unsupported family, feature or key, or a wrong value.
    """
    keys = ConfigKeys(raw, where)
    family = _family(keys)
    refuse_unknown_keys(keys, family)
    return family.translate(keys)


def _family(keys: ConfigKeys) -> Family:
    model_type = keys.string("model_type")
    if model_type in UNSUPPORTED_MODEL_TYPES:
        raise keys.refusal(
            "model_type", f"{UNSUPPORTED_MODEL_TYPES[model_type]}: choose one of {', '.join(FAMILIES)}"
        )
    if model_type not in FAMILIES:
        raise keys.refusal("model_type", f"supported: {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    architectures = keys.values.get("architectures")
    if architectures is not None and architectures != [family.architecture]:
        raise keys.refusal("architectures", f"supported for model_type {model_type}: {family.architecture}")
    return family
