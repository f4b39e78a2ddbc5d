"""The arrays and programs of one model on the devices, and the one place where a program is enqueued.

Whoever holds it says which program and with which inputs. Which arrays it takes besides, and where its
results go, follows from its shape. Any one thread at a time; knows no request and imports no JAX.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vinfer.bundle.manifest import ArraySpec
from vinfer.bundle.programs import ProgramShape
from vinfer.engine.program import Arrays, Program

OPEN_MASK_INPUT = "grammar_mask"
FEATURES_INPUT = "image_features"
HELD_INPUTS = (OPEN_MASK_INPUT, FEATURES_INPUT)
"""Inputs that may be arrays on the devices already; all others come from the host."""
ALL_ALLOWED = 0xFFFFFFFF
"""A word of a grammar mask with all bits set."""

Announce = Callable[[ProgramShape, Mapping[str, Any]], None]
"""Called with what is about to be enqueued, while the dispatch lock is held."""


class LoadedModel:
    """Weights, KV cache, state and programs of one model.

    Args:
        programs: every compiled program.
        open_masks: by shape, the grammar mask that allows everything, already on the devices, so that a
            dispatch without a grammar transfers no mask.
        dispatch_lock: shared by all models on the same devices and held only while enqueuing. Two models
            that enqueue collectives in different orders on the same devices would deadlock.
        image_weights, image_features: for a model with images, the encoder's weights and the feature array
            [feature rows, hidden]; otherwise empty.
        announce: tells other processes, which hold the other parts of the arrays.
    """

    def __init__(
        self,
        *,
        weights: Arrays,
        kv: Arrays,
        state: Arrays,
        programs: Sequence[Program],
        open_masks: Mapping[tuple[int, ...], Any],
        dispatch_lock: threading.Lock,
        image_weights: Arrays = (),
        image_features: Arrays = (),
        announce: Announce | None = None,
    ) -> None:
        self.weights = weights
        self.image_weights = image_weights
        self.image_features = image_features
        self.kv = kv
        self.state = state
        self.programs = {program.spec.shape: program for program in programs}
        self.dispatch_lock = dispatch_lock
        self._open_masks = dict(open_masks)
        self._announce = announce

    def open_mask(self, shape: ProgramShape) -> Any:
        """Return the grammar mask of a program on the devices, with all bits set.

        It is uint32 [rows, words], with one for each token of a draft in a verify program: [rows, length,
        words].
        """
        return self._open_masks[self.inputs_of(shape)[OPEN_MASK_INPUT].shape]

    def held_input(self, shape: ProgramShape, name: str) -> Any:
        """Return the array on the devices that an input of `HELD_INPUTS` stands for.

        Raises:
            KeyError: there is none.
        """
        if name == OPEN_MASK_INPUT:
            return self.open_mask(shape)
        if name == FEATURES_INPUT and self.image_features:
            return self.image_features[0]
        raise KeyError(name)

    def inputs_of(self, shape: ProgramShape) -> Mapping[str, ArraySpec]:
        """Return the specs of a program's inputs by name."""
        return self.programs[shape].inputs

    def filled(self, shape: ProgramShape, name: str, value: int) -> np.ndarray[Any, Any]:
        """Return an array for an input of a program, with one value everywhere."""
        return self.programs[shape].filled(name, value)

    def run(self, shape: ProgramShape, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Enqueue a program; return its outputs by name.

        Raises:
            BundleError: the program has other inputs than these.
        """
        program = self.programs[shape]
        encodes = shape.uses_image_features
        with self.dispatch_lock:
            if self._announce is not None:
                self._announce(shape, inputs)
            if encodes:
                self.image_features, _, outputs = program.run(
                    self.image_weights, self.image_features, (), inputs
                )
                return outputs
            kv, state, outputs = program.run(
                self.weights if shape.uses_weights else (),
                self.kv if shape.uses_kv else (),
                self.state if shape.uses_state else (),
                inputs,
            )
            if shape.uses_kv:
                self.kv = kv
            if shape.uses_state:
                self.state = state
        return outputs

    def release(self) -> None:
        """Give the memory of all arrays and programs back at once; nothing can be enqueued afterwards."""
        for array in (*self.weights, *self.image_weights, *self.image_features, *self.kv, *self.state):
            # Donated ones are deleted already.
            if not array.is_deleted():
                array.delete()
        self.programs.clear()
