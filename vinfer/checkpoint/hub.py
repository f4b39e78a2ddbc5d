"""Downloads a checkpoint from the Hugging Face hub into the local cache.

Runs in the build half and wherever a bundle key is computed, on any thread; the only module of the
build half that uses a network. Honours HF_HUB_OFFLINE, HF_HOME, HF_TOKEN and HF_ENDPOINT through
huggingface_hub. Never downloads a pickle.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.auto import tqdm

from vinfer.errors import CheckpointError

Downloaded = Callable[[int, int], None]
"""Called with the bytes that are on disk and the bytes of all files that have been begun; any thread."""

DOWNLOADED_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")


def download_snapshot(
    hub_id: str, revision: str | None, *, local_hint: str, downloaded: Downloaded | None = None
) -> tuple[Path, str]:
    """Download one commit of a repository, or find it in the cache; returns its directory and commit hash.

    Args:
        local_hint: what was not found on disk under the same name; it ends the error for a wrong id.
        downloaded: receives the progress; without it a terminal shows the bars of huggingface_hub.

    Raises:
        CheckpointError: not found, not allowed, or neither reachable nor cached.
    """
    at = f"{hub_id} at {revision}" if revision else hub_id
    try:
        # Passed explicitly: otherwise a cached commit requested by its hash is still looked up online.
        path = Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=list(DOWNLOADED_FILES),
                local_files_only=is_offline_mode(),
                tqdm_class=None if downloaded is None else _reporting_bar(downloaded),
            )
        )
    except GatedRepoError as error:  # subclass of RepositoryNotFoundError, so it comes first
        raise CheckpointError(
            f"source {at}: access is gated: accept its terms on the hub and set HF_TOKEN to a token "
            "that may read it"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"source {hub_id}: the hub has no revision {revision}: check the branch, tag or commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"source {at}: no such model on the hub, or it is private: check the name, or set HF_TOKEN. "
            f"Locally: {local_hint}"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, ConnectionError) as error:
        raise CheckpointError(
            f"source {at}: the hub cannot be reached (or HF_HUB_OFFLINE is set) and the local cache does not "
            "hold the complete model. Either go online once, without HF_HUB_OFFLINE, to fill the cache, or "
            f"set `source` to a local directory with its files. Locally: {local_hint}"
        ) from error
    except OSError as error:  # the classes above inherit from it; the rest are disk errors
        raise CheckpointError(
            f"source {at}: cannot write the cache: {error}: free some space or set HF_HOME elsewhere"
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"source {at} is not a valid hub id: {error}") from error
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"source {at}: the repository has no config.json, so it is not a transformers one: for GGUF "
            "files download one and set `source` to its path"
        )
    return path, path.name


def _reporting_bar(downloaded: Downloaded) -> type[tqdm]:
    """Return a class of progress bars that show nothing and report the one bar that counts bytes on disk."""

    class ReportingBar(tqdm):  # type: ignore[misc]
        monitor_interval = 0

        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> Any:
            refreshed = super().update(n)
            if self.unit == "B" and (self.desc or "").startswith("Reconstructing"):
                downloaded(int(self.n), int(self.total or 0))
            return refreshed

    return ReportingBar
