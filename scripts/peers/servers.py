"""How each server is started, so that all of them have the same weights, slots and room for tokens."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmark.process import ROOT, vinfer_command

from peers.environments import RECIPES, install
from peers.model_files import directory, gguf, llama_binary, source
from peers.places import ENVIRONMENTS, MODELS, python
from vinfer.errors import AnswerError

PEERS = ("llama.cpp", "vllm", "transformers", "esurge")
SLOTS = 32
CONFIG = ROOT / "configs" / "smollm2.yaml"
PARAMETERS = 134_515_008
# Layers, KV heads, head size, key and value.
KV_NUMBERS_PER_TOKEN = 30 * 3 * 64 * 2
MAX_LEN = 8192
_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Server:
    """A server to measure.

    Attributes:
        planned_bytes: weights and KV cache, as configured; None if it does not say how large its cache is.
        is_slow: whether it has only the shortest loads, once each.
        cold_starts: how many starts are timed.
    """

    name: str
    title: str
    command: list[str]
    ready_path: str = "/health"
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    planned_bytes: int | None = None
    is_slow: bool = False
    cold_starts: int = 3


def all_servers(peers: Sequence[str], vinfer: str | None) -> tuple[list[Server], dict[str, str]]:
    """Install peers and return every server, vinfer first, and why the others are not there.

    Raises:
        AnswerError: vinfer itself, or its model, is not there.
    """
    command = vinfer_command(vinfer_config(), vinfer)
    original = source(command[0])
    servers = [of_vinfer(command)]
    absent = {}
    for peer in peers:
        try:
            servers += _MAKERS[peer](original)
        except AnswerError as error:
            absent[peer] = error.message
    return servers, absent


def of_vinfer(command: list[str], name: str = "vinfer", title: str = "vinfer") -> Server:
    return Server(name, title, command, "/readiness", planned_bytes=PARAMETERS * 4 + kv_bytes())


def quickstarts(vinfer: str, before: str) -> list[Server]:
    """Return this vinfer and an older one, each with the quickstart's config of its own checkout."""
    older = Path(before).parents[3] / "configs" / CONFIG.name
    return [
        of_vinfer(vinfer_command(CONFIG, vinfer), "quickstart"),
        of_vinfer(vinfer_command(older, before), "before"),
    ]


def vinfer_config(name: str = "vinfer", line: str = "") -> Path:
    """Write configs/smollm2.yaml with the slots of the others, and with a further line in its model."""
    text, count = re.subn(r"num_slots: \d+", f"num_slots: {SLOTS}", CONFIG.read_text())
    text, queues = re.subn(r"max_queue: \d+", "max_queue: 256", text)
    assert count == queues == 1, f"{CONFIG.name} must have one num_slots and one max_queue"
    MODELS.mkdir(parents=True, exist_ok=True)
    path = MODELS / f"{name}.yaml"
    path.write_text(text.replace("    num_slots:", f"    {line}\n    num_slots:") if line else text)
    return path


def kv_bytes() -> int:
    """Return the size of vinfer's KV cache, which the peers get too, rounded to what they can state."""
    found = re.search(r"kv_cache: \{bytes: (\d+)\}", CONFIG.read_text())
    assert found, f"{CONFIG.name} must have kv_cache: {{bytes: N}}"
    return int(found[1])


def _llama_cpp(original: Path) -> list[Server]:
    install("llama.cpp")
    program, variables = llama_binary("llama-server")
    # A cell has keys and values in float16, which is its default.
    tokens = kv_bytes() // (KV_NUMBERS_PER_TOKEN * 4) // 256 * 256
    made = []
    for kind in ("F32", "Q8_0"):
        file = gguf(kind, original)
        # Prompts that it keeps outside the cache of its slots; 8 GiB by default.
        words = f"-np {SLOTS} -c {tokens} -kvu -t 2 --cache-ram 1024 --port {{port}}".split()
        made.append(
            Server(
                f"llama.cpp-{kind}",
                f"llama.cpp {kind}",
                [str(program), "-m", str(file), *words],
                variables=variables,
                planned_bytes=file.stat().st_size + tokens * KV_NUMBERS_PER_TOKEN * 2,
            )
        )
    return made


def _vllm(original: Path) -> list[Server]:
    install("vllm")
    # transformers turns the GGUF file into a directory.
    install("transformers")
    space = max(1, round(kv_bytes() / _GIB))
    words = f"--dtype float32 --max-num-seqs {SLOTS} --max-model-len {MAX_LEN} --port {{port}}".split()
    command = [str(ENVIRONMENTS / "vllm" / "bin" / "vllm"), "serve", str(directory(original)), *words]
    variables = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": f"{space}",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(MODELS / "vllm-cache"),
    }
    planned = PARAMETERS * 4 + space * _GIB
    return [
        Server("vllm", "vLLM", command, variables=variables, planned_bytes=planned, cold_starts=1),
    ]


def _transformers(original: Path) -> list[Server]:
    install("transformers")
    folder = str(directory(original))
    command = [str(ENVIRONMENTS / "transformers" / "bin" / "transformers"), "serve", folder]
    words = ["--dtype", "float32", "--device", "cpu", "--continuous-batching", "--port", "{port}"]
    return [
        Server(
            "transformers",
            "transformers serve",
            [*command, *words],
            variables={"HF_HUB_OFFLINE": "1"},
            is_slow=True,
            cold_starts=1,
        )
    ]


def _esurge(original: Path) -> list[Server]:
    install("esurge")
    install("transformers")
    program = Path(__file__).with_name("serve_esurge.py")
    command = [str(python("esurge")), str(program), str(directory(original)), str(SLOTS), "{port}"]
    return [
        Server(
            "esurge",
            "EasyDeL eSurge",
            command,
            variables={"HF_HUB_OFFLINE": "1", "ENABLE_DISTRIBUTED_INIT": "0", "JAX_PLATFORMS": "cpu"},
            # The size that its KV cache has on every CPU.
            planned_bytes=PARAMETERS * 4 + 4 * _GIB,
            is_slow=True,
            cold_starts=1,
        )
    ]


_MAKERS: Mapping[str, Callable[[Path], list[Server]]] = {
    "llama.cpp": _llama_cpp,
    "vllm": _vllm,
    "transformers": _transformers,
    "esurge": _esurge,
}


def version_of(name: str) -> str:
    """Return the pinned packages of a server."""
    recipe = RECIPES.get(name.split("-")[0])
    return ", ".join(recipe.packages) if recipe else ""
