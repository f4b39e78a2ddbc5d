"""The host's ceiling: a model so small that the host's work per token is all there is.

Two layers of width 32 with random weights, served by vinfer alone. The checkpoint is written here, byte by
byte, because this program has no packages.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import itertools
import json
import random
import string
import struct
from pathlib import Path
from typing import Any

from benchmark.process import started

from peers import loads
from peers.places import MODELS
from peers.servers import of_vinfer
from peers.sizes import Sizes
from peers.starts import READY_SECONDS, side_of
from peers.turns import in_turns

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 32, 64, 2, 4, 2, 8
NEW_TOKENS = 128
PROMPT_TOKENS = 16
VOCABULARY = 1024
"""With much fewer, set_slot takes under 1,000 operations, and XLA runs such a program in the calling thread
after waiting for its inputs. No model that anybody serves has one."""
_SPECIAL = ("<s>", "</s>")
_CONFIG = """\
models:
  - name: ceiling
    source: {folder}
    dtype: float32
    mesh: {{tp: 1}}
    max_model_len: 512
    num_slots: 64
    max_queue: 256
    streaming_chunks: 4
    verify: "off"
    precompile:
      - {{batch_size: 1, prefill_length: 128}}
"""


def ceiling(vinfer: str, before: str | None, sizes: Sizes) -> dict[str, Any]:
    """Return the figures by number of streams and by side: vinfer, and an older one if there is one.

    Raises:
        AnswerError: a server does not start.
    """
    config = write_checkpoint(MODELS / "ceiling")
    commands = {"vinfer": vinfer, **({"before": before} if before else {})}
    with contextlib.ExitStack() as stack:
        sides = []
        for name, command in commands.items():
            server = of_vinfer([command, "serve", str(config), "--port", "{port}"], name, name)
            served = stack.enter_context(
                started(server.command, ready_path=server.ready_path, timeout_seconds=READY_SECONDS)
            )
            sides.append(side_of(server, served))

        async def run() -> dict[str, Any]:
            return {
                f"{streams}": await in_turns(
                    f"ceiling, {streams} streams",
                    sides,
                    sizes.repeats,
                    loads.throughput(PROMPT_TOKENS, streams, sizes.ceiling_requests, NEW_TOKENS),
                )
                for streams in sizes.ceiling
            }

        return asyncio.run(run())


def write_checkpoint(folder: Path) -> Path:
    """Write a checkpoint unless it is there, and return the config that serves it."""
    config = folder / "server.yaml"
    if not config.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write_tokenizer(folder)
        model = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": True,
            "bos_token_id": VOCABULARY - 2,
            "eos_token_id": VOCABULARY - 1,
            "torch_dtype": "float32",
        }
        (folder / "config.json").write_text(json.dumps(model))
        _write_weights(folder / "model.safetensors")
        config.write_text(_CONFIG.format(folder=folder))
    return config


def _write_weights(path: Path) -> None:
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    layer = {
        "input_layernorm": (HIDDEN,),
        "mlp.down_proj": (HIDDEN, INNER),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.k_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, queries),
        "self_attn.q_proj": (queries, HIDDEN),
        "self_attn.v_proj": (keys, HIDDEN),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for index in range(LAYERS):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (HIDDEN,)
    generator = random.Random(0)
    header, content = {}, b""
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = (1.0 if len(shape) == 1 else generator.gauss(0, 0.2) for _ in range(count))
        written = array.array("f", values).tobytes()
        offsets = [len(content), len(content) + len(written)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        content += written
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + content)


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with a token per byte, then some of two letters, which prompts do not have."""
    pairs = map("".join, itertools.product(string.ascii_letters, repeat=2))
    texts = itertools.islice((*_byte_letters(), *pairs), VOCABULARY - len(_SPECIAL))
    vocabulary = {text: index for index, text in enumerate(texts)}
    added = [
        {
            "id": len(vocabulary) + place,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for place, token in enumerate(_SPECIAL)
    ]
    form = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", **form},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", **form},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"bos_token": _SPECIAL[0], "eos_token": _SPECIAL[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def _byte_letters() -> list[str]:
    """Return the letter by which byte-level BPE writes each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + place) for place in range(len(others)))]
