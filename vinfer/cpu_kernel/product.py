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
    least,
    new_function,
    rounded_up,
)
from vinfer.cpu_kernel.jobs import Array, Job
from vinfer.cpu_kernel.tiles import COLUMNS, build_tile

_PIECE_BYTES = 128 << 10
"""Weights that a thread takes at once."""

# Result, rows, weights; the number of rows, their length, the number of columns, and those of a piece.
_JOB = Job([POINTER, POINTER, POINTER, I64, I64, I64, I64])


def build_product(module: ir.Module, name: str, target: Target) -> None:
    """Build the handler `name`: x float32 [rows, length], w [columns, length] -> float32 [rows, columns]."""

    def describe(
        builder: ir.IRBuilder, arguments: list[Array], result: Array
    ) -> tuple[ir.Value, list[ir.Value]]:
        x, w = arguments
        rows, length, columns = x.size(0), x.size(1), w.size(0)
        # A piece is some whole tiles wide.
        piece = builder.sdiv(I64(_PIECE_BYTES // target.stored_bytes), length)
        piece = builder.mul(rounded_up(builder, builder.add(piece, I64(1)), I64(COLUMNS)), I64(COLUMNS))
        num_pieces = rounded_up(builder, columns, piece)
        return num_pieces, [result.data(), x.data(), w.data(), rows, length, columns, piece]

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
        tiles = [
            build_tile(module, target, rows=rows, columns=width) for rows in range(1, target.max_rows + 1)
        ]
        is_any = builder.icmp_signed("<", first, last)
        with builder.if_then(is_any), Loop(builder, first, last, I64(width)) as loop:
            weights = at(builder, w, target.stored, builder.mul(loop.counter, length))
            results = at(builder, out, F32, loop.counter)
            _build_rows(builder, tiles, results, x, weights, num_rows, length, num_columns)
    builder.ret_void()
    return function


def _build_rows(
    builder: ir.IRBuilder,
    tiles: list[ir.Function],
    out: ir.Value,
    x: ir.Value,
    weights: ir.Value,
    num_rows: ir.Value,
    length: ir.Value,
    num_columns: ir.Value,
) -> None:
    """Build a column of tiles. They are nearly equal in height: 16 rows are 6, 5 and 5."""
    before = builder.block
    body, done = builder.append_basic_block("rows"), builder.append_basic_block("rows_done")
    builder.branch(body)
    builder.position_at_end(body)
    row = builder.phi(I64)
    row.add_incoming(I64(0), before)
    left = builder.sub(num_rows, row)
    height = rounded_up(builder, left, rounded_up(builder, left, I64(len(tiles))))
    results = at(builder, out, F32, builder.mul(row, num_columns))
    values = at(builder, x, F32, builder.mul(row, length))
    next_ = builder.append_basic_block("next")
    switch = builder.switch(height, next_)
    for rows, tile in enumerate(tiles, start=1):
        case = builder.append_basic_block(f"rows_{rows}")
        switch.add_case(I64(rows), case)
        builder.position_at_end(case)
        builder.call(tile, [results, values, weights, length, length, num_columns])
        builder.branch(next_)
    builder.position_at_end(next_)
    following = builder.add(row, height)
    row.add_incoming(following, next_)
    builder.cbranch(builder.icmp_signed("<", following, num_rows), body, done)
    builder.position_at_end(done)
