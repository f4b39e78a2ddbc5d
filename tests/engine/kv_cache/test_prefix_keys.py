"""Two pages have the same key if, and only if, everything that their contents depend on is the same."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Sequence

import pytest
from engine_requests import make_image
from hypothesis import given
from hypothesis import strategies as st

from vinfer.engine.kv_cache.prefix_keys import PrefixKeys
from vinfer.engine.request import RequestImage

SIZE = 4


def keys_of(
    tokens: Sequence[int] = range(12), scope: str = "s", images: Sequence[RequestImage] = (), size: int = SIZE
) -> PrefixKeys:
    return PrefixKeys(scope, tokens, images, size)


def pages_of(keys: PrefixKeys, num_pages: int = 3) -> list[bytes]:
    return [keys.of_page(place) for place in range(num_pages)]


def test_equal_requests_have_equal_keys_and_no_two_pages_have_the_same() -> None:
    keys = pages_of(keys_of())
    assert keys == pages_of(keys_of(list(range(12))))
    assert len(set(keys)) == 3


def test_a_different_token_changes_its_page_and_all_that_follow() -> None:
    before, after = pages_of(keys_of()), pages_of(keys_of([*range(5), 99, *range(6, 12)]))
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False]


def test_equal_tokens_behind_different_ones_are_different_pages() -> None:
    """The keys and values of a page depend on all tokens before it."""
    first, second = keys_of([1, 2, 3, 4, 5, 6, 7, 8]), keys_of([9, 9, 9, 9, 5, 6, 7, 8])
    assert first.of_page(1) != second.of_page(1)


def test_the_order_of_tokens_matters() -> None:
    assert keys_of([1, 2, 3, 4]).of_page(0) != keys_of([2, 1, 3, 4]).of_page(0)


def test_scopes_have_no_keys_in_common() -> None:
    assert not set(pages_of(keys_of(scope="s"))) & set(pages_of(keys_of(scope="t")))
    assert not set(pages_of(keys_of(scope=""))) & set(pages_of(keys_of(scope="s")))
    assert keys_of(scope="s").of_part(2) != keys_of(scope="t").of_part(2)


def test_keys_can_be_asked_for_in_any_order() -> None:
    forwards, backwards = keys_of(), keys_of()
    last = backwards.of_page(2)
    assert (backwards.of_page(0), backwards.of_page(1), last) == tuple(pages_of(forwards))


def test_tokens_of_the_answer_are_taken_in_as_they_become_known() -> None:
    tokens = [0, 1, 2]
    keys = keys_of(tokens)
    with pytest.raises(AssertionError):
        keys.of_page(0)
    tokens += [3, 4]
    assert keys.of_page(0) == keys_of().of_page(0)
    with pytest.raises(AssertionError):
        keys.of_page(1)


# Parts of pages.


def test_a_part_is_named_by_what_is_in_it_and_before_it() -> None:
    keys = keys_of()
    assert keys.of_part(6) == keys_of([*range(6), 99, 99]).of_part(6)
    assert keys.of_part(6) != keys_of([0, 0, *range(2, 6)]).of_part(6)
    assert keys.of_part(2) == keys_of([0, 1]).of_part(2)


def test_no_part_has_the_key_of_another_part_or_of_a_page() -> None:
    keys = keys_of()
    parts = [keys.of_part(end) for end in range(1, 12) if end % SIZE]
    assert len(set(parts) | set(pages_of(keys))) == len(parts) + 3


def test_a_part_is_no_page_of_a_smaller_size() -> None:
    """Two tokens of a page of four are not all that a page of four holds."""
    assert keys_of([0, 1, 0, 0]).of_part(2) != keys_of([0, 1, 0, 0]).of_page(0)


# Images.


def grid(image: RequestImage, rows: int, columns: int) -> RequestImage:
    return dataclasses.replace(image, token_grid=(rows, columns))


@pytest.mark.parametrize(
    ("images", "is_equal"),
    [
        ([make_image("q", 5)], [True, True, True]),
        # Its placeholders are 5 to 9, in the second and the third page.
        ([dataclasses.replace(make_image("q", 5), content_hash="other")], [True, False, False]),
        ([], [True, False, False]),
        ([dataclasses.replace(make_image("q", 5), num_tokens=4)], [True, False, False]),
        ([make_image("q", 6)], [True, False, False]),
        ([make_image("q", 4)], [True, False, False]),
        ([make_image("q", 3)], [False, False, False]),
        # The same number of placeholders in another form: its rotary positions differ.
        ([grid(make_image("q", 5), 5, 1)], [True, False, False]),
        # Another one behind it.
        ([make_image("q", 5), make_image("p", 10)], [True, True, False]),
    ],
)
def test_an_image_belongs_to_the_pages_of_its_placeholders(
    images: Sequence[RequestImage], is_equal: Sequence[bool]
) -> None:
    before, after = pages_of(keys_of(images=[make_image("q", 5)])), pages_of(keys_of(images=images))
    assert [old == new for old, new in zip(before, after, strict=True)] == is_equal


def test_an_image_belongs_to_the_part_that_has_some_of_it() -> None:
    with_image, without = keys_of(images=[make_image("q", 5)]), keys_of()
    assert with_image.of_part(5) == without.of_part(5)
    assert with_image.of_part(6) != without.of_part(6)


def test_tokens_cannot_be_written_so_that_they_look_like_an_image() -> None:
    """What follows the tokens in a hash is as long as the number before them says."""
    image = make_image("p", 1)
    text = repr((1, 3, image.token_grid)).encode() + b"p"
    padded = text.ljust(-(-len(text) // 8) * 8)
    forged = [
        0,
        1,
        2,
        3,
        *(int.from_bytes(padded[at : at + 8], sys.byteorder) for at in range(0, len(padded), 8)),
    ]
    assert keys_of([0, 1, 2, 3], images=[image]).of_page(0) != keys_of(forged, size=len(forged)).of_page(0)


# No client can compute a key.


def test_keys_are_different_in_every_process() -> None:
    code = (
        "from vinfer.engine.kv_cache.prefix_keys import PrefixKeys;"
        "print(PrefixKeys('s', range(12), (), 4).of_page(0).hex())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    key = keys_of().of_page(0)
    assert len(bytes.fromhex(other.stdout)) == len(key) == hashlib.sha256().digest_size
    assert other.stdout.strip() != key.hex()


@given(
    first=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    second=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    size=st.integers(1, 5),
)
def test_pages_and_parts_are_equal_where_the_tokens_are(
    first: list[int], second: list[int], size: int
) -> None:
    def named(tokens: list[int], end: int) -> bytes:
        keys = keys_of(tokens, size=size)
        return keys.of_part(end) if end % size else keys.of_page(end // size - 1)

    for end in range(1, min(len(first), len(second)) + 1):
        assert (named(first, end) == named(second, end)) == (first[:end] == second[:end])
