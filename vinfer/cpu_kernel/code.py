"""What LLVM code is made of: structs in memory, loops, vectors of float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from llvmlite import ir

POINTER = ir.PointerType()
NULL = ir.Constant(POINTER, None)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
F16 = ir.HalfType()
F32 = ir.FloatType()
VOID = ir.VoidType()


@dataclasses.dataclass(frozen=True)
class Target:
    """What code is built for.

    Attributes:
        lanes: float32 values of a vector.
        max_rows: rows of a tile: with four columns, sums and operands fit into the registers.
        stored: type of weights, keys and values: float32, float16, or 16-bit integers, which are bfloat16.
    """

    lanes: int
    max_rows: int
    stored: ir.Type

    @property
    def vector(self) -> ir.VectorType:
        return ir.VectorType(F32, self.lanes)

    @property
    def stored_bytes(self) -> int:
        return 4 if self.stored == F32 else 2


class Struct:
    """Access to the members of a struct in memory."""

    def __init__(self, builder: ir.IRBuilder, kind: ir.LiteralStructType, address: ir.Value) -> None:
        self._builder = builder
        self._kind = kind
        self.start = address

    def address(self, member: int) -> ir.Value:
        return self._builder.gep(self.start, [I32(0), I32(member)], source_etype=self._kind)

    def get(self, member: int) -> ir.Value:
        return self._builder.load(self.address(member), typ=self._kind.elements[member])

    def set(self, member: int, value: ir.Value) -> None:
        self._builder.store(value, self.address(member))


class Loop:
    """A loop that runs at least once, as a context in which its body is built.

    Args:
        start: the first value of `counter`, below `end`.
    """

    def __init__(self, builder: ir.IRBuilder, start: ir.Value, end: ir.Value, step: ir.Value) -> None:
        self._builder = builder
        self._end = end
        self._step = step
        self._before = builder.block
        self._body = builder.append_basic_block("body")
        self._carried: list[Carried] = []
        builder.branch(self._body)
        builder.position_at_end(self._body)
        self.counter = self._phi(start)

    def carry(self, initial: ir.Value) -> Carried:
        """Return a variable; to be called before anything else is built in the body."""
        carried = Carried(self._phi(initial))
        self._carried.append(carried)
        return carried

    def _phi(self, initial: ir.Value) -> ir.Value:
        phi = self._builder.phi(initial.type)
        phi.add_incoming(initial, self._before)
        return phi

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        builder = self._builder
        following = builder.add(self.counter, self._step)
        self.counter.add_incoming(following, builder.block)
        for carried in self._carried:
            carried.phi.add_incoming(carried.value, builder.block)
        done = builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("<", following, self._end), self._body, done)
        builder.position_at_end(done)


class Carried:
    """A value that each turn of a loop hands to the next; after the loop, the last one."""

    def __init__(self, phi: ir.Value) -> None:
        self.phi = phi
        self.value = phi

    def update(self, value: ir.Value) -> None:
        self.value = value


def new_function(module: ir.Module, name: str, *arguments: ir.Type) -> tuple[ir.Function, ir.IRBuilder]:
    """Begin a function of the module's own, which returns nothing."""
    function = ir.Function(module, ir.FunctionType(VOID, arguments), name)
    function.linkage = "internal"
    return function, ir.IRBuilder(function.append_basic_block())


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Call a function of the C library, or one that LLVM knows."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def by_height(
    builder: ir.IRBuilder,
    functions: Sequence[ir.Function],
    num_rows: ir.Value,
    arguments: Callable[[ir.Value], list[ir.Value]],
) -> None:
    """Call functions that do 1, 2, 3 rows and so on at once, until `num_rows` are done.

    The heights are nearly equal: 16 rows by at most 6 are 6, 5 and 5.

    Args:
        arguments: builds the arguments of a call that begins at some row.
    """
    before = builder.block
    body, done = builder.append_basic_block("rows"), builder.append_basic_block("rows_done")
    builder.branch(body)
    builder.position_at_end(body)
    row = builder.phi(I64)
    row.add_incoming(I64(0), before)
    left = builder.sub(num_rows, row)
    height = rounded_up(builder, left, rounded_up(builder, left, I64(len(functions))))
    values = arguments(row)
    next_ = builder.append_basic_block("next")
    switch = builder.switch(height, next_)
    for rows, function in enumerate(functions, start=1):
        case = builder.append_basic_block(f"rows_{rows}")
        switch.add_case(I64(rows), case)
        builder.position_at_end(case)
        builder.call(function, values)
        builder.branch(next_)
    builder.position_at_end(next_)
    following = builder.add(row, height)
    row.add_incoming(following, next_)
    builder.cbranch(builder.icmp_signed("<", following, num_rows), body, done)
    builder.position_at_end(done)


def at(builder: ir.IRBuilder, array: ir.Value, element: ir.Type, place: ir.Value) -> ir.Value:
    """Return the address of an element of an array."""
    return builder.gep(array, [place], source_etype=element)


def on_stack(builder: ir.IRBuilder, kind: ir.Type, count: ir.Value | None = None) -> ir.Value:
    """Return the address of a new variable, or of an array of `count`."""
    address = builder.alloca(kind, count)
    # llvmlite gives it a typed pointer, which LLVM no longer has.
    address.type = POINTER
    return address


def least(builder: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    """Return the lesser of two integers."""
    return builder.select(builder.icmp_signed("<", left, right), left, right)


def greatest(builder: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    """Return the greater of two integers."""
    return builder.select(builder.icmp_signed(">", left, right), left, right)


def rounded_up(builder: ir.IRBuilder, value: ir.Value, divisor: ir.Value) -> ir.Value:
    """Return value / divisor, rounded up."""
    return builder.sdiv(builder.add(value, builder.sub(divisor, I64(1))), divisor)


def constant(kind: ir.VectorType, value: float) -> ir.Constant:
    """Return a vector with the same constant in each lane."""
    return ir.Constant(kind, [value] * kind.count)


def spread(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """Return a vector with the same value in each lane."""
    kind = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    places = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), places)


def load_floats(builder: ir.IRBuilder, address: ir.Value, lanes: int) -> ir.Value:
    """Load float32 values that lie anywhere."""
    return builder.load(address, align=4, typ=ir.VectorType(F32, lanes))


def load_stored(builder: ir.IRBuilder, address: ir.Value, target: Target) -> ir.Value:
    """Load a vector of weights, keys or values as float32."""
    loaded = builder.load(address, align=2, typ=ir.VectorType(target.stored, target.lanes))
    if target.stored == F32:
        return loaded
    if target.stored == F16:
        return builder.fpext(loaded, target.vector)
    # A bfloat16 is the upper half of a float32.
    wide = ir.VectorType(I32, target.lanes)
    bits = builder.shl(builder.zext(loaded, wide), constant(wide, 16))
    return builder.bitcast(bits, target.vector)


def multiplied_and_added(builder: ir.IRBuilder, left: ir.Value, right: ir.Value, sum_: ir.Value) -> ir.Value:
    """Return left * right + sum_, rounded once."""
    return call(builder, f"llvm.fma.v{sum_.type.count}f32", sum_.type, left, right, sum_)


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    to_read, into_all_caches, is_data = I32(0), I32(3), I32(1)
    call(builder, "llvm.prefetch.p0", VOID, address, to_read, into_all_caches, is_data)


def totals(builder: ir.IRBuilder, sums: Sequence[ir.Value]) -> ir.Value:
    """Add up the lanes of each vector; return one value per vector, side by side.

    Each step halves the partial sums of every vector: two vectors become one, until only one is left.
    """
    lanes, num_sums = sums[0].type.count, len(sums)
    while len(sums) > 1:
        pairs = zip(sums[::2], sums[1::2], strict=True)
        sums = [_added_neighbours(builder, left, right, lanes) for left, right in pairs]
    (total,) = sums
    while lanes > num_sums:
        lanes //= 2
        total = _added_neighbours(builder, total, total, lanes)
    return total


def _added_neighbours(builder: ir.IRBuilder, left: ir.Value, right: ir.Value, num_sums: int) -> ir.Value:
    """Add lanes 0 and 1, 2 and 3, and so on of two vectors one after the other, as far as `num_sums` sums."""
    places = ir.VectorType(I32, num_sums)
    even, odd = (
        builder.shuffle_vector(left, right, ir.Constant(places, list(range(first, 2 * num_sums, 2))))
        for first in (0, 1)
    )
    return builder.fadd(even, odd)
