"""Runs one bundle on four forced CPU devices and prints the results as JSON.

    python -m tiny.mesh_process BUNDLE DIRECTORY [PAGES]     a name in `BUNDLES`, its directory; from tests/

With PAGES, only `long_answers` run, on so many pages: {"answers": [...], "num_preemptions": int}.

Needs its own process, because the number of CPU devices is fixed when JAX starts. The last line of standard
output is {"answers": [...], "shared": [...], "scored": [...], "pooled": [[part, ...], ...],
"bound": [text, ...], "collectives": {program: {opcode: count}}, "moved_pools": {program: [[opcode, shape],
...]}, "num_accepted": int}.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import sys
from pathlib import Path

NUM_DEVICES = 4
CONSTRAINED = "[a-f]{3}-[0-9]{2}"
"""The grammar of half of the requests in the second run; 64 tokens are more than enough."""


def run_cramped(bundle: str, directory: Path, num_pages: int) -> None:
    from tiny.bundles import model_config
    from tiny.engines import ask, load_engine
    from tiny.prompts import long_answers

    from vinfer.config import KVCacheConfig

    cramped = {"max_model_len": None, "kv_cache": KVCacheConfig(pages=num_pages)}
    model = model_config(bundle).model_copy(update=cramped)
    engine = load_engine(directory, model)
    answers = [dataclasses.asdict(answer) for answer in ask(engine, long_answers())]
    num_preemptions = engine.stats().num_preemptions_total
    engine.stop()
    sys.stdout.write(json.dumps({"answers": answers, "num_preemptions": num_preemptions}) + "\n")


def run(bundle: str, directory: Path) -> None:
    import jax
    import numpy as np
    from tiny.bundles import model_config
    from tiny.engines import GREEDY, Binder, Question, ask, load_engine
    from tiny.hlo import COLLECTIVES, instructions, moves_of
    from tiny.prompts import crowd, embedding_crowd, scored_crowd, shared_crowd

    from vinfer.bundle.directory import read_manifest

    assert len(jax.devices()) == NUM_DEVICES
    engine = load_engine(directory, model_config(bundle))
    answers = ask(engine, crowd(join_apart=True))
    shared = ask(engine, shared_crowd())
    manifest = read_manifest(directory)
    scored = ask(engine, scored_crowd()) if manifest.has_prompt_logprobs else []
    embedded = ask(engine, embedding_crowd()) if manifest.embeddings is not None else []
    binder = Binder(directory)
    params = dataclasses.replace(GREEDY, stop_token_ids=manifest.model.eos_token_ids)
    grammar = binder.grammar("regex", CONSTRAINED)
    constrained = ask(
        engine,
        [
            Question(question.prompt_ids, params, grammar=grammar if place % 2 else None)
            for place, question in enumerate(crowd(join_apart=False))
        ],
    )
    pools = {
        shape
        for pool in engine._runner.model.kv
        for shape in (pool.shape, pool.addressable_shards[0].data.shape)
    }
    # The programs that the engine runs, not compiled a second time.
    texts = {
        shape.name: program.compiled.as_text()
        for shape, program in engine._runner.model.programs.items()
        if shape.kind != "set_slot"
    }
    found = {
        "answers": [dataclasses.asdict(answer) for answer in answers],
        "shared": [dataclasses.asdict(answer) for answer in shared],
        "scored": [dataclasses.asdict(answer) for answer in scored],
        "pooled": [
            [np.frombuffer(part, np.float32).tolist() for part in answer.pooled] for answer in embedded
        ],
        "bound": [binder.text(answer) for answer in constrained[1::2]],
        "collectives": {
            name: collections.Counter(i.opcode for i in instructions(text) if i.opcode in COLLECTIVES)
            for name, text in texts.items()
        },
        "moved_pools": {name: moves_of(text, shapes=pools) for name, text in texts.items()},
        "num_accepted": engine.stats().spec_decode_num_accepted_tokens_total,
    }
    engine.stop()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    # Must be set before JAX starts.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={NUM_DEVICES}"
    if len(sys.argv) > 3:
        run_cramped(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    else:
        run(sys.argv[1], Path(sys.argv[2]))
