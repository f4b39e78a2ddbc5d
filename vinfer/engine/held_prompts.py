"""Which slots hold the KV rows of which shared prompt: where a sibling can copy from.

Pure Python bookkeeping in the order in which work is enqueued, for the scheduler. A slot goes on holding a
prompt after its request has ended, until another prompt is written into it. The last row of a prompt counts
as not held: every request prefills its prompt's last token itself, under its own seed.
"""

from __future__ import annotations


class HeldPrompts:
    """Slots by the key of the prompt they hold (`Request.prompt_key`)."""

    def __init__(self) -> None:
        self._keys: dict[int, str] = {}

    def key_of(self, slot: int) -> str | None:
        return self._keys.get(slot)

    def slot_of(self, key: str, preferred: int) -> int | None:
        """Return a slot that holds a prompt, `preferred` where that one does; None where none does."""
        if self._keys.get(preferred) == key:
            return preferred
        return next((slot for slot, held in self._keys.items() if held == key), None)

    def hold(self, slot: int, key: str) -> None:
        """Say that the whole prompt is in the slot."""
        self._keys[slot] = key

    def overwrite(self, slot: int, key: str | None) -> None:
        """Say that a prompt is about to be written; over the same prompt nothing changes."""
        if key is None or self._keys.get(slot) != key:
            self._keys.pop(slot, None)
