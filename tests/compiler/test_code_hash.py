"""Which changes of our own code make another bundle, and that a stored hash is the one that was computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from vinfer.compiler.code_hash import code_hash, hash_package

BEFORE = '''
"""What the module owns."""

LIMIT = 8
"""Of rows."""


class Plan:
    """A plan."""

    rows: int = 1
    """How many."""

    def cut(self, rows=LIMIT, *, words=("a", "b")):
        """Cut it."""
        return f"{rows:>{self.rows}} {words!r}" if rows else "some text"


async def wait(plan):
    """Only this."""
'''

COUNTED = ("bundle/manifest.py", "image_processing.py", "compiler/plan.py", "checkpoint/families/llama.py")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name in (*COUNTED, "server/app.py"):
        path = tmp_path / "vinfer" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(BEFORE)
    return tmp_path / "vinfer"


def hash_with(package: Path, old: str, new: str) -> str:
    assert BEFORE.count(old) == 1
    (package / "compiler" / "plan.py").write_text(BEFORE.replace(old, new))
    return hash_package(package)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 8", "# A reason.\nLIMIT = 8  # and another"),
        ("LIMIT = 8", "LIMIT = (\n    0x8\n)"),
        ("What the module owns.", "Other words.\n\nAnd more of them."),
        ('"""What the module owns."""', ""),
        ('"""Of rows."""', ""),
        ("A plan.", "Another."),
        ('"""A plan."""', ""),
        ("How many.", "How many rows."),
        ('"""How many."""', ""),
        ("Cut it.", "Cut it short."),
        ('"""Cut it."""', ""),
        ("Only this.", "Only that."),
        ("\n\nclass", "\n\n\n\nclass"),
    ],
)
def test_comments_docstrings_and_form_change_nothing(package: Path, old: str, new: str) -> None:
    before = hash_package(package)
    assert hash_with(package, old, new) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 8", "LIMIT = 9"),
        ("LIMIT = 8", "LIMIT = 8.0"),
        ("LIMIT = 8", "limit = 8"),
        ("rows: int = 1", "rows: int = 2"),
        ("rows: int = 1", "rows: float = 1"),
        ("rows: int = 1", "rows: int"),
        ("rows=LIMIT", "rows=None"),
        ("rows=LIMIT", "rows"),
        ("def cut", "def cut_off"),
        ("class Plan", "class Plans"),
        ('("a", "b")', '("b", "a")'),
        ('("a", "b")', '["a", "b"]'),
        ("!r", ""),
        ("some text", "other text"),
        ("async def", "def"),
        ('"""Cut it."""', 'print("Cut it.")'),
    ],
)
def test_what_may_change_a_bundle_changes_the_hash(package: Path, old: str, new: str) -> None:
    before = hash_package(package)
    assert hash_with(package, old, new) != before


def test_the_files_that_decide_are_counted_and_no_others(package: Path) -> None:
    """Files of the build half and the seam count; the server does not."""
    hashes = [hash_package(package)]
    for name in COUNTED:
        (package / name).write_text("after = 1")
        hashes.append(hash_package(package))
    assert len(set(hashes)) == 5
    (package / "server" / "app.py").write_text("after = 1")
    assert hash_package(package) == hashes[-1]


def test_a_new_file_and_a_files_name_change_the_hash(package: Path) -> None:
    hashes = [hash_package(package)]
    (package / "bundle" / "manifest.py").rename(package / "bundle" / "facts.py")
    hashes.append(hash_package(package))
    (package / "compiler" / "other.py").write_text("")
    hashes.append(hash_package(package))
    assert len(set(hashes)) == 3


def test_a_stored_hash_is_that_of_these_bytes(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = hash_package(package, cache)
    assert before == hash_package(package)
    [stored] = cache.glob(".code-*")
    # What is stored is what is answered: nothing was parsed for this one.
    stored.write_text("f" * 64)
    assert hash_package(package, cache) == "f" * 64
    # Other bytes are looked up under another name, and parsed.
    plan = package / "compiler" / "plan.py"
    plan.write_text(BEFORE.replace("A plan.", "Another."))
    assert hash_package(package, cache) == before
    plan.write_text(BEFORE.replace("LIMIT = 8", "LIMIT = 9"))
    assert hash_package(package, cache) == hash_package(package) != before
    assert len(list(cache.glob(".code-*"))) == 3


@pytest.mark.parametrize("damage", [b"", b"abc", b"\xff" * 64, b"g" * 64])
def test_a_damaged_stored_hash_is_computed_again(package: Path, tmp_path: Path, damage: bytes) -> None:
    before = hash_package(package, tmp_path)
    [stored] = tmp_path.glob(".code-*")
    stored.write_bytes(damage)
    assert hash_package(package, tmp_path) == before
    assert stored.read_text() == before


def test_a_cache_that_cannot_be_written_to_is_no_error(package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert hash_package(package, tmp_path / "file") == hash_package(package)


def test_our_own_code_has_one_hash_per_process(tmp_path: Path) -> None:
    assert code_hash(tmp_path) == code_hash()
    [stored] = tmp_path.glob(".code-*")
    stored.unlink()
    assert code_hash(tmp_path) == code_hash()
    assert not stored.exists()
