"""What members must have in common, and what is said if they do not."""

from __future__ import annotations

import pytest

from vinfer.bundle.manifest import Manifest
from vinfer.errors import BundleError
from vinfer.hosts.agreement import bundle_facts, check_same, group_facts
from vinfer.version import __version__

FILES = {"a": "1", "b": "2"}


def manifest(key: str, files: dict[str, str]) -> Manifest:
    return Manifest.model_construct(key=key, files=files)


def test_the_same_bundle_is_the_same_whatever_the_order_of_its_files() -> None:
    ours, theirs = (bundle_facts(manifest("k", files)) for files in (FILES, {"b": "2", "a": "1"}))
    check_same(ours, theirs, 1, "model m")
    check_same(group_facts(2, ["m"]), group_facts(2, ["m"]), 1, "the group")


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        (bundle_facts(manifest("other", FILES)), "model m: bundle is other on member 1 and k on the leader"),
        (bundle_facts(manifest("k", {**FILES, "b": "3"})), "model m: files is "),
        ({"missing": "it is not there"}, "member 1, model m: it is not there"),
        ({}, "model m: bundle is null on member 1"),
    ],
)
def test_another_bundle_is_refused(member: dict[str, str], problem: str) -> None:
    with pytest.raises(BundleError, match=problem):
        check_same(bundle_facts(manifest("k", FILES)), member, 1, "model m")


def test_another_version_or_number_of_members_is_refused() -> None:
    leader = group_facts(2, ["m"])
    with pytest.raises(BundleError, match=f"vinfer is 0 on member 1 and {__version__} on the leader"):
        check_same(leader, {**leader, "vinfer": "0"}, 1, "the group")
    with pytest.raises(BundleError, match="num_processes is 3 on member 1 and 2 on"):
        check_same(leader, group_facts(3, ["m"]), 1, "the group")
    with pytest.raises(BundleError, match=r'models is \["n"\] on member 1 and \["m"\] on'):
        check_same(leader, group_facts(2, ["n"]), 1, "the group")
