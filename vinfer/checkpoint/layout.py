"""Lists the tensors that a checkpoint must hold, in Hugging Face names and shapes.

Runs in the build half, on any thread. Catches truncated, foreign and mislabeled checkpoints before
a build of several minutes. Shared pieces are here, whole models in `families/`. Reads no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vinfer.errors import CheckpointError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def linear_shapes(
    name: str, num_outputs: int, num_inputs: int, *, has_bias: bool = False
) -> dict[str, Shape]:
    """List the tensors of one Linear: weight [out, in], bias [out]."""
    weight = {f"{name}.weight": (num_outputs, num_inputs)}
    return {**weight, f"{name}.bias": (num_outputs,)} if has_bias else dict(weight)


def gated_mlp_shapes(name: str, *, hidden: int, inner: int, has_bias: bool = False) -> dict[str, Shape]:
    """List gate, up and down of a gated feed-forward block."""
    return {
        **linear_shapes(f"{name}.gate_proj", inner, hidden, has_bias=has_bias),
        **linear_shapes(f"{name}.up_proj", inner, hidden, has_bias=has_bias),
        **linear_shapes(f"{name}.down_proj", hidden, inner, has_bias=has_bias),
    }


def norm_shapes(names: Iterable[str], size: int, *, has_bias: bool = False) -> dict[str, Shape]:
    """List norms: RMS norms have no bias; the layer norms of older families do."""
    kinds = ("weight", "bias") if has_bias else ("weight",)
    return {f"{name}.{kind}": (size,) for name in names for kind in kinds}


def check_layout(expected: Shapes, found: Shapes, where: str) -> None:
    """Compare the tensors of a checkpoint with the expected ones.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is not one that the model reads.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise CheckpointError(
            f"{where} lacks {len(missing)} of {len(expected)} tensors, first {missing[0]}: "
            "the download is incomplete or config.json belongs to another model; fetch the checkpoint again"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                f"{where}: {name} has shape {list(found[name])}; its config requires {list(shape)}: "
                "config and weights belong to different models"
            )
    surplus = [name for name in found if name not in expected]
    if surplus:
        raise CheckpointError(
            f"{where} has {len(surplus)} tensors that its config does not use, first {surplus[0]}: "
            "the model is an unsupported variant"
        )
