"""Checks that a family reads every key of a config, or that the key cannot change the logits.

Runs in the build half, on any thread. Knows no particular family.
"""

from __future__ import annotations

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.family import Family
from vinfer.checkpoint.known_keys import COMMON_KEYS, HARMLESS_KEYS, OFF_KEYS
from vinfer.checkpoint.quantization import is_mxfp4, read_fp8_scheme


def refuse_unknown_keys(keys: ConfigKeys, family: Family) -> None:
    """Check the keys of a config.json, or of a config inside one, by its family's rules.

    Raises:
        CheckpointError: an unknown key, or a switch with an unsupported value.
    """
    if not is_mxfp4(keys):
        read_fp8_scheme(keys)
    for key, value in keys.values.items():
        if value is None or key in COMMON_KEYS or key in family.keys:
            continue
        if key in OFF_KEYS:
            if value != OFF_KEYS[key]:
                raise keys.refusal(key, f"only {OFF_KEYS[key]!r} is supported")
        elif key not in HARMLESS_KEYS and key not in family.harmless:
            raise keys.refusal(
                key,
                "vinfer does not know this key and cannot tell whether it changes the logits: remove it "
                "from the file if it does not",
            )
