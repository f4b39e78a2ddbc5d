"""The product of rows with one weight.

Weights are [columns, length] as checkpoints store them, so that each column is read from its beginning to its
end, once.
"""

from __future__ import annotations

from llvmlite import ir

from vinfer.cpu_kernel.code import (
    I64,
    POINTER,
    Target,
    least,
    new_function,
    rounded_up,
)
from vinfer.cpu_kernel.jobs import Array, Job
from vinfer.cpu_kernel.tiles import COLUMNS, build_products

_PIECE_BYTES = 128 << 10
"""Weights that a thread takes at once."""

# Result, rows, weights; the number of rows, their length, the number of columns, and those of a piece.
_JOB = Job([POINTER, POINTER, POINTER, I64, I64, I64, I64])


def build_product(module: ir.Module, name: str, target: Target) -> None:
    """Build the handler `name`: x float32 [rows, length], w [columns, length] -> float32 [rows, columns]."""

    def describe(
        builder: ir.IRBuilder, arguments: list[Array], result: Array
    ) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
        x, w = arguments
        rows, length, columns = x.size(0), x.size(1), w.size(0)
        # A piece is some whole tiles wide.
        piece = builder.sdiv(I64(_PIECE_BYTES // target.stored_bytes), length)
        piece = builder.mul(rounded_up(builder, builder.add(piece, I64(1)), I64(COLUMNS)), I64(COLUMNS))
        num_pieces = rounded_up(builder, columns, piece)
        return num_pieces, num_pieces, [result.data(), x.data(), w.data(), rows, length, columns, piece]

    _JOB.build_handler(module, name, _build_piece(module, target), describe, num_arguments=2)


def _build_piece(module: ir.Module, target: Target) -> ir.Function:
    """Build `piece(job, number)`: the results of some columns, for all rows."""
    products = build_products(module, target)
    function, builder = new_function(module, "piece", POINTER, I64)
    job, number = function.args
    out, x, w, num_rows, length, num_columns, width_of_piece = _JOB.members(builder, job)
    start = builder.mul(number, width_of_piece)
    end = least(builder, builder.add(start, width_of_piece), num_columns)
    builder.call(products, [out, x, w, num_rows, start, end, length, length, num_columns])
    builder.ret_void()
    return function
