"""Programs come to exist without weights, and those for accelerators keep their weights where they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from accelerator_check.cases import Case, cut, published_config
from accelerator_check.read import pools_of
from jax import export

from vinfer.bundle.directory import read_manifest
from vinfer.compiler.decode_kernel import CUSTOM_CALL

SCRIPTS = Path(__file__).parents[2] / "scripts"
NUM_LAYERS = 2
TINY = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 512, "head_dim": 16}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2, "bos_token_id": 1}

pytestmark = [pytest.mark.easydel, pytest.mark.slow]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Export a tiny Llama for two platforms in the script's own child process."""
    config = cut(published_config("Llama-3.2-1B-Instruct"), NUM_LAYERS) | TINY | HEADS
    directory = tmp_path_factory.mktemp("programs")
    cases = {
        platform: Case("tiny", config, NUM_LAYERS, platform, tp=1, num_slots=4, max_model_len=1024)
        for platform in ("cpu", "tpu", "cuda")
    }
    subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerator_check.export",
            str(directory),
            *(case.json for case in cases.values()),
        ],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS), "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
    )
    return {platform: directory / case.name for platform, case in cases.items()}


def test_the_manifest_describes_arrays_that_were_never_read(exported: dict[str, Path]) -> None:
    manifest = read_manifest(exported["tpu"])
    names = [program.shape.name for program in manifest.programs]
    assert names == ["copy_page", "decode[1,8]", "decode[4,8]", "prefill[1,1024]"]
    assert not (exported["tpu"] / "weights").exists()
    # 4 slots with 1024 positions of 2 heads of 16.
    assert [pool.num_elements for pool in pools_of(manifest)] == [4 * 1024 * 32] * 2 * NUM_LAYERS
    assert [pool.position_bytes for pool in pools_of(manifest)] == [64] * 2 * NUM_LAYERS


@pytest.mark.parametrize(
    ("platform", "barriers"), [("tpu", 3 * NUM_LAYERS), ("cuda", 3 * NUM_LAYERS), ("cpu", 0)]
)
def test_projections_do_not_know_the_heads_on_accelerators(
    exported: dict[str, Path], platform: str, barriers: int
) -> None:
    """Without barriers XLA on a TPU copied the weights of q, k and v, transposed, in each dispatch."""
    manifest = read_manifest(exported[platform])
    for program in manifest.programs:
        if program.shape.uses_weights:
            stablehlo = (exported[platform] / "programs" / program.file).read_bytes()
            text = export.deserialize(bytearray(stablehlo)).mlir_module()
            assert text.count("stablehlo.optimization_barrier") == barriers


@pytest.mark.parametrize(("platform", "kernels"), [("tpu", 0), ("cuda", NUM_LAYERS), ("cpu", 0)])
def test_every_layer_decodes_with_the_kernel_on_a_gpu(
    exported: dict[str, Path], platform: str, kernels: int
) -> None:
    """Prefill has many tokens per row, which the kernel does not support."""
    manifest = read_manifest(exported[platform])
    for program in manifest.programs:
        stablehlo = (exported[platform] / "programs" / program.file).read_bytes()
        found = export.deserialize(bytearray(stablehlo)).mlir_module().count(CUSTOM_CALL)
        assert found == (kernels if program.shape.kind == "decode" else 0)
