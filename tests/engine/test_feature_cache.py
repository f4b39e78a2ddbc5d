"""Rows of the feature array: pinned, shared, kept for later, evicted."""

from __future__ import annotations

from engine_requests import IMAGE_LENS, make_image

from vinfer.engine.feature_cache import FeatureCache

P, Q, R, S = (make_image(name) for name in "pqrs")


def encode_all(cache: FeatureCache) -> list[str]:
    images = cache.next_to_encode(100)
    cache.encoded(images)
    return [image.content_hash for image in images]


def test_an_image_is_encoded_once_for_all_who_bring_it() -> None:
    cache = FeatureCache(20)
    assert cache.pin([P, Q])
    assert cache.pin([Q, Q])
    assert not cache.are_encoded([P])
    assert encode_all(cache) == ["p", "q"]
    assert cache.are_encoded([P, Q])
    cache.unpin([P, Q])
    cache.unpin([Q, Q])
    assert cache.pin([Q])
    assert encode_all(cache) == []
    assert (cache.num_queries, cache.num_hits) == (5, 3)
    assert cache.usage_fraction == 8 / 20
    cache.check_integrity()


def test_each_image_has_rows_of_its_own() -> None:
    cache = FeatureCache(20)
    assert cache.pin([P, Q, R])
    rows = [row for image in (P, Q, R) for row in cache.rows_of(image)]
    assert len(set(rows)) == len(rows) == sum(IMAGE_LENS[name] for name in "pqr")
    assert set(rows) <= set(range(20))


def test_the_one_not_asked_for_the_longest_makes_room() -> None:
    cache = FeatureCache(18)
    for image in (P, Q, R, P):
        assert cache.pin([image])
        encode_all(cache)
        cache.unpin([image])
    # 17 of 18 rows are taken; evicting the oldest image, q, is enough for 5 more.
    assert cache.pin([make_image("q", start=1), P])
    assert encode_all(cache) == []
    cache.unpin([Q, P])
    assert cache.pin([S])
    assert encode_all(cache) == ["s"]
    cache.check_integrity()


def test_what_is_pinned_is_never_given_away() -> None:
    cache = FeatureCache(18)
    assert cache.pin([R, P])
    encode_all(cache)
    held = cache.rows_of(R)
    assert not cache.pin([S])
    assert not cache.pin([Q, S])
    assert (cache.num_queries, cache.num_hits) == (2, 0)
    cache.unpin([R, P])
    assert cache.pin([S])
    assert set(cache.rows_of(S)) & set(held)
    cache.check_integrity()


def test_who_leaves_before_the_encoder_takes_the_image_along() -> None:
    cache = FeatureCache(20)
    assert cache.pin([P])
    assert cache.pin([P, Q])
    cache.unpin([P, Q])
    assert [image.content_hash for image in cache.next_to_encode(100)] == ["p"]
    cache.unpin([P])
    assert cache.next_to_encode(100) == []
    assert cache.usage_fraction == 0
    cache.check_integrity()


def test_the_encoder_takes_so_many_at_once_in_order() -> None:
    cache = FeatureCache(40)
    assert cache.pin([R, P])
    assert cache.pin([Q])
    assert [image.content_hash for image in cache.next_to_encode(2)] == ["r", "p"]
    cache.encoded([R, P])
    assert [image.content_hash for image in cache.next_to_encode(2)] == ["q"]
