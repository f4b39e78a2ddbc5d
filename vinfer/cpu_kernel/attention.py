"""Attention of each token over the pages of its row, with a running softmax in float32.

Keys and values are read where they lie, and nothing is read of positions that the token does not see.

Source: FlashAttention (Dao et al., 2022) for the running softmax.
"""

from __future__ import annotations

import math

from llvmlite import ir

from vinfer.cpu_kernel.code import (
    F32,
    I32,
    I64,
    POINTER,
    Loop,
    Struct,
    Target,
    at,
    by_height,
    call,
    constant,
    greatest,
    least,
    load_floats,
    load_stored,
    multiplied_and_added,
    new_function,
    on_stack,
    rounded_up,
    spread,
    totals,
)
from vinfer.cpu_kernel.jobs import Array, Job
from vinfer.cpu_kernel.tiles import build_products

MASKED = -1e30
"""Score of no position, and of a sink that there is not."""
_VALUE_VECTORS = 4
"""Vectors of a value that are summed at once."""

_BLOCK = 16
"""Tokens of a row that share what is read of a page."""
_PRODUCTS_OF_THREAD = 1 << 18
"""Multiplications for which a thread is woken: some ten microseconds."""
_NO_POSITION = 2**31 - 1
_STATE = ir.LiteralStructType([F32, F32, F32])
"""Of one query: the highest score, the sum of all exponentials, the decay of earlier ones."""
_TOP, _TOTAL, _DECAY = range(3)
_NUM_ARRAYS, _NUM_SIZES = 8, 10
# Addresses of the result, queries, keys, values, page tables, first and last positions, sinks. The numbers of
# heads, of KV heads, of tokens in a row, of pages in a table, of pages, and of positions in a page. The
# sizes of a head's key and value, and of the keys and values of all heads.
_JOB = Job([*[POINTER] * _NUM_ARRAYS, *[I64] * _NUM_SIZES])


def build_attention(module: ir.Module, name: str, target: Target) -> None:
    """Build the handler `name`; see `calls.attend` for its arguments and result."""

    def describe(
        builder: ir.IRBuilder, arguments: list[Array], result: Array
    ) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
        query, keys, values, tables = arguments[:4]
        heads, dim, value_dim = query.size(1), query.size(2), result.size(2)
        key_width, value_width = keys.size(2), values.size(2)
        kv_heads = builder.sdiv(key_width, dim)
        rows = tables.size(0)
        length = builder.sdiv(query.size(0), rows)
        data = [array.data() for array in (result, *arguments)]
        sizes = [heads, kv_heads, length, tables.size(1), keys.size(0), keys.size(1)]
        blocks = builder.mul(rows, rounded_up(builder, length, I64(_BLOCK)))
        num_pieces = builder.mul(blocks, kv_heads)
        positions = _num_positions(builder, query.size(0), arguments[4].data(), arguments[5].data())
        num_products = builder.mul(positions, builder.mul(heads, builder.add(dim, value_dim)))
        most_threads = builder.add(builder.sdiv(num_products, I64(_PRODUCTS_OF_THREAD)), I64(1))
        members = [*data, *sizes, dim, value_dim, key_width, value_width]
        return num_pieces, most_threads, members

    _JOB.build_handler(module, name, _build_piece(module, target), describe, num_arguments=_NUM_ARRAYS - 1)


def _load_integer(builder: ir.IRBuilder, integers: ir.Value, place: ir.Value) -> ir.Value:
    """Load one of some 32-bit integers."""
    return builder.sext(builder.load(at(builder, integers, I32, place), typ=I32), I64)


def _num_positions(builder: ir.IRBuilder, num_tokens: ir.Value, firsts: ir.Value, ends: ir.Value) -> ir.Value:
    """Return how many positions all tokens see."""
    with Loop(builder, I64(0), num_tokens, I64(1)) as loop:
        total = loop.carry(I64(0))
        first, end = (_load_integer(builder, limits, loop.counter) for limits in (firsts, ends))
        total.update(builder.add(total.value, greatest(builder, builder.sub(end, first), I64(0))))
    return total.value


def _build_piece(module: ir.Module, target: Target) -> ir.Function:
    """Build `piece(job, number)`: the heads of one KV head, for some tokens of a row.

    Each page is read once, for all of them.
    """
    products, softmax = build_products(module, target), _build_softmax(module, target)
    weigh = [_build_weigh(module, target, rows) for rows in range(1, target.max_rows + 1)]
    function, builder = new_function(module, "piece", POINTER, I64)
    job, number = function.args
    members = _JOB.members(builder, job)
    out, queries, keys, values, tables, firsts, ends, sinks = members[:_NUM_ARRAYS]
    heads, kv_heads, length, table_len, num_pages, page_size = members[_NUM_ARRAYS:-4]
    dim, value_dim, key_width, value_width = members[-4:]
    group = builder.sdiv(heads, kv_heads)
    kv_head, block = builder.srem(number, kv_heads), builder.sdiv(number, kv_heads)
    blocks_of_row = rounded_up(builder, length, I64(_BLOCK))
    row = builder.sdiv(block, blocks_of_row)
    start = builder.mul(builder.srem(block, blocks_of_row), I64(_BLOCK))
    first_token = builder.add(builder.mul(row, length), start)
    num_tokens = least(builder, builder.sub(length, start), I64(_BLOCK))
    num_queries = builder.mul(num_tokens, group)
    table = at(builder, tables, I32, builder.mul(row, table_len))
    keys = at(builder, keys, target.stored, builder.mul(kv_head, dim))
    values = at(builder, values, target.stored, builder.mul(kv_head, value_dim))
    # Of each head of the group: what follows the scores fills the last vector.
    width = builder.add(page_size, I64(target.lanes))
    scores = on_stack(builder, F32, builder.mul(group, width))
    states = on_stack(builder, _STATE, num_queries)

    def limits_of(token: ir.Value) -> tuple[ir.Value, ir.Value]:
        return _load_integer(builder, firsts, token), _load_integer(builder, ends, token)

    def of_query(query: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """Return the token, the head, the address of the output and the state of one query."""
        token = builder.add(first_token, builder.sdiv(query, group))
        head = builder.add(builder.mul(kv_head, group), builder.srem(query, group))
        place = builder.add(builder.mul(token, heads), head)
        output = at(builder, out, F32, builder.mul(place, value_dim))
        return token, head, output, at(builder, states, _STATE, query)

    with Loop(builder, I64(0), num_tokens, I64(1)) as loop:
        lowest, highest = loop.carry(I64(_NO_POSITION)), loop.carry(I64(0))
        first, end = limits_of(builder.add(first_token, loop.counter))
        first = builder.select(builder.icmp_signed("<", first, end), first, I64(_NO_POSITION))
        lowest.update(least(builder, lowest.value, first))
        highest.update(greatest(builder, highest.value, end))
    with Loop(builder, I64(0), num_queries, I64(1)) as loop:
        _, head, output, state = of_query(loop.counter)
        members_of_state = Struct(builder, _STATE, state)
        members_of_state.set(_TOP, builder.load(at(builder, sinks, F32, head), typ=F32))
        members_of_state.set(_TOTAL, F32(1.0))
        with Loop(builder, I64(0), value_dim, I64(target.lanes)) as columns:
            zeros = constant(target.vector, 0.0)
            builder.store(zeros, at(builder, output, F32, columns.counter), align=4)
    page, last_page = builder.sdiv(lowest.value, page_size), rounded_up(builder, highest.value, page_size)
    is_any = builder.icmp_signed("<", lowest.value, highest.value)
    with builder.if_then(is_any), Loop(builder, page, last_page, I64(1)) as pages:
        begin = builder.mul(pages.counter, page_size)
        place = _load_integer(builder, table, pages.counter)
        # As XLA's gather does where a table has no page.
        place = builder.mul(least(builder, place, builder.sub(num_pages, I64(1))), page_size)
        with Loop(builder, I64(0), num_tokens, I64(1)) as loop:
            # Its queries, one of each head, stand one after the other, and so do their outputs and states.
            token, head, output, state = of_query(builder.mul(loop.counter, group))
            first, end = limits_of(token)
            low = greatest(builder, builder.sub(first, begin), I64(0))
            count = builder.sub(least(builder, builder.sub(end, begin), page_size), low)
            with builder.if_then(builder.icmp_signed(">", count, I64(0))):
                position = builder.add(place, low)
                seen_keys = at(builder, keys, target.stored, builder.mul(position, key_width))
                seen_values = at(builder, values, target.stored, builder.mul(position, value_width))
                query_place = builder.add(builder.mul(token, heads), head)
                query = at(builder, queries, F32, builder.mul(query_place, dim))
                sizes = [group, I64(0), count, dim, key_width, width]
                builder.call(products, [scores, query, seen_keys, *sizes])
                with Loop(builder, I64(0), group, I64(1)) as rows:
                    scores_of_head = at(builder, scores, F32, builder.mul(rows.counter, width))
                    builder.call(softmax, [scores_of_head, at(builder, state, _STATE, rows.counter), count])

                def weigh_arguments(row: ir.Value) -> list[ir.Value]:
                    return [
                        at(builder, output, F32, builder.mul(row, value_dim)),
                        at(builder, scores, F32, builder.mul(row, width)),
                        seen_values,
                        *(count, value_dim, value_width, width),
                        at(builder, state, _STATE, row),
                    ]

                by_height(builder, weigh, group, weigh_arguments)
    with Loop(builder, I64(0), num_queries, I64(1)) as loop:
        _, _, output, state = of_query(loop.counter)
        inverse = builder.fdiv(F32(1.0), Struct(builder, _STATE, state).get(_TOTAL))
        inverse = spread(builder, inverse, target.lanes)
        with Loop(builder, I64(0), value_dim, I64(target.lanes)) as columns:
            address = at(builder, output, F32, columns.counter)
            sums = load_floats(builder, address, target.lanes)
            builder.store(builder.fmul(sums, inverse), address, align=4)
    builder.ret_void()
    return function


def _build_softmax(module: ir.Module, target: Target) -> ir.Function:
    """Build `softmax(scores, state, count)`: scores become exponentials, relative to the highest so far."""
    lanes = target.lanes
    function, builder = new_function(module, "softmax", POINTER, POINTER, I64)
    scores, state, count = function.args
    state = Struct(builder, _STATE, state)
    # What follows the scores in the last vector.
    builder.store(constant(target.vector, MASKED), at(builder, scores, F32, count), align=4)
    old_top = spread(builder, state.get(_TOP), lanes)
    with Loop(builder, I64(0), count, I64(lanes)) as loop:
        highest = loop.carry(old_top)
        values = load_floats(builder, at(builder, scores, F32, loop.counter), lanes)
        is_higher = builder.fcmp_ordered(">", values, highest.value)
        highest.update(builder.select(is_higher, values, highest.value))
    new_top = call(builder, f"llvm.vector.reduce.fmax.v{lanes}f32", F32, highest.value)
    state.set(_TOP, new_top)
    new_top = spread(builder, new_top, lanes)
    with Loop(builder, I64(0), count, I64(lanes)) as loop:
        sums = loop.carry(constant(target.vector, 0.0))
        address = at(builder, scores, F32, loop.counter)
        weights = _exponential(builder, builder.fsub(load_floats(builder, address, lanes), new_top))
        builder.store(weights, address, align=4)
        sums.update(builder.fadd(sums.value, weights))
    lane = I32(0)
    shrink = builder.extract_element(_exponential(builder, builder.fsub(old_top, new_top)), lane)
    state.set(_DECAY, shrink)
    added = builder.extract_element(totals(builder, [sums.value]), lane)
    state.set(_TOTAL, builder.fadd(builder.fmul(state.get(_TOTAL), shrink), added))
    builder.ret_void()
    return function


def _exponential(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return e**x for x <= 0, within two units in the last place; below -87 it is 1e-38, and NaN stays NaN.

    x is n ln(2) + r, with n a whole number: e**x = 2**n e**r. Source of the polynomial: Cephes, `expf.c`.
    """
    kind = x.type
    lowest = constant(kind, -87.0)
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    n = call(builder, f"llvm.rint.v{kind.count}f32", kind, builder.fmul(x, constant(kind, 1 / math.log(2))))
    # ln(2) in two parts: a product with the first is exact.
    r = multiplied_and_added(builder, n, constant(kind, -0.693359375), x)
    r = multiplied_and_added(builder, n, constant(kind, 2.12194440e-4), r)
    polynomial = constant(kind, 1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        polynomial = multiplied_and_added(builder, polynomial, r, constant(kind, coefficient))
    power = builder.fadd(
        multiplied_and_added(builder, polynomial, builder.fmul(r, r), r), constant(kind, 1.0)
    )
    whole = ir.VectorType(I32, kind.count)
    exponent = builder.add(builder.fptosi(n, whole), constant(whole, 127))
    return builder.fmul(power, builder.bitcast(builder.shl(exponent, constant(whole, 23)), kind))


def _build_weigh(module: ir.Module, target: Target, rows: int) -> ir.Function:
    """Build `weigh(out, weights, values, count, dim, stride, width, states)` for some rows at once.

    out = decay * out + weights . values
    """
    function, builder = new_function(
        module, f"weigh_{rows}", POINTER, POINTER, POINTER, I64, I64, I64, I64, POINTER
    )
    out, weights, values, count, dim, stride, width, states = function.args
    outputs = [at(builder, out, F32, builder.mul(I64(row), dim)) for row in range(rows)]
    weights_of = [at(builder, weights, F32, builder.mul(I64(row), width)) for row in range(rows)]
    decays = [
        spread(
            builder, Struct(builder, _STATE, at(builder, states, _STATE, I64(row))).get(_DECAY), target.lanes
        )
        for row in range(rows)
    ]
    whole = I64(_VALUE_VECTORS * target.lanes)
    whole_end = builder.mul(builder.sdiv(dim, whole), whole)
    for first, last, num_vectors in ((I64(0), whole_end, _VALUE_VECTORS), (whole_end, dim, 1)):
        is_any = builder.icmp_signed("<", first, last)
        step = I64(num_vectors * target.lanes)
        with builder.if_then(is_any), Loop(builder, first, last, step) as columns:
            places = [builder.add(columns.counter, I64(n * target.lanes)) for n in range(num_vectors)]
            results = [[at(builder, output, F32, place) for place in places] for output in outputs]
            before = [
                [builder.fmul(load_floats(builder, address, target.lanes), decay) for address in addresses]
                for addresses, decay in zip(results, decays, strict=True)
            ]
            with Loop(builder, I64(0), count, I64(1)) as loop:
                sums = [[loop.carry(value) for value in of_row] for of_row in before]
                start = builder.mul(loop.counter, stride)
                loaded = [
                    load_stored(
                        builder, at(builder, values, target.stored, builder.add(start, place)), target
                    )
                    for place in places
                ]
                for address, of_row in zip(weights_of, sums, strict=True):
                    weight = builder.load(at(builder, address, F32, loop.counter), typ=F32)
                    weight = spread(builder, weight, target.lanes)
                    for value, sum_ in zip(loaded, of_row, strict=True):
                        sum_.update(multiplied_and_added(builder, weight, value, sum_.value))
            for addresses, of_row in zip(results, sums, strict=True):
                for address, sum_ in zip(addresses, of_row, strict=True):
                    builder.store(sum_.value, address, align=4)
    builder.ret_void()
    return function
