"""Typed access to untrusted configuration values, with errors that name file, key and value.

Runs in the build half, on any thread. Knows no model family.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from vinfer.errors import CheckpointError


class ConfigKeys:
    """One JSON object of a checkpoint (or the metadata of a GGUF file).

    A null key counts as absent, as in transformers.
    """

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self.values = values
        self.where = where

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def with_defaults(self, **defaults: object) -> ConfigKeys:
        """Return a copy with a family's defaults for the keys that the file does not state."""
        missing = {key: value for key, value in defaults.items() if not self.has(key)}
        return ConfigKeys({**self.values, **missing}, self.where)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = 2**31) -> int:
        """Read an integer in [minimum, maximum].

        Raises:
            CheckpointError: absent without a default, not an integer, or outside the limits.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.refusal(key, f"must be an integer from {minimum} to {maximum}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Read a finite number > 0.

        Raises:
            CheckpointError: absent without a default, not a number, or not finite and positive.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(key, "must be a number")
        # JSON has integers that no float holds; a comparison takes them, a conversion does not.
        if not 0 < value <= sys.float_info.max:
            raise self.refusal(key, "must be finite and greater than 0")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """Read true or false.

        Raises:
            CheckpointError: absent without a default, or not a boolean.
        """
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, "must be true or false")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        """Read a string.

        Raises:
            CheckpointError: absent without a default, or not a string.
        """
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.refusal(key, "must be a string")
        return value

    def section(self, key: str) -> ConfigKeys:
        """Read an object inside this one.

        Raises:
            CheckpointError: absent, or not an object.
        """
        value = self._value(key, None)
        if not isinstance(value, dict):
            raise self.refusal(key, "must be an object")
        return ConfigKeys(value, f"{self.where}: {key}")

    def refusal(self, key: str, reason: str) -> CheckpointError:
        """Return the error for a key whose value is unsupported or wrong; the caller raises it."""
        shown = repr(self.values.get(key))
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return CheckpointError(f"{self.where}: {key} = {shown}: {reason}")

    def _value(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise CheckpointError(
                    f"{self.where} has no {key}: this is not a complete checkpoint; download it again"
                )
            return default
        return value
