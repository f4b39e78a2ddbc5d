"""Takes a large random model from checkpoint to runner and measures the memory of each stage.

Every stage is a separate process, so that its memory does not count toward the next one. `main` owns the
directory and the processes: when it ends for any reason, it ends them and removes the directory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from peers.process_tree import memory_bytes, sampling

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2560, 8192, 20, 5, 128, 32_000
NUM_SHARDS = 4
SAMPLE_SECONDS = 0.02
GIB = 1 << 30


def main(doc: str | None) -> int:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="scratch")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        STAGES[arguments.stage](arguments.directory, arguments.layers)
        return 0
    needed = int(2.2 * 2 * num_parameters(arguments.layers))
    free = shutil.disk_usage(arguments.directory).free
    if free < needed:
        print(
            f"{arguments.directory} has {free / GIB:.1f} GiB free; {needed / GIB:.1f} GiB are needed: "
            "set another --directory, or lower --layers",
            file=sys.stderr,
        )
        return 1
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory(
        prefix="load-figures-", dir=arguments.directory, ignore_cleanup_errors=True
    ) as scratch:
        for stage in ("write", "build", "load", "load"):
            command = [sys.executable, sys.argv[0], "--stage", stage, "--directory", scratch]
            with subprocess.Popen([*command, "--layers", str(arguments.layers)]) as process:
                try:
                    code = process.wait()
                except BaseException:
                    # The build child ends with its parent.
                    process.kill()
                    raise
            if code:
                return code
    return 0


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def shapes(num_layers: int) -> dict[str, tuple[int, ...]]:
    """List the tensors of the model in the order of `save_pretrained`."""
    layer = {
        "input_layernorm": (HIDDEN,),
        "mlp.down_proj": (HIDDEN, INNER),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for index in range(num_layers):
        found |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def num_parameters(num_layers: int) -> int:
    total = 0
    for shape in shapes(num_layers).values():
        total += shape[0] * (shape[1] if len(shape) > 1 else 1)
    return total


def write(directory: Path, num_layers: int) -> None:
    """Write the checkpoint, one tensor at a time."""
    import numpy as np

    from vinfer.compiler.export.weight_file import write_weight_file
    from vinfer.compiler.weights import Part, Weight

    checkpoint = directory / "checkpoint"
    checkpoint.mkdir()
    generator = np.random.default_rng(0)
    model = shapes(num_layers)

    def draw(name: str) -> Any:
        shape = model[name]
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        values = generator.standard_normal(shape, np.float32)
        values *= 0.02
        return values

    names = list(model)
    size = -(-len(names) // NUM_SHARDS)
    weight_map = {}
    for shard in range(NUM_SHARDS):
        file = f"model-{shard + 1:05}-of-{NUM_SHARDS:05}.safetensors"
        taken = names[shard * size : (shard + 1) * size]
        weights = [Weight(name, model[name], "bfloat16", (), (Part(name),)) for name in taken]
        write_weight_file(checkpoint / file, weights, draw, written=lambda: None)
        weight_map |= dict.fromkeys(taken, file)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (checkpoint / "config.json").write_text(json.dumps(_config(num_layers)))
    _write_tokenizer(checkpoint)
    shards = sorted(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    largest = max(2 * shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in model.values())
    print(
        f"checkpoint: {num_parameters(num_layers) / 1e9:.2f} billion parameters, {sum(shards) / GIB:.2f} GiB "
        f"in {NUM_SHARDS} shards, largest {shards[-1] / GIB:.2f} GiB; largest tensor {largest / GIB:.2f} GiB",
        flush=True,
    )


def _config(num_layers: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "torch_dtype": "bfloat16",
    }


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>")])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


def build(directory: Path, _: int) -> None:
    """Build the bundle in the build child, like `vinfer precompile`."""
    from vinfer.config import ModelConfig
    from vinfer.launch.bundles import find_or_build
    from vinfer.launch.devices import Target

    model = ModelConfig.model_validate(
        {
            "name": "large",
            "source": str(directory / "checkpoint"),
            "dtype": "bfloat16",
            "max_model_len": 256,
            "num_slots": 2,
            "streaming_chunks": 4,
            "mesh": {"tp": 1},
            "precompile": [{"batch_size": 1, "prefill_length": 64}],
        }
    )
    memory = PeakMemory()
    began = time.perf_counter()
    with memory.sampling_the_child():
        find_or_build(
            model,
            where="models[0]",
            target=Target(platform="cpu", num_devices=1),
            bundles_dir=directory / "bundles",
            progress=lambda _name, phase, _done, _total: memory.enter(phase),
            output=directory / "bundle",
        )
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    size = sum(path.stat().st_size for path in (directory / "bundle").rglob("*") if path.is_file())
    print(f"build: {seconds:.0f} s, peak of the child {peak / GIB:.2f} GiB, bundle {size / GIB:.2f} GiB")
    memory.report()


def load(directory: Path, _: int) -> None:
    """Load the bundle like the server, and keep the machine code for the next load."""
    began = time.perf_counter()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    from vinfer.bundle.directory import read_manifest
    from vinfer.engine.loading.load import load_model

    manifest = read_manifest(directory / "bundle")
    devices = jax.devices()
    memory = PeakMemory()
    memory.enter("loading")
    with memory.sampling_itself():
        load_model(
            directory / "bundle",
            manifest,
            devices=devices,
            num_pages=manifest.page_plan.most_pages(),
            code_roots=(directory / "code",),
            dispatch_lock=threading.Lock(),
            progress=lambda *_: None,
        )
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"load: {seconds:.1f} s, peak {peak / GIB:.2f} GiB")
    memory.report()


class PeakMemory:
    """Samples the memory of a process and keeps the peak of each phase."""

    def __init__(self) -> None:
        self._phase = "starting"
        self._peaks: dict[str, dict[str, int]] = {}

    def enter(self, phase: str) -> None:
        self._phase = phase

    def report(self) -> None:
        for phase, peak in self._peaks.items():
            print(
                f"  {phase}: at most {peak['Rss'] / GIB:.2f} GiB resident, "
                f"{peak['Anonymous'] / GIB:.2f} GiB anonymous",
                flush=True,
            )

    def sampling_the_child(self) -> contextlib.AbstractContextManager[None]:
        """Sample the one child that this thread starts."""
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children")

        def sample() -> None:
            # There is none before the child has started and after it has ended.
            for pid in children.read_text().split()[:1]:
                self._keep(memory_bytes(int(pid)))

        return sampling(sample, SAMPLE_SECONDS)

    def sampling_itself(self) -> contextlib.AbstractContextManager[None]:
        return sampling(lambda: self._keep(memory_bytes(os.getpid())), SAMPLE_SECONDS)

    def _keep(self, sizes: dict[str, int]) -> None:
        peak = self._peaks.setdefault(self._phase, {"Rss": 0, "Anonymous": 0})
        for name in peak:
            peak[name] = max(peak[name], sizes.get(name, 0))


STAGES = {"write": write, "build": build, "load": load}
