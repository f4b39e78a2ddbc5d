"""Garbage collection pauses while anybody is inside."""

from __future__ import annotations

import gc

import pytest

from vinfer.launch.collection import collection_paused


def test_it_pauses_until_the_last_one_has_left() -> None:
    assert gc.isenabled()
    with collection_paused():
        assert not gc.isenabled()
        with pytest.raises(KeyError), collection_paused():
            raise KeyError
        assert not gc.isenabled()
    assert gc.isenabled()
