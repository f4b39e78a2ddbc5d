"""Machine code on disk: what is found, and whose files are trusted."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from vinfer.engine.loading.code_store import CodeStore, MachineCode, kind_directory, stored_temporary_bytes

FACTS = {"platform": "tpu", "device_kind": "TPU v5 lite", "num_devices": "4", "jaxlib": "0.9.2"}
CODE = MachineCode(b"\x00\n\xffmachine\ncode", (0, 2, 5), 123)


def store(*roots: Path, num_pages: tuple[int, ...] = (64,), **facts: str) -> CodeStore:
    return CodeStore(roots, {**FACTS, **facts}, num_pages)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    assert store(tmp_path).read("decode[1,4]") is None
    assert store(tmp_path).write("decode[1,4]", CODE)
    assert store(tmp_path).read("decode[1,4]") == CODE
    assert store(tmp_path).read("decode[4,4]") is None


@pytest.mark.parametrize("facts", [{name: "another"} for name in FACTS])
def test_code_with_other_facts_is_not_found_and_the_difference_is_named(
    tmp_path: Path, facts: dict[str, str]
) -> None:
    store(tmp_path).write("p", CODE)
    other = store(tmp_path, **facts)
    assert other.read("p") is None
    ((name, value),) = facts.items()
    # Code for another platform is not even a candidate.
    expected = None if name == "platform" else f"{name} {FACTS[name]} (here {value})"
    assert other.why_none_fits() == expected
    assert store(tmp_path).why_none_fits() is None


def test_code_is_for_one_number_of_pages(tmp_path: Path) -> None:
    store(tmp_path, num_pages=(64, 8)).write("p", CODE)
    store(tmp_path, num_pages=(32, 8)).write("p", CODE)
    assert store(tmp_path, num_pages=(64, 9)).read("p") is None
    assert store(tmp_path).page_counts() == [(32, 8), (64, 8)]


def test_the_first_root_that_allows_it_is_written_and_all_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken, good = tmp_path / "file" / "below", tmp_path / "good"
    assert store(broken, good).write("p", CODE)
    assert store(broken, good).read("p") == CODE
    assert not store(broken).write("p", CODE)


@pytest.mark.parametrize("level", range(4))
def test_code_that_everybody_may_write_is_not_run(
    tmp_path: Path, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    store(root).write("p", CODE)
    (file,) = root.rglob("*.code")
    path = [file, file.parent, file.parent.parent, root][level]
    path.chmod(0o777)
    assert store(root).read("p") is None
    assert f"everybody may write {path}: run chmod o-w on it" in caplog.text
    if level:
        assert not store(root).write("q", CODE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_code_of_another_user_is_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(tmp_path).write("p", CODE)
    (file,) = tmp_path.rglob("*.code")
    os.chown(file, 12345, 12345)
    assert store(tmp_path).read("p") is None
    assert f"{file} belongs to user 12345" in caplog.text


def test_a_directory_is_named_after_platform_and_kind() -> None:
    name = kind_directory(FACTS)
    assert name.startswith("tpu-tpu_v5_lite-")
    assert name == kind_directory(dict(reversed(FACTS.items())))
    assert kind_directory({**FACTS, "device_kind": "a/../b"}).count("/") == 0


def test_headers_say_what_programs_need_without_a_device(tmp_path: Path) -> None:
    code = MachineCode(b"x", (0,), 700)
    assert store(tmp_path, num_pages=(64, 8)).write("decode[1,4]", code)
    assert store(tmp_path, num_pages=(64, 8), device_kind="another").write("decode[1,4]", code)
    assert store(tmp_path).write("decode[1,4]", dataclasses.replace(code, temporary_bytes=800))
    kind = kind_directory(FACTS)
    (tmp_path / kind / "64" / "damaged.code").write_bytes(b"\x80")
    (tmp_path / kind / "64" / "older.code").write_bytes(b"{}\n")
    (tmp_path / kind / "notes").mkdir()
    (tmp_path / kind / "notes" / "decode[1,4].code").write_bytes(b'{"temporary_bytes": 1}\n')
    wanted = {"platform": {FACTS["platform"]}, "device_kind": {FACTS["device_kind"].lower()}}
    assert stored_temporary_bytes([tmp_path, tmp_path / "none"], wanted) == {
        (64,): {"decode[1,4]": 800},
        (64, 8): {"decode[1,4]": 700},
    }
    assert stored_temporary_bytes([tmp_path], {**wanted, "jax": {"0"}}) == {}
