"""Bundles for meshes on four forced CPU devices: same answers as one device, no KV cache transfers."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

from tiny.bundles import BUNDLES, MESHES_OF_ONE_KIND
from tiny.engines import Answer, Question, ask
from tiny.hlo import moved_kv_shapes
from tiny.mesh_process import CONSTRAINED
from tiny.prompts import crowd, embedding_crowd, scored_crowd, shared_crowd
from tiny.references import answer_logits, compare, differing_steps, embedding_error

from vinfer.bundle.directory import read_manifest
from vinfer.engine.request import TokenLogprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vinfer.engine.engine import Engine

TESTS = Path(__file__).parents[1]
TOLERANCE = 1e-5
MESHES = (
    "llama-tp2",
    "llama-dp2",
    "llama-dp2-tp2",
    "llama-fsdp2",
    "llama-two-kv-heads-tp4",
    "gpt-oss-tp2",
    "phi3-tp2",
    "qwen3-moe-ep2",
)
ONE_DEVICE_TOO = tuple(name for name in MESHES if BUNDLES[name]["checkpoint"] == "llama")


@dataclasses.dataclass(frozen=True)
class MeshRun:
    """The output of `tiny.mesh_process` for one bundle."""

    name: str
    directory: Path
    answers: list[Answer]
    shared: list[Answer]
    scored: list[Answer]
    embedded: list[Answer]
    constrained: list[str]
    collectives: dict[str, dict[str, int]]
    moved_kv: dict[str, list[list[int]]]


def named(bundles: tuple[str, ...]) -> list[Any]:
    """Return the parameters of `mesh_run`, each saying which bundle it needs."""

    def marks(name: str) -> list[pytest.MarkDecorator]:
        left_out = [pytest.mark.whole_matrix] if name in MESHES_OF_ONE_KIND else []
        return [pytest.mark.bundles(name), *left_out]

    return [pytest.param(name, marks=marks(name)) for name in bundles]


def answer_from_json(document: dict[str, Any]) -> Answer:
    def logprobs(key: str) -> list[TokenLogprobs]:
        return [
            TokenLogprobs(line["logprob"], tuple(line["top_ids"]), tuple(line["top_logprobs"]))
            for line in document[key]
        ]

    return Answer(
        document["token_ids"],
        logprobs("logprobs"),
        document["finish_reason"],
        logprobs("prompt_logprobs"),
        document["num_cached_tokens"],
    )


@pytest.fixture(scope="module", params=named(MESHES))
def mesh_run(request: pytest.FixtureRequest, bundle_of: Callable[[str], Path]) -> MeshRun:
    directory = bundle_of(request.param)
    process = subprocess.run(
        [sys.executable, "-m", "tiny.mesh_process", request.param, str(directory)],
        cwd=TESTS,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    answers, shared, scored = (
        [answer_from_json(answer) for answer in found[key]] for key in ("answers", "shared", "scored")
    )
    embedded = [
        Answer(pooled=[np.array(part, np.float32).tobytes() for part in parts]) for parts in found["pooled"]
    ]
    return MeshRun(
        request.param,
        directory,
        answers,
        shared,
        scored,
        embedded,
        found["bound"],
        found["collectives"],
        found["moved_kv"],
    )


def test_grammars_hold_on_a_mesh(mesh_run: MeshRun) -> None:
    """If rows are slots split over dp, masks are indexed by slot."""
    assert len(mesh_run.constrained) == 4
    assert all(re.fullmatch(CONSTRAINED, text) for text in mesh_run.constrained), mesh_run.constrained


def test_a_mesh_answers_as_transformers_does(
    mesh_run: MeshRun, reference_of: Callable[[str], PreTrainedModel]
) -> None:
    model = reference_of(BUNDLES[mesh_run.name]["checkpoint"])
    for question, answer in zip(crowd(join_apart=True), mesh_run.answers, strict=True):
        comparison = compare(answer_logits(model, question, answer), answer)
        assert comparison.wrong_steps == ()
        assert comparison.logprob_errors.max() <= TOLERANCE


def test_a_mesh_copies_a_shared_prompt(
    mesh_run: MeshRun, reference_of: Callable[[str], PreTrainedModel]
) -> None:
    model = reference_of(BUNDLES[mesh_run.name]["checkpoint"])
    assert [answer.num_cached_tokens for answer in mesh_run.shared] == [0, 199, 199]
    for question, answer in zip(shared_crowd(), mesh_run.shared, strict=True):
        comparison = compare(answer_logits(model, question, answer), answer)
        assert comparison.wrong_steps == ()
        assert comparison.logprob_errors.max() <= TOLERANCE


@pytest.mark.parametrize("mesh_run", named(("llama-dp2-tp2",)), indirect=True)
def test_a_mesh_scores_prompts_as_transformers_does(
    mesh_run: MeshRun, reference_of: Callable[[str], PreTrainedModel]
) -> None:
    model = reference_of(BUNDLES[mesh_run.name]["checkpoint"])
    for question, answer in zip(scored_crowd(), mesh_run.scored, strict=True):
        first, *others = question.prompt_ids
        as_answer = Answer(others, answer.prompt_logprobs)
        logits = answer_logits(model, Question((first,)), as_answer)
        assert compare(logits, as_answer).logprob_errors.max() <= TOLERANCE


@pytest.mark.parametrize("mesh_run", named(("llama-dp2-tp2",)), indirect=True)
def test_a_mesh_embeds_as_transformers_does(
    mesh_run: MeshRun, reference_of: Callable[[str], PreTrainedModel]
) -> None:
    model = reference_of(BUNDLES[mesh_run.name]["checkpoint"])
    for question, answer in zip(embedding_crowd(), mesh_run.embedded, strict=True):
        assert embedding_error(model, question, answer) <= TOLERANCE


@pytest.mark.bundles("llama")
@pytest.mark.parametrize("mesh_run", named(ONE_DEVICE_TOO), indirect=True)
def test_a_mesh_answers_as_one_device_does(
    mesh_run: MeshRun,
    engine_of: Callable[[str], Engine],
    reference_of: Callable[[str], PreTrainedModel],
) -> None:
    model = reference_of("llama")
    questions = crowd(join_apart=True)
    alone = ask(engine_of("llama"), questions)
    for question, one, other in zip(questions, alone, mesh_run.answers, strict=True):
        logits = answer_logits(model, question, one)
        assert differing_steps(logits, one, other) == []


def test_weights_and_cache_are_split(mesh_run: MeshRun) -> None:
    manifest = read_manifest(mesh_run.directory)
    whole = dict.fromkeys(manifest.mesh, 1)
    mesh, kv = manifest.mesh, manifest.kv[0]
    split_kv = mesh["dp"] * (mesh["tp"] if kv.shape[2] % mesh["tp"] == 0 else 1)
    assert kv.num_bytes_per_device(mesh) * split_kv == kv.num_bytes_per_device(whole)
    projections = [
        spec for spec in manifest.weights if ".mlp." in spec.name and spec.name.endswith("_proj.kernel")
    ]
    # Gate, up and down of every layer, or gate and up as one.
    assert len(projections) / (len(manifest.kv) // 2) in (2, 3)
    pieces = mesh["tp"] * mesh["fsdp"] * mesh["ep"]
    assert all(s.num_bytes_per_device(mesh) * pieces == s.num_bytes_per_device(whole) for s in projections)


def test_no_program_gathers_the_kv_cache(mesh_run: MeshRun) -> None:
    shapes = [program.shape for program in read_manifest(mesh_run.directory).programs]
    expected = {shape.name for shape in shapes if shape.kind != "set_slot"}
    assert set(mesh_run.moved_kv) == expected
    assert {name: moved for name, moved in mesh_run.moved_kv.items() if moved} == {}
    # Check that the HLO reader sees any communication of this program.
    if BUNDLES[mesh_run.name]["mesh"].get("tp", 1) > 1:
        # copy_slot moves rows of each device's own part; only slots that are split over dp need another's.
        silent = {name for name, counts in mesh_run.collectives.items() if not sum(counts.values())}
        assert silent == (set() if BUNDLES[mesh_run.name]["mesh"].get("dp", 1) > 1 else {"copy_slot"})


GATHERED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((2,), ("dp",))
split, whole = NamedSharding(mesh, P("dp")), NamedSharding(mesh, P())
read = jax.jit(lambda kv: jnp.sin(kv[:, :256]), in_shardings=split, out_shardings=whole)
print(read.lower(jax.ShapeDtypeStruct((4, 512, 4, 16), jnp.float32)).compile().as_text())
"""


def test_a_gathered_cache_would_be_seen() -> None:
    """Compile a program that does gather keys with the same XLA."""
    process = subprocess.run(
        [sys.executable, "-c", GATHERED],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert moved_kv_shapes(process.stdout, kv_lengths={256, 512}, head_dim=16) == [(2, 256, 4, 16)]
    assert moved_kv_shapes(process.stdout, kv_lengths={100}, head_dim=16) == []
