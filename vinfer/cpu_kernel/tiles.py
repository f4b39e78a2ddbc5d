"""The inner loop of products: a few rows times a few columns, with sums that stay in registers.

A vector holds partial sums of one result; at the end those of four columns are added up together.
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
    constant,
    load_floats,
    load_stored,
    multiplied_and_added,
    new_function,
    prefetch,
    totals,
)

COLUMNS = 4
"""Columns of a whole tile."""
LENGTH_MULTIPLE = 16
"""Rows and columns have a multiple of so many values, which is a multiple of every vector's lanes."""


def build_products(module: ir.Module, target: Target) -> ir.Function:
    """Build `products(out, x, w, num_rows, start, end, length, stride, out_width)`: out[r, c] = x[r] . w[c].

    The function computes the columns from `start` to `end`, for all rows. `stride` is how many values lie
    between the beginnings of two columns, and `out_width` between those of two rows of the result.
    """
    function, builder = new_function(module, "products", POINTER, POINTER, POINTER, *[I64] * 6)
    out, x, w, num_rows, start, end, length, stride, out_width = function.args
    num_whole = builder.mul(builder.sdiv(builder.sub(end, start), I64(COLUMNS)), I64(COLUMNS))
    whole_end = builder.add(start, num_whole)
    for first, last, columns in ((start, whole_end, COLUMNS), (whole_end, end, 1)):
        tiles = [
            _build_tile(module, target, rows=rows, columns=columns) for rows in range(1, target.max_rows + 1)
        ]
        is_any = builder.icmp_signed("<", first, last)
        with builder.if_then(is_any), Loop(builder, first, last, I64(columns)) as loop:
            weights = at(builder, w, target.stored, builder.mul(loop.counter, stride))

            def arguments(row: ir.Value, weights: ir.Value = weights, loop: Loop = loop) -> list[ir.Value]:
                results = at(builder, out, F32, builder.add(builder.mul(row, out_width), loop.counter))
                values = at(builder, x, F32, builder.mul(row, length))
                return [results, values, weights, length, stride, out_width]

            by_height(builder, tiles, num_rows, arguments)
    builder.ret_void()
    return function


def _build_tile(module: ir.Module, target: Target, *, rows: int, columns: int) -> ir.Function:
    """Build `tile(out, x, w, length, stride, out_width)`: out[r, c] = x[r] . w[c].

    Args:
        columns: `COLUMNS` or 1.
    """
    tile, builder = new_function(module, f"tile_{rows}x{columns}", POINTER, POINTER, POINTER, I64, I64, I64)
    out, x, w, length, stride, out_width = tile.args
    row_starts = [at(builder, x, F32, builder.mul(I64(row), length)) for row in range(rows)]
    # The columns of the next tile follow.
    column_starts = [
        at(builder, w, target.stored, builder.mul(I64(column), stride)) for column in range(2 * columns)
    ]
    with Loop(builder, I64(0), length, I64(target.lanes)) as loop:
        sums = [[loop.carry(constant(target.vector, 0.0)) for _ in range(columns)] for _ in range(rows)]
        for start in column_starts[columns:]:
            prefetch(builder, at(builder, start, target.stored, loop.counter))
        weights = [
            load_stored(builder, at(builder, start, target.stored, loop.counter), target)
            for start in column_starts[:columns]
        ]
        for start, sums_of_row in zip(row_starts, sums, strict=True):
            values = load_floats(builder, at(builder, start, F32, loop.counter), target.lanes)
            for weight, sum_ in zip(weights, sums_of_row, strict=True):
                sum_.update(multiplied_and_added(builder, values, weight, sum_.value))
    for row, sums_of_row in enumerate(sums):
        results = at(builder, out, F32, builder.mul(I64(row), out_width))
        builder.store(totals(builder, [sum_.value for sum_ in sums_of_row]), results, align=4)
    builder.ret_void()
    return tile
