"""Downloads a checkpoint from the Hugging Face hub into the local cache.

Runs in the build half and wherever a bundle key is computed, on any thread; the only module of the
build half that uses a network. Honours HF_HUB_OFFLINE, HF_HOME, HF_TOKEN and HF_ENDPOINT through
huggingface_hub. Never downloads a pickle.
"""

from __future__ import annotations

from pathlib import Path

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

from vinfer.errors import CheckpointError

DOWNLOADED_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")


def download_snapshot(hub_id: str, revision: str | None, *, local_hint: str) -> tuple[Path, str]:
    """Download one commit of a repository, or find it in the cache; returns its directory and commit hash.

    `local_hint` says what was not found on disk under the same name; it ends the error for a wrong id.

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
