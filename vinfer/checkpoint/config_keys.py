"""Typed access to untrusted configuration values, with errors that name file, key and value.

Runs in the build half, on any thread. It records what is read, so that what nobody reads can be refused.
Knows no model family.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping

from vinfer.errors import CheckpointError


class _Values(Mapping[str, object]):
    """Values by key; `read` gets the keys that somebody looked up, whether they were there or not."""

    def __init__(self, values: Mapping[str, object], read: set[str]) -> None:
        self.stated = values
        self.read = read

    def __getitem__(self, key: str) -> object:
        self.read.add(key)
        return self.stated[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stated)

    def __len__(self) -> int:
        return len(self.stated)


class ConfigKeys:
    """One JSON object of a checkpoint (or the metadata of a GGUF file).

    A null key counts as absent, as in transformers.

    Args:
        read: gets the keys that are looked up; shared by copies.
    """

    def __init__(self, values: Mapping[str, object], where: str, read: set[str] | None = None) -> None:
        self._values = _Values(values, set() if read is None else read)
        self.where = where

    @property
    def values(self) -> Mapping[str, object]:
        """The values as they are stated; to look one up is to read it."""
        return self._values

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def is_read(self, key: str) -> bool:
        """Return whether somebody has looked a key up."""
        return key in self._values.read

    def read_like(self, other: ConfigKeys) -> None:
        """Count as read what was read of another config, whose keys are stated here once more."""
        self._values.read.update(other._values.read)

    def updated(self, **changes: object) -> ConfigKeys:
        """Return a copy with other values; what is read there has been read here."""
        return ConfigKeys({**self._values.stated, **changes}, self.where, self._values.read)

    def with_defaults(self, **defaults: object) -> ConfigKeys:
        """Return a copy with a family's defaults for the keys that the file does not state."""
        stated = self._values.stated
        return self.updated(**{key: value for key, value in defaults.items() if stated.get(key) is None})

    def refuse_unread(self, reason: str, *, harmless: Collection[str] = ()) -> None:
        """Refuse the first key that nobody has looked up, as its meaning is unknown.

        Args:
            harmless: keys that need not be read.

        Raises:
            CheckpointError: names the key.
        """
        for key, value in self._values.stated.items():
            if value is not None and key not in self._values.read and key not in harmless:
                raise self.refusal(key, reason)

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
        shown = repr(self._values.stated.get(key))
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
