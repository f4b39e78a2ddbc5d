"""Loads the models of a config: finds or builds each bundle, loads it, and starts its engine.

Runs on loader threads, after the port is bound, and again for an engine that died. Decides nothing about
requests, programs or routes.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from vinfer.bundle.certificate import ParityReport
from vinfer.bundle.manifest import Manifest, Platform
from vinfer.bundle.progress import ModelProgress
from vinfer.bundle.verification import WeightHashing
from vinfer.config import Config, ModelConfig
from vinfer.errors import BundleError, EngineError, VinferError
from vinfer.launch.bundles import bundle_work, find_or_build
from vinfer.launch.devices import WantedDevices, device_memory_bytes, local_devices
from vinfer.launch.fit import bundle_parts
from vinfer.launch.kv_memory import choose_pages, is_measured, memory_of
from vinfer.launch.parity import check_new_bundle
from vinfer.launch.progress.clock import PhaseClock, PhaseReport
from vinfer.launch.progress.times import PhaseTimes
from vinfer.server.constrain.grammars import grammar_compiler
from vinfer.server.model_table import ModelTable, SamplingDefaults, ServedModel
from vinfer.server.tenant_limits import tenant_limits
from vinfer.text.chat_form import load_chat_forms
from vinfer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import jax

    from vinfer.engine.engine import Engine
    from vinfer.engine.kv_cache.pages import ShardPages
    from vinfer.engine.loading.compile_count import CompileCounter

logger = logging.getLogger(__name__)

# Reading and placing weights waits for disks and devices more than it computes.
MAX_PARALLEL_LOADS = 4
# If all buckets are short, a burst of prompts would alternate with nearly empty decode steps.
MIN_PREFILL_TOKENS = 512
# With several API keys, a short step matters more: the first token of a new request waits for two of them.
SHARED_PREFILL_TOKENS = 256
# On a CPU the time of a prefill grows with its tokens almost from the first one: reading the weights once
# costs as much as computing about 16 tokens. On an accelerator a short prefill costs as much as a long one.
DISPATCH_COST_TOKENS: dict[Platform, int] = {"cpu": 16}


class Loader:
    """Loads the models of a config, several at a time, and starts each of them.

    How many pages a model gets follows from the config and the devices, not from what others have taken by
    then, so it is the same in any order. Bundles are found or built one at a time: a build takes all cores
    and much memory, and Python 3.11 fails if two threads parse source code, which is part of the key.

    Args:
        table: receives progress, ready models and failures.
        wanted: parsed `--devices`.
        code_cache: directory for machine code that cannot be stored in its bundle.
        show: receives the same progress, for the terminal.
        num_keys: how many API keys there are; see `tenant_limits`.
    """

    def __init__(
        self,
        config: Config,
        table: ModelTable,
        *,
        wanted: WantedDevices | None,
        code_cache: Path,
        show: Callable[[PhaseReport], None],
        num_keys: int = 0,
    ) -> None:
        self._num_keys = num_keys
        self._config = config
        self._table = table
        self._wanted = wanted
        self._code_cache = code_cache
        self._show = show
        self._clock = PhaseClock(PhaseTimes(config.cache_dir), self._report)
        self._bundle_turn = threading.Lock()
        self._starts: dict[str, Callable[[], Engine]] = {}
        self._engines: dict[str, Engine] = {}
        self._counter: CompileCounter | None = None

    def num_post_ready_compiles(self) -> int:
        return 0 if self._counter is None else self._counter.num_post_ready

    def run(self) -> None:
        """Load every model; report each failure to the table, which ends the server if it needs the model."""
        models = self._config.models
        # Without devices, a model that is not required is no excuse.
        first = next(model.name for model in models if model.required)
        if not self._reports(first, functools.partial(self._initialize, first)):
            return
        with ThreadPoolExecutor(MAX_PARALLEL_LOADS, thread_name_prefix="loader") as pool:
            for position, model in enumerate(models):
                pool.submit(self._reports, model.name, functools.partial(self._load, position))

    def restart(self, name: str) -> Engine:
        """Replace the engine of a model that died by a new one from the same bundle; any thread.

        Raises:
            VinferError: see `start_engine`.
        """
        self._engines[name].release()
        self._engines[name] = self._starts[name]()
        return self._engines[name]

    def stop(self) -> None:
        for engine in self._engines.values():
            engine.stop()

    def _reports(self, name: str, step: Callable[[], None]) -> bool:
        """Take a step, and return whether it succeeded; whatever ends it otherwise is reported."""
        try:
            step()
        except VinferError as error:
            logger.error("model %s: %s", name, error.message)
            self._table.fail(name, error)
            return False
        except BaseException as error:
            logger.exception("model %s could not be loaded", name)
            self._table.fail(name, EngineError(f"{type(error).__name__}: {error}"))
            return False
        return True

    def _initialize(self, name: str) -> None:
        self._clock(name, "starting jax", 0, 1)
        from vinfer.engine.loading.compile_count import CompileCounter

        self._counter = CompileCounter()
        # What is compiled for a model that is still being loaded does not count.
        self._counter.mark_ready()
        self._platform, self._devices = local_devices(self._wanted)
        self._dispatch_lock = threading.Lock()

    def _load(self, position: int) -> None:
        model = self._config.models[position]
        with self._bundle_turn:
            bundle = find_or_build(
                model,
                where=f"models[{position}]",
                platform=self._platform,
                num_devices=len(self._devices),
                bundles_dir=self._config.bundles_dir,
                progress=self._clock,
                memory_bytes=device_memory_bytes(self._devices[0]),
                expect=self._clock.expect,
            )
        directory, manifest = bundle.directory, bundle.manifest
        roots = bundle.code_roots(self._code_cache)
        self._clock.expect(model.name, bundle_work(manifest, roots))
        self._starts[model.name] = start = functools.partial(
            start_engine,
            directory,
            manifest,
            model,
            devices=self._devices,
            code_roots=roots,
            dispatch_lock=self._dispatch_lock,
            progress=self._clock,
            where=f"models[{position}]",
            num_keys=self._num_keys,
            verify_weights=model.verify_weights,
        )
        # A bundle that has just been built has just been hashed.
        self._engines[model.name] = engine = start(verify_weights=model.verify_weights and not bundle.is_new)
        with self._bundle_turn if bundle.is_new else contextlib.nullcontext():
            parity = check_new_bundle(bundle, model, engine, self._clock)
        self._table.serve(served_model(directory, manifest, model, engine, position=position, parity=parity))
        self._clock(model.name, "ready", 1, 1)

    def _report(self, report: PhaseReport) -> None:
        # Whoever serves is ready, which the table knows by then.
        if report.phase != "ready":
            self._table.report(report.name, report.phase, report.done, report.total, report.expected_seconds)
        self._show(report)


class _PausedCollection:
    """No garbage collection while at least one model is loaded.

    Tracing creates millions of objects but hardly any cycles. Collecting meanwhile costs a tenth of the
    time, and the objects that remain never need to be collected.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_loads = 0

    def __enter__(self) -> None:
        with self._lock:
            self._num_loads += 1
            gc.disable()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_loads -= 1
            if self._num_loads == 0:
                gc.enable()


_collection_paused = _PausedCollection()


def model_table(config: Config) -> ModelTable:
    """Return the table of a config's models before any of them is loaded."""
    return ModelTable(
        [model.name for model in config.models],
        optional=[model.name for model in config.models if not model.required],
    )


def start_engine(
    directory: Path,
    manifest: Manifest,
    model: ModelConfig,
    *,
    devices: Sequence[jax.Device],
    code_roots: Sequence[Path],
    dispatch_lock: threading.Lock,
    progress: ModelProgress,
    where: str = "models[0]",
    num_keys: int = 0,
    verify_weights: bool = False,
) -> Engine:
    """Load a bundle and start its engine's thread.

    Args:
        code_roots: where machine code is looked for and stored, first choice first.
        where: the model's place in the config, for messages.
        num_keys: see `tenant_limits`.
        verify_weights: check the hashes of the weights meanwhile.

    Raises:
        BundleError: a file of the bundle has changed.
        DeviceError: the devices have too little memory.
    """
    from vinfer.engine.engine import Engine
    from vinfer.engine.loading.compile_count import loading
    from vinfer.engine.loading.load import load_runner
    from vinfer.engine.scheduler import Scheduler

    hashing = WeightHashing(directory, manifest) if verify_weights else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(loading())
        stack.enter_context(_collection_paused)
        if hashing is not None:
            stack.callback(hashing.close)
        num_pages = device_pages(
            directory,
            manifest,
            model,
            devices,
            memory_bytes=device_memory_bytes(devices[0]),
            code_roots=code_roots,
            where=where,
        )
        runner = load_runner(
            directory,
            manifest,
            num_pages=num_pages,
            code_roots=code_roots,
            devices=devices,
            dispatch_lock=dispatch_lock,
            progress=lambda phase, done, total: progress(model.name, phase, done, total),
        )
        if hashing is not None:
            hashing.check()
        gc.freeze()
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
    directory: Path,
    manifest: Manifest,
    model: ModelConfig,
    devices: Sequence[jax.Device],
    *,
    memory_bytes: int | None,
    code_roots: Sequence[Path],
    where: str,
) -> tuple[int, ...]:
    """Return the pages of each group in one dp shard, and log them.

    Args:
        memory_bytes: memory of one device, if known.
        code_roots: where machine code of the programs may be.
    """
    from vinfer.engine.loading.mesh import make_mesh
    from vinfer.engine.loading.programs import stored_page_counts, temporary_bytes

    plan, dp = manifest.page_plan, manifest.mesh["dp"]
    temporary, stored = 0, []
    if is_measured(model, manifest.platform):
        mesh = make_mesh(manifest, devices)
        temporary = temporary_bytes(directory, manifest, mesh, code_roots=code_roots)
        stored = stored_page_counts(manifest, mesh, code_roots)
    memory = memory_of(
        manifest.platform,
        memory_bytes,
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


def served_model(
    directory: Path,
    manifest: Manifest,
    model: ModelConfig,
    engine: Engine,
    *,
    position: int,
    parity: ParityReport | None,
) -> ServedModel:
    """Assemble what the routes need from one model."""
    tokenizer = Tokenizer.load(directory / "tokenizer")
    if tokenizer.vocab_size > manifest.model.vocab_size:
        raise BundleError(
            f"bundle {directory}: its tokenizer is larger than its model: run vinfer precompile"
        )
    chat = load_chat_forms(
        directory / "tokenizer",
        tokenizer,
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
    )
    if manifest.images is not None:
        # Imported on the loader thread, or the event loop would wait for it at the first image.
        importlib.import_module("vinfer.images")
    return ServedModel(
        name=model.name,
        manifest=manifest,
        position=position,
        engine=engine,
        tokenizer=tokenizer,
        grammars=grammar_compiler(
            model.name,
            tokenizer,
            vocab_size=manifest.model.vocab_size,
            eos_token_ids=manifest.model.eos_token_ids,
        ),
        chat_template=chat.template,
        chat_template_kwargs=model.chat_template_kwargs,
        sampling=SamplingDefaults.resolve(model.sampling, manifest.model.sampling_defaults),
        max_model_len=engine.max_model_len,
        length_limit_key="max_model_len" if engine.max_model_len == manifest.max_model_len else "kv_cache",
        prefix_cache=model.prefix_cache,
        speculates=model.speculation is not None,
        answer_form=chat.answers,
        tool_use=chat.tool_use,
        parity=parity,
    )
