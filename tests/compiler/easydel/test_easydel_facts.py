"""Checks that each correction in `vinfer.compiler.easydel` is still necessary.

A failure here means that EasyDeL has changed: remove the correction and its test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

from tiny.checkpoints import checkpoint

TESTS = Path(__file__).parents[2]
OF_TORCH = ("torch", "torchgen", "functorch")

pytestmark = pytest.mark.easydel


def facts(*arguments: str, flags: tuple[str, ...] = (), **environ: str) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, *flags, "-m", "tiny.easydel_facts", *arguments],
        cwd=TESTS,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def of_imports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Measure a plain import of EasyDeL, without torch."""
    site = tmp_path_factory.mktemp("site-without-torch")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name.partition("-")[0] not in OF_TORCH:
            (site / entry.name).symlink_to(entry)
    return facts(
        "imports",
        # Without the site module, which would add the real packages.
        flags=("-S",),
        PYTHONPATH=os.pathsep.join([str(site), str(TESTS)]),
        COMPILE_FUNC_DIR=str(tmp_path_factory.mktemp("ejit")),
    )


@pytest.fixture(scope="module")
def of_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Measure EasyDeL's models through our adapter, with one correction removed at a time."""
    return facts(
        "models",
        str(checkpoint("llama-two-kv-heads")),
        COMPILE_FUNC_DIR=str(tmp_path_factory.mktemp("ejit")),
        ENABLE_DISTRIBUTED_INIT="0",
    )


def test_its_families_cannot_all_be_imported_without_torch(of_imports: dict[str, Any]) -> None:
    assert not of_imports["has_torch"]
    assert of_imports["modules_without_torch"] != "imported"
    assert "torch" in of_imports["modules_without_torch"].lower()


def test_its_import_starts_jax_distributed(of_imports: dict[str, Any]) -> None:
    assert of_imports["initialises_distributed"]


def test_its_import_moves_the_compilation_cache(of_imports: dict[str, Any]) -> None:
    assert of_imports["moves_compilation_cache"]


def test_the_adapter_works_with_all_corrections(of_models: dict[str, Any]) -> None:
    assert of_models["as_it_is"] == "none"


def test_it_rounds_the_rotary_table(of_models: dict[str, Any]) -> None:
    assert of_models["rope_table_dtype"] == "bfloat16"


def test_it_wants_its_mesh_as_a_context(of_models: dict[str, Any]) -> None:
    assert "mesh" in of_models["outside_mesh"].lower()


def test_it_compares_the_batch_of_a_view_that_has_a_key(of_models: dict[str, Any]) -> None:
    assert "Batch size mismatch" in of_models["with_a_key_in_the_view"]


def test_it_does_not_read_rope_parameters(of_models: dict[str, Any]) -> None:
    assert of_models["rope_theta_of_rope_parameters"] == 10_000


def test_its_attention_rounds_unless_told_otherwise(of_models: dict[str, Any]) -> None:
    assert of_models["attn_dtype_by_default"] == "bfloat16"


def test_its_qwen_configs_slide_unless_told_otherwise(of_models: dict[str, Any]) -> None:
    assert "sliding_attention" in of_models["qwen2_layer_types_by_default"]


def test_its_olmo2_exchanges_two_norms_and_rounds_them(of_models: dict[str, Any]) -> None:
    assert of_models["olmo2_norms"] == {"q_norm": [16, "bfloat16"], "k_norm": [32, "bfloat16"]}


def test_its_cohere2_does_not_rotate_without_a_window(of_models: dict[str, Any]) -> None:
    assert not of_models["cohere2_rotates_without_window"]


def test_its_cohere2_does_not_read_a_tied_head(of_models: dict[str, Any]) -> None:
    assert of_models["cohere2_tied_logits_of_a_zero_embedding"] > 0


def test_none_of_its_ways_through_a_mixture_is_right_for_all(of_models: dict[str, Any]) -> None:
    errors = of_models["errors_of_mixtures"]
    wrong = {
        method: [family for family in errors if errors[family][method] > 1e-3]
        for method in ("FUSED_MOE", "STANDARD_MOE", "DENSE_MOE")
    }
    assert wrong == {
        "FUSED_MOE": ["gpt_oss"],
        "STANDARD_MOE": ["mixtral", "qwen3_moe", "gpt_oss"],
        "DENSE_MOE": ["qwen3_moe", "gpt_oss"],
    }
    assert errors["mixtral"]["FUSED_MOE"] < 1e-6
    assert errors["qwen3_moe"]["FUSED_MOE"] < 1e-6


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        # Half of half of 16 dimensions.
        ("stablelm_rotary_dim", 4),
        ("stablelm_query_bias", False),
        ("stablelm_causal", True),
        ("stablelm_norms_used", 1),
        ("glm4_rotates_halves", True),
        ("glm4_output_bias", True),
        ("gpt_neox_takes_heads_in_turn", False),
        # For 192 outputs.
        ("gpt2_bias", [64]),
        ("gpt2_causal", True),
        ("gpt2_scale_of_layer_1", 0.25),
    ],
)
def test_its_older_families_need_their_corrections(
    of_models: dict[str, Any], fact: str, value: object
) -> None:
    assert of_models["attentions"][fact] == value
