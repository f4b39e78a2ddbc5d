"""What the config of a group asks for: refused, or limited, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vinfer
from vinfer.errors import ConfigError
from vinfer.launch.group.leader import group_membership, load_to_serve, refuse_group, start_leader
from vinfer.launch.verification.verify import VerifyOptions, verify

PAIR = {"coordinator": "127.0.0.1", "num_processes": 2, "process_id": 0, "secret_file": "secret"}


def written(folder: Path, distributed: dict[str, Any], **model: Any) -> Path:
    path = folder / "serve.yaml"
    models = [{"name": "a", "source": "org/a"}, {"name": "b", "source": "org/b", **model}]
    path.write_text(json.dumps({"server": {"distributed": distributed}, "models": models}))
    return path


def test_a_step_may_take_no_longer_than_a_dispatch_of_the_group(tmp_path: Path) -> None:
    def limit(distributed: dict[str, Any], *overrides: str) -> float:
        path = written(tmp_path, distributed)
        return load_to_serve(path, overrides=overrides, environ={}).server.step_timeout_seconds

    assert limit({}) == 300.0
    assert limit(PAIR) == 30.0
    assert limit({**PAIR, "stall_seconds": 400.0}) == 300.0
    assert limit(PAIR, "server.step_timeout_seconds=20") == 20.0


def test_a_group_has_no_optional_models(tmp_path: Path) -> None:
    path = written(tmp_path, PAIR, required=False)
    with pytest.raises(ConfigError, match=r"models\[1\]\.required is false, but a group ends"):
        load_to_serve(path, overrides=(), environ={})
    assert load_to_serve(written(tmp_path, {}, required=False), overrides=(), environ={})


def test_one_process_is_no_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, PAIR)
    message = r"runs in one process, but server\.distributed makes it a member .*: use vinfer serve, or"
    with pytest.raises(ConfigError, match=f"vinfer.load {message}"), vinfer.load(path, progress=False):
        pass
    config = load_to_serve(path, overrides=(), environ={})
    with pytest.raises(ConfigError, match=f"vinfer verify {message}"):
        verify(config, VerifyOptions(), wanted=None, code_cache=tmp_path, progress=lambda *_: None)


def test_a_group_of_one_is_none(tmp_path: Path) -> None:
    config = load_to_serve(written(tmp_path, {**PAIR, "num_processes": 1}), overrides=(), environ={})
    refuse_group(config, {}, what="vinfer verify")


def test_whoever_serves_alone_has_no_leader(tmp_path: Path) -> None:
    config = load_to_serve(written(tmp_path, {}), overrides=(), environ={})
    assert start_leader(config, group_membership(config, {})) is None


def test_a_leader_without_its_secret_does_not_start(tmp_path: Path) -> None:
    config = load_to_serve(written(tmp_path, PAIR), overrides=(), environ={})
    with pytest.raises(ConfigError, match=r"secret_file .*cannot be read"):
        start_leader(config, group_membership(config, {}))
