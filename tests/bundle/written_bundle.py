"""A small manifest and the files that it names."""

from __future__ import annotations

from vinfer.bundle.manifest import (
    FORMAT_VERSION,
    ArraySpec,
    KVArray,
    Manifest,
    ModelCard,
    ProgramSpec,
    StateSpec,
    WeightSpec,
)
from vinfer.bundle.programs import ProgramShape

MESH = {"dp": 2, "fsdp": 1, "ep": 1, "tp": 4, "sp": 1}


PROGRAM = "programs/set_slot.stablehlo"


WEIGHTS = "weights/0.safetensors"


def make_manifest(files: dict[str, str]) -> Manifest:
    tokens = ArraySpec(name="tokens", shape=(8, 4), dtype="int32")
    return Manifest(
        format_version=FORMAT_VERSION,
        key="0" * 64,
        created=1_700_000_000,
        versions={"jax": "0.9.2", "jaxlib": "0.9.2", "easydel": "0.3.0"},
        platform="cpu",
        mesh=MESH,
        dtype="bfloat16",
        num_slots=4,
        max_model_len=64,
        model=ModelCard(
            source="tiny",
            architecture="LlamaForCausalLM",
            task="text",
            num_parameters=1024,
            bos_token_id=None,
            eos_token_ids=(1, 2),
            pad_token_id=0,
            vocab_size=16,
            sampling_defaults={"temperature": 1.0, "top_k": 40},
        ),
        weights=(
            WeightSpec(name="w", shape=(16, 8), dtype="bfloat16", axes=(("dp", "fsdp"), "tp"), file="0"),
            WeightSpec(name="norm", shape=(8,), dtype="float32", file="0"),
        ),
        page_size=16,
        kv_windows=(None, 8),
        kv=(
            KVArray(name="k", group=0, width=8, dtype="bfloat16", axes=("dp", None, "tp")),
            KVArray(name="windowed.k", group=1, width=16, dtype="bfloat16", axes=("dp", None, "tp")),
        ),
        state=(
            StateSpec(name="active", shape=(4,), dtype="bool", axes=("dp",), initial=False),
            StateSpec(name="stop_ids", shape=(4, 16), dtype="int32", axes=("dp", None), initial=-1),
            StateSpec(name="top_p", shape=(4,), dtype="float32", axes=("dp",), initial=1.0),
        ),
        programs=(
            ProgramSpec(
                shape=ProgramShape(kind="decode", rows=4, length=8),
                file=PROGRAM,
                inputs=(ArraySpec(name="slots", shape=(4,), dtype="int32"),),
                outputs=(tokens,),
            ),
        ),
        files=files,
    )
