"""Starts the engine of one model from its bundle: pages, weights, programs, warm-up, thread.

Loader thread, and the thread of a restart. Knows neither the server nor how a bundle is found.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vinfer.bundle.manifest import Manifest, Platform
from vinfer.bundle.progress import ModelProgress, Progress
from vinfer.bundle.verification import WeightHashing
from vinfer.config import ModelConfig
from vinfer.launch.bundles import FoundBundle
from vinfer.launch.collection import collection_paused
from vinfer.launch.devices import Target
from vinfer.launch.fit import bundle_parts
from vinfer.launch.kv_memory import choose_pages, is_measured, memory_of
from vinfer.server.tenant_limits import tenant_limits

if TYPE_CHECKING:
    from vinfer.engine.engine import Engine
    from vinfer.engine.kv_cache.pages import ShardPages
    from vinfer.engine.loading.loaded_model import Announce, LoadedModel
    from vinfer.hosts.leader import LeaderModel

logger = logging.getLogger(__name__)

# If all buckets are short, a burst of prompts would alternate with nearly empty decode steps. With more, the
# requests that decode would wait for longer than three of their own dispatches.
MIN_PREFILL_TOKENS = 320
# With several API keys, a short step matters more: a new request waits for one or two of them.
SHARED_PREFILL_TOKENS = MIN_PREFILL_TOKENS
# On a CPU the time of a prefill grows with its tokens almost from the first one: reading the weights once
# costs as much as computing about 16 tokens. On an accelerator a short prefill costs as much as a long one.
DISPATCH_COST_TOKENS: dict[Platform, int] = {"cpu": 16}


@contextlib.contextmanager
def load_phase() -> Iterator[None]:
    """Load a model inside, and warm it up: nothing compiled counts as if a request had waited for it.

    Afterwards no collection looks at what was loaded, and memory that only loading needed is given back.
    """
    from vinfer.engine.loading.compile_count import loading

    with loading(), collection_paused():
        yield
    gc.freeze()
    _trim_heap()


def load_checked(
    bundle: FoundBundle,
    target: Target,
    *,
    num_pages: Sequence[int],
    code_roots: Sequence[Path],
    dispatch_lock: threading.Lock,
    progress: Progress,
    announce: Announce | None = None,
    verify_weights: bool = False,
) -> LoadedModel:
    """Bring a bundle onto devices; see `load_model`. Call it in a `load_phase`.

    Args:
        verify_weights: check the hashes of the weights meanwhile.

    Raises:
        BundleError, DeviceError: see `load_model` and `WeightHashing.check`.
    """
    from vinfer.engine.loading.load import load_model

    hashing = WeightHashing(bundle.directory, bundle.manifest) if verify_weights else None
    try:
        loaded = load_model(
            bundle.directory,
            bundle.manifest,
            num_pages=num_pages,
            code_roots=code_roots,
            devices=target.devices,
            dispatch_lock=dispatch_lock,
            progress=progress,
            announce=announce,
        )
        if hashing is not None:
            hashing.check()
    finally:
        if hashing is not None:
            hashing.close()
    return loaded


def _trim_heap() -> None:
    """Give the memory that loading has freed back to the system: glibc keeps it, 100 MB for ten programs."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def start_engine(
    bundle: FoundBundle,
    model: ModelConfig,
    target: Target,
    *,
    code_roots: Sequence[Path],
    progress: ModelProgress,
    where: str = "models[0]",
    dispatch_lock: threading.Lock | None = None,
    num_keys: int = 0,
    verify_weights: bool = False,
    together: LeaderModel | None = None,
) -> Engine:
    """Load a bundle and start its engine's thread.

    Args:
        code_roots: where machine code is looked for and stored, first choice first.
        where: the model's place in the config, for messages.
        dispatch_lock: shared by all models on the same devices; None if this one is alone.
        num_keys: see `tenant_limits`.
        verify_weights: check the hashes of the weights meanwhile.
        together: the same model on the other members of a group.

    Raises:
        BundleError: a file of the bundle has changed.
        DeviceError: the devices have too little memory.
    """
    from vinfer.engine.engine import Engine
    from vinfer.engine.runner import Runner
    from vinfer.engine.scheduler import Scheduler

    manifest = bundle.manifest
    with load_phase():
        num_pages = device_pages(bundle, model, target, code_roots=code_roots, where=where)
        if together is not None:
            together.tell_pages(num_pages)
        loaded = load_checked(
            bundle,
            target,
            num_pages=num_pages,
            code_roots=code_roots,
            dispatch_lock=threading.Lock() if dispatch_lock is None else dispatch_lock,
            progress=lambda phase, done, total: progress(model.name, phase, done, total),
            announce=None if together is None else together.announce,
            verify_weights=verify_weights,
        )
        if together is not None:
            progress(model.name, "waiting for members", 0, 1)
            together.meet()
        runner = Runner(loaded, num_slots=manifest.num_slots, rows_are_slots=manifest.rows_are_slots)
        progress(model.name, "warming up", 0, 1)
        runner.warm_up()
    scheduler = Scheduler(
        programs=manifest.program_table,
        num_slots=manifest.num_slots,
        pages=shard_pages(manifest, num_pages),
        dispatch_cost_tokens=DISPATCH_COST_TOKENS.get(manifest.platform),
        min_prefill_tokens=MIN_PREFILL_TOKENS,
        shared_prefill_tokens=SHARED_PREFILL_TOKENS,
        num_feature_rows=0 if manifest.images is None else manifest.images.features.shape[0],
        keeps_images_whole=manifest.images is not None and manifest.images.attends_both_ways,
        ngram=None if model.speculation is None else model.speculation.ngram,
        keeps_slot_arrays=manifest.keeps_slot_arrays,
    )
    engine = Engine(
        name=model.name,
        runner=runner,
        scheduler=scheduler,
        num_slots=manifest.num_slots,
        max_model_len=manifest.page_plan.max_len(num_pages),
        limits=tenant_limits(model, num_slots=manifest.num_slots, num_keys=num_keys),
    )
    engine.start()
    return engine


def device_pages(
    bundle: FoundBundle, model: ModelConfig, target: Target, *, code_roots: Sequence[Path], where: str
) -> tuple[int, ...]:
    """Return the pages of each group in one dp shard, and log them.

    Args:
        code_roots: where machine code of the programs may be.
    """
    from vinfer.engine.loading.mesh import make_mesh
    from vinfer.engine.loading.programs import stored_page_counts, temporary_bytes

    manifest = bundle.manifest
    plan, dp = manifest.page_plan, manifest.mesh["dp"]
    temporary, stored = 0, []
    if is_measured(model, manifest.platform):
        mesh = make_mesh(manifest, target.devices)
        temporary = temporary_bytes(bundle.directory, manifest, mesh, code_roots=code_roots)
        stored = stored_page_counts(manifest, mesh, code_roots)
    memory = memory_of(
        manifest.platform,
        target.memory_bytes,
        num_devices=manifest.num_devices,
        weights=bundle_parts(manifest).num_bytes,
        temporary=temporary,
    )
    num_pages = choose_pages(plan, model, memory, dp=dp, where=where, stored=stored)
    logger.info(
        "KV cache of %s: %d pages of %d tokens, %.2f GiB per device; requests of up to %d tokens",
        model.name,
        num_pages[0] * dp,
        plan.page_size,
        plan.num_bytes(num_pages) / 2**30,
        plan.max_len(num_pages),
    )
    return num_pages


def shard_pages(manifest: Manifest, num_pages: Sequence[int]) -> list[ShardPages]:
    """Return the pages of each dp shard, all free."""
    from vinfer.engine.kv_cache.pages import ShardPages

    plan = manifest.page_plan
    return [
        ShardPages(
            shard,
            num_pages,
            windows=manifest.kv_windows,
            page_size=manifest.page_size,
            pages_of_row=plan.pages_of_row(plan.groups[0]),
        )
        for shard in range(manifest.mesh["dp"])
    ]
