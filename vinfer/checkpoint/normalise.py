"""Turns a config.json of transformers 4 or 5 into what EasyDeL 0.3 reads; one rule per fact.

Runs in the build half, on any thread. EasyDeL ignores unknown keys and then computes different
logits. So each key here is translated or known to be harmless; any other key stops the build.
Rules for every family are here, the rest in `families/`. Knows nothing of files and tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families import FAMILIES
from vinfer.checkpoint.family import Family, NormalisedConfig
from vinfer.checkpoint.key_check import refuse_unread_keys
from vinfer.checkpoint.unsupported import UNSUPPORTED_MODEL_TYPES


def normalise(raw: Mapping[str, object], where: str = "config.json") -> NormalisedConfig:
    """Translate a transformers config; `where` names its file in errors.

    Raises:
        CheckpointError: an unsupported family, feature or key, or a wrong value.
    """
    keys = ConfigKeys(raw, where)
    family = _family(keys)
    has_head = keys.values.get("architectures") != [family.headless]
    if not has_head:
        # Programs need a head, so a decoder without one gets its embedding, which is never sampled from.
        keys = keys.updated(tie_word_embeddings=True)
    found = family.translate(keys)
    refuse_unread_keys(keys, family.harmless)
    names = found.names
    if not names.optional_prefix:
        prefix = names.embedding.partition(".")[0] + "."
        names = dataclasses.replace(names, optional_prefix=prefix)
    return dataclasses.replace(found, names=names, facts=dataclasses.replace(found.facts, has_head=has_head))


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
    supported = [name for name in (family.architecture, family.headless) if name is not None]
    if architectures is not None and architectures not in [[name] for name in supported]:
        raise keys.refusal(
            "architectures", f"supported for model_type {model_type}: {' or '.join(supported)}"
        )
    return family
