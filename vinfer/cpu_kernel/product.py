"""The product of rows with one weight.

Weights are [columns, length] as checkpoints store them, so that each column is read from its beginning to its
end, once.
"""

from __future__ import annotations

from llvmlite import ir

from vinfer.cpu_kernel.code import (
    F32,
    I64,
    POINTER,
    Loop,
    Target,
    at,
    by_height,
    least,
    new_function,
    rounded_up,
)
from vinfer.cpu_kernel.jobs import Array, Job
from vinfer.cpu_kernel.tiles import COLUMNS, build_tiles

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
    function, builder = new_function(module, "piece", POINTER, I64)
    job, number = function.args
    out, x, w, num_rows, length, num_columns, width_of_piece = _JOB.members(builder, job)
    start = builder.mul(number, width_of_piece)
    end = least(builder, builder.add(start, width_of_piece), num_columns)
    num_whole = builder.mul(builder.sdiv(builder.sub(end, start), I64(COLUMNS)), I64(COLUMNS))
    whole_end = builder.add(start, num_whole)
    for first, last, width in ((start, whole_end, COLUMNS), (whole_end, end, 1)):
        tiles = build_tiles(module, target, columns=width)
        is_any = builder.icmp_signed("<", first, last)
        with builder.if_then(is_any), Loop(builder, first, last, I64(width)) as loop:
            weights = at(builder, w, target.stored, builder.mul(loop.counter, length))

            def tile_arguments(
                row: ir.Value, weights: ir.Value = weights, loop: Loop = loop
            ) -> list[ir.Value]:
                results = at(builder, out, F32, builder.add(builder.mul(row, num_columns), loop.counter))
                values = at(builder, x, F32, builder.mul(row, length))
                return [results, values, weights, length, length, num_columns]

            by_height(builder, tiles, num_rows, tile_arguments)
    builder.ret_void()
    return function
