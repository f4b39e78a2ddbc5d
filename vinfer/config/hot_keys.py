"""Which keys a running server can take anew, which need a new bundle, and what differs between two configs.

Pure functions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from vinfer.config.schema import Config, ModelConfig
from vinfer.config.server import ServerConfig

_HOT_SERVER_KEYS = (
    "api_keys_file",
    "drain_delay_seconds",
    "drain_timeout_seconds",
    "images",
    "max_body_bytes",
    "max_n",
    "max_preparing_bytes",
    "metrics_public",
    "request_timeout_seconds",
    "step_timeout_seconds",
    "unknown_fields",
)
_HOT_MODEL_KEYS = ("max_queue", "max_queue_per_key", "max_running_per_key", "sampling")
BUILD_KEYS: Mapping[str, str] = {
    "source": "its weights are in the bundle",
    "revision": "its weights are in the bundle",
    "task": "only programs for images take images",
    "dtype": "weights and programs have it",
    "mesh": "weights and programs are divided by it",
    "max_model_len": "programs address so many positions",
    "num_slots": "programs have a row per slot",
    "streaming_chunks": "programs run so many steps",
    "precompile": "it lists the programs",
    "prompt_logprobs": "it needs programs of its own",
    "speculation": "drafts are verified by programs of their own",
    "embeddings": "it needs programs of its own",
    "deterministic": "all programs then have one shape",
    "image_cache_bytes": "programs have its shape",
}
"""The keys of a model that another bundle belongs to, and why."""
BlockT = TypeVar("BlockT", ServerConfig, ModelConfig)
_INDEX = re.compile(r"\[[0-9]+\]")

HOT_KEYS: frozenset[str] = frozenset(
    {
        "log_level",
        *(f"server.{key}" for key in _HOT_SERVER_KEYS),
        *(f"models[].{key}" for key in _HOT_MODEL_KEYS),
    }
)
"""The keys that SIGHUP reloads; a block stands for all keys in it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One key whose value differs between two configs; None stands for a model that is not there."""

    key: str
    old: Any
    new: Any

    @property
    def applied_by(self) -> Literal["SIGHUP", "restart", "rebuild"]:
        """What applies the new value."""
        if self.is_hot:
            return "SIGHUP"
        return "restart" if self.why_rebuilt is None else "rebuild"

    @property
    def why_rebuilt(self) -> str | None:
        """Why the bundle is built again; None if it is not."""
        model, _, key = _INDEX.sub("", self.key).partition(".")
        if model != "models":
            return None
        if not key:
            return None if self.new is None else "another model"
        return BUILD_KEYS.get(re.split(r"[.\[]", key)[0])

    @property
    def is_hot(self) -> bool:
        key = _INDEX.sub("[]", self.key)
        return any(key == hot or key.startswith(f"{hot}.") for hot in HOT_KEYS)


def changes(old: Config, new: Config) -> list[Change]:
    """Return what differs, in the order of the keys."""
    return list(_changes("", old, new))


def with_hot_keys(old: Config, new: Config) -> Config:
    """Return the old config with the new values of the hot keys; models are matched by name."""
    models = {model.name: model for model in new.models}
    return old.model_copy(
        update={
            "log_level": new.log_level,
            "server": _taking(old.server, new.server, _HOT_SERVER_KEYS),
            "models": tuple(
                _taking(model, models.get(model.name, model), _HOT_MODEL_KEYS) for model in old.models
            ),
        }
    )


def _taking(old: BlockT, new: BlockT, keys: tuple[str, ...]) -> BlockT:
    return old.model_copy(update={key: getattr(new, key) for key in keys})


def _changes(path: str, old: Any, new: Any) -> Iterator[Change]:
    if old == new:
        return
    if isinstance(old, BaseModel) and isinstance(new, BaseModel):
        for name in type(old).model_fields:
            yield from _changes(f"{path}.{name}" if path else name, getattr(old, name), getattr(new, name))
    elif isinstance(old, tuple) and isinstance(new, tuple):
        for place in range(max(len(old), len(new))):
            of_old = old[place] if place < len(old) else None
            of_new = new[place] if place < len(new) else None
            yield from _changes(f"{path}[{place}]", of_old, of_new)
    else:
        yield Change(path, old, new)
