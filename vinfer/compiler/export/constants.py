"""Hides constants from XLA's shape refinement, which crashes where it folds them.

Programs for a mesh are exported for any number of pages, so JAX refines their shapes when they are loaded.
jaxlib 0.9.2 ends the process with a segmentation fault if an operation in the region of a `shard_map`
(`sdy.manual_computation`) has only constants as operands. Knows MLIR and nothing of models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from jax import export
from jax.extend.mlir import ir, serialize_portable_artifact
from jax.extend.mlir.dialects import sdy, stablehlo


def with_hidden_constants(exported: export.Exported) -> export.Exported:
    """Return an equal program in which no operation within a `shard_map` has only constants."""
    with ir.Context() as context, ir.Location.unknown():
        stablehlo.register_dialect(context)
        sdy.register_dialect(context)
        module = stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized)
        functions = {
            ir.StringAttr(operation.attributes["sym_name"]).value: operation
            for operation in _within(module.operation)
            if operation.name == "func.func"
        }
        waiting = [
            operation for operation in _within(module.operation) if operation.name == "sdy.manual_computation"
        ]
        called: set[str] = set()
        while waiting:
            for operation in _within(waiting.pop()):
                if operation.name == "func.call":
                    name = ir.FlatSymbolRefAttr(operation.attributes["callee"]).value
                    if name not in called:
                        called.add(name)
                        waiting.append(functions[name])
                _hide_operands(operation)
        # As `jax.export` itself does: see `_module_to_bytecode` there.
        version = stablehlo.get_version_from_compatibility_requirement(
            stablehlo.StablehloCompatibilityRequirement.WEEK_4
        )
        serialized = serialize_portable_artifact(str(module), version, use_mixed_serialization=True)
    return dataclasses.replace(exported, mlir_module_serialized=serialized)


def _within(operation: ir.Operation) -> Iterator[ir.Operation]:
    for region in operation.regions:
        for block in region.blocks:
            for inner in [view.operation for view in block.operations]:
                yield from _within(inner)
                yield inner


def _hide_operands(operation: ir.Operation) -> None:
    operands = list(operation.operands)
    if operation.name == "func.call":
        # The function may have such operations on its arguments.
        _put_behind_barriers(operation)
    elif operands and all(map(_is_constant, operands)) and not operation.name.endswith(".return"):
        if operation.name == "stablehlo.broadcast_in_dim":
            _broadcast(operation)
        else:
            _put_behind_barriers(operation)


def _is_constant(value: ir.Value) -> bool:  # type: ignore[type-arg, unused-ignore]
    return not isinstance(value.owner, ir.Block) and value.owner.name == "stablehlo.constant"


def _put_behind_barriers(operation: ir.Operation) -> None:
    for place, operand in enumerate(operation.operands):
        if _is_constant(operand):
            with ir.InsertionPoint(operation):
                barrier = stablehlo.OptimizationBarrierOp([operand])  # type: ignore[no-untyped-call]
            operation.operands[place] = barrier.results[0]


def _broadcast(operation: ir.Operation) -> None:
    """Replace the broadcast of a number by a constant."""
    number = ir.DenseElementsAttr(operation.operands[0].owner.attributes["value"])
    whole = ir.DenseElementsAttr.get_splat(operation.results[0].type, number.get_splat_value())
    with ir.InsertionPoint(operation):
        constant = stablehlo.ConstantOp(whole)  # type: ignore[no-untyped-call]
    operation.results[0].replace_all_uses_with(constant.result)
    operation.erase()
