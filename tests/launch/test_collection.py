"""Garbage collection pauses while anybody is inside."""

from __future__ import annotations

import gc

import pytest

from vinfer.launch.collection import collection_paused, leave_alone_what_is_there


def test_it_pauses_until_the_last_one_has_left() -> None:
    assert gc.isenabled()
    with collection_paused():
        assert not gc.isenabled()
        with pytest.raises(KeyError), collection_paused():
            raise KeyError
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_is_there_is_left_alone() -> None:
    frozen = gc.get_freeze_count()
    try:
        leave_alone_what_is_there()
        assert gc.get_freeze_count() > frozen + 1000
    finally:
        gc.unfreeze()
