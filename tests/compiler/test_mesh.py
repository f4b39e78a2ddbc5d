"""Bundles for meshes on four forced CPU devices: same answers as one device, no page leaves its device."""

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
from tiny.checkpoints import checkpoint_directory
from tiny.engines import Answer, Question, ask
from tiny.hlo import moves_of
from tiny.mesh_process import CONSTRAINED
from tiny.prompts import crowd, embedding_crowd, long_answers, scored_crowd, shared_crowd
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
    moved_pools: dict[str, list[tuple[str, list[int]]]]
    num_accepted: int


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


def output_of(*arguments: str | Path) -> dict[str, Any]:
    """Run `tiny.mesh_process`."""
    process = subprocess.run(
        [sys.executable, "-m", "tiny.mesh_process", *map(str, arguments)],
        cwd=TESTS,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module", params=named(MESHES))
def mesh_run(request: pytest.FixtureRequest, bundle_of: Callable[[str], Path]) -> MeshRun:
    directory = bundle_of(request.param)
    found = output_of(request.param, directory)
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
        found["moved_pools"],
        found["num_accepted"],
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


def test_a_mesh_shares_a_prompt(mesh_run: MeshRun, reference_of: Callable[[str], PreTrainedModel]) -> None:
    """Each dp shard has its own pages, so each prefills the prompt once at most."""
    model = reference_of(BUNDLES[mesh_run.name]["checkpoint"])
    manifest = read_manifest(mesh_run.directory)
    num_shards = manifest.mesh["dp"]
    # With single shapes, whole chunks of 64 tokens are shared; otherwise all but the last token of 200.
    num_shared = 192 if manifest.is_deterministic else 199
    cached = [answer.num_cached_tokens for answer in mesh_run.shared]
    # A request that arrives when the first is prefilled goes to its shard, if that has a slot left.
    assert cached[0] == 0
    assert set(cached) == {0, num_shared}
    assert cached.count(0) <= num_shards
    for question, answer in zip(shared_crowd(), mesh_run.shared, strict=True):
        comparison = compare(answer_logits(model, question, answer), answer)
        assert comparison.wrong_steps == ()
        assert comparison.logprob_errors.max() <= TOLERANCE


@pytest.mark.parametrize("mesh_run", named(("llama-dp2-tp2",)), indirect=True)
def test_drafts_are_right_on_a_mesh(mesh_run: MeshRun) -> None:
    """The tokens around them are compared above. Rows of verify are gathered, although slots are split."""
    assert mesh_run.num_accepted > 0


@pytest.mark.bundles("llama-dp2-tp2")
def test_a_shard_without_memory_preempts(
    bundle_of: Callable[[str], Path], reference_of: Callable[[str], PreTrainedModel]
) -> None:
    """Each of two shards has six pages and two slots, for requests of up to four pages."""
    name = "llama-dp2-tp2"
    found = output_of(name, bundle_of(name), "12")
    assert found["num_preemptions"] > 0
    model = reference_of("llama")
    for question, document in zip(long_answers(), found["answers"], strict=True):
        answer = answer_from_json(document)
        assert len(answer.token_ids) == question.params.max_tokens
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
    mesh = manifest.mesh
    config = json.loads(
        (checkpoint_directory(BUNDLES[mesh_run.name]["checkpoint"]) / "config.json").read_text()
    )
    num_kv_heads = config["num_key_value_heads"]
    split_kv = mesh["dp"] * (mesh["tp"] if num_kv_heads % mesh["tp"] == 0 else 1)
    for pool in manifest.kv_specs([3] * len(manifest.kv_windows)):
        assert pool.num_bytes_per_device(mesh) * split_kv == pool.num_bytes_per_device(whole)
    projections = [
        spec for spec in manifest.weights if ".mlp." in spec.name and spec.name.endswith("_proj.kernel")
    ]
    # Gate, up and down of every layer, or gate and up as one.
    assert len(projections) / (len(manifest.kv) // 2) in (2, 3)
    pieces = mesh["tp"] * mesh["fsdp"] * mesh["ep"]
    assert all(s.num_bytes_per_device(mesh) * pieces == s.num_bytes_per_device(whole) for s in projections)


def test_no_program_moves_or_copies_a_pool(mesh_run: MeshRun) -> None:
    """Pages, tables and prefixes belong to a dp shard, and the heads in a page to a tp shard."""
    shapes = [program.shape for program in read_manifest(mesh_run.directory).programs]
    expected = {shape.name for shape in shapes if shape.kind != "set_slot"}
    assert set(mesh_run.moved_pools) == expected
    assert {name: moved for name, moved in mesh_run.moved_pools.items() if moved} == {}
    # Check that the HLO reader sees any communication of this program.
    if BUNDLES[mesh_run.name]["mesh"].get("tp", 1) > 1:
        silent = {name for name, counts in mesh_run.collectives.items() if not sum(counts.values())}
        assert silent == {"copy_page"}


MOVED = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((2,), ("dp",))
split, whole = NamedSharding(mesh, P("dp")), NamedSharding(mesh, P())
written = lambda pool: pool.at[3, 5].set(1.0)
program = {
    "gathered": jax.jit(jnp.sin, in_shardings=split, out_shardings=whole),
    "copied": jax.jit(written, in_shardings=whole, out_shardings=whole),
    "donated": jax.jit(written, in_shardings=whole, out_shardings=whole, donate_argnums=0),
}[sys.argv[1]]
print(program.lower(jax.ShapeDtypeStruct((64, 32, 64), jnp.float32)).compile().as_text())
"""


@pytest.mark.parametrize(
    ("program", "opcode"), [("gathered", "all-gather"), ("copied", "copy"), ("donated", None)]
)
def test_a_moved_or_copied_pool_would_be_seen(program: str, opcode: str | None) -> None:
    """Compile programs that do so, and one that does not, with the same XLA."""
    process = subprocess.run(
        [sys.executable, "-c", MOVED, program],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    moves = moves_of(process.stdout, shapes={(64, 32, 64), (32, 32, 64)})
    assert {name for name, _ in moves} == ({opcode} if opcode else set())
    assert moves_of(process.stdout, shapes={(64, 32, 63)}) == []
