"""A computation in pieces, as a function that XLA calls.

XLA calls it on a thread of its pool. It makes the other threads help: each takes the next piece until there
is none. A thread that comes late finds nothing to do, so nobody waits for a busy one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from vinfer.cpu_kernel import xla_ffi
from vinfer.cpu_kernel.code import (
    I32,
    I64,
    NULL,
    POINTER,
    VOID,
    Loop,
    Struct,
    at,
    call,
    least,
    new_function,
    on_stack,
)

_CHECKS_BEFORE_YIELD = 1 << 16
_NUM_PIECES, _NEXT, _DONE, _HOLDERS = range(4)
"""Members of each job: its pieces, the next to take, how many are computed, how many threads use the job."""
_NUM_OWN = 4


class Array:
    """An argument or the result of a call."""

    def __init__(self, builder: ir.IRBuilder, buffer: Struct) -> None:
        self._builder = builder
        self._buffer = buffer

    def data(self) -> ir.Value:
        return self._buffer.get(xla_ffi.BUFFER_DATA)

    def size(self, axis: int) -> ir.Value:
        shape = self._buffer.get(xla_ffi.BUFFER_SHAPE)
        return self._builder.load(at(self._builder, shape, I64, I64(axis)), typ=I64)


class Job:
    """Describes calls of one function: what a call's pieces need to know stands in a struct, the job.

    Args:
        members: what the job holds besides how far it is: pointers, and 64-bit integers.
    """

    def __init__(self, members: Sequence[ir.Type]) -> None:
        self._kind = ir.LiteralStructType([*[I64] * _NUM_OWN, *members])

    def members(self, builder: ir.IRBuilder, address: ir.Value) -> list[ir.Value]:
        """Load all members of a job."""
        job = Struct(builder, self._kind, address)
        return [job.get(place) for place in range(_NUM_OWN, len(self._kind.elements))]

    def build_handler(
        self,
        module: ir.Module,
        name: str,
        compute: ir.Function,
        describe: Callable[[ir.IRBuilder, list[Array], Array], tuple[ir.Value, ir.Value, list[ir.Value]]],
        *,
        num_arguments: int,
    ) -> None:
        """Build what XLA calls. It returns null, which means success.

        Args:
            compute: the function `(job, piece)`, which computes one piece.
            describe: builds code that returns, from arguments and result, the number of pieces, the number of
                threads that they are worth, and the job's members.
        """
        function = ir.Function(module, ir.FunctionType(POINTER, [POINTER]), name)
        builder = ir.IRBuilder(function.append_basic_block())
        frame = Struct(builder, xla_ffi.CALL_FRAME, function.args[0])
        extension = frame.get(xla_ffi.FRAME_EXTENSION)
        with builder.if_then(builder.icmp_unsigned("!=", extension, NULL)):
            kind = Struct(builder, xla_ffi.EXTENSION, extension).get(xla_ffi.EXTENSION_TYPE)
            with builder.if_then(builder.icmp_signed("==", kind, I32(xla_ffi.METADATA_EXTENSION))):
                _tell_version(builder, extension)
                builder.ret(NULL)
        arguments = [_array(builder, frame, xla_ffi.FRAME_ARGUMENTS, place) for place in range(num_arguments)]
        result = _array(builder, frame, xla_ffi.FRAME_RESULTS, 0)
        num_pieces, most_threads, members = describe(builder, arguments, result)
        # It may outlive the call: a helper may come late.
        num_bytes = 8 * len(self._kind.elements)
        job = Struct(builder, self._kind, call(builder, "malloc", POINTER, I64(num_bytes)))
        for place, value in enumerate([num_pieces, I64(0), I64(0), I64(1), *members]):
            job.set(place, value)
        work, release = self._build_work(module, compute), self._build_release(module)
        task = self._build_task(module, work, release)
        _call_helpers(builder, frame, job, task, least(builder, num_pieces, most_threads))
        builder.call(work, [job.start])
        _wait(builder, job)
        builder.call(release, [job.start])
        builder.ret(NULL)

    def _build_work(self, module: ir.Module, compute: ir.Function) -> ir.Function:
        """Build `work(job)`: take pieces and compute them until there are none."""
        function, builder = new_function(module, "work", POINTER)
        (address,) = function.args
        job = Struct(builder, self._kind, address)
        take, do, done = (builder.append_basic_block(name) for name in ("take", "do", "done"))
        builder.branch(take)
        builder.position_at_end(take)
        piece = builder.atomic_rmw("add", job.address(_NEXT), I64(1), "monotonic")
        builder.cbranch(builder.icmp_signed("<", piece, job.get(_NUM_PIECES)), do, done)
        builder.position_at_end(do)
        builder.call(compute, [address, piece])
        builder.atomic_rmw("add", job.address(_DONE), I64(1), "release")
        builder.branch(take)
        builder.position_at_end(done)
        builder.ret_void()
        return function

    def _build_release(self, module: ir.Module) -> ir.Function:
        """Build `release(job)`: the last of its holders frees it."""
        function, builder = new_function(module, "release", POINTER)
        (address,) = function.args
        holders = Struct(builder, self._kind, address).address(_HOLDERS)
        before = builder.atomic_rmw("sub", holders, I64(1), "acq_rel")
        with builder.if_then(builder.icmp_signed("==", before, I64(1))):
            call(builder, "free", VOID, address)
        builder.ret_void()
        return function

    def _build_task(self, module: ir.Module, work: ir.Function, release: ir.Function) -> ir.Function:
        """Build `task(job)`: what a helping thread does."""
        function, builder = new_function(module, "task", POINTER)
        builder.call(work, function.args)
        builder.call(release, function.args)
        builder.ret_void()
        return function


def _tell_version(builder: ir.IRBuilder, extension: ir.Value) -> None:
    data = Struct(builder, xla_ffi.METADATA_EXTENSION_DATA, extension)
    metadata = Struct(builder, xla_ffi.METADATA, data.get(xla_ffi.METADATA_EXTENSION_METADATA))
    version = Struct(builder, xla_ffi.VERSION, metadata.address(xla_ffi.METADATA_VERSION))
    version.set(xla_ffi.VERSION_MAJOR, I32(xla_ffi.API_MAJOR))
    version.set(xla_ffi.VERSION_MINOR, I32(xla_ffi.API_MINOR))
    metadata.set(xla_ffi.METADATA_TRAITS, I32(0))


def _array(builder: ir.IRBuilder, frame: Struct, member: int, place: int) -> Array:
    buffers = Struct(builder, xla_ffi.BUFFERS, frame.address(member)).get(xla_ffi.BUFFERS_LIST)
    address = builder.load(at(builder, buffers, POINTER, I64(place)), typ=POINTER)
    return Array(builder, Struct(builder, xla_ffi.BUFFER, address))


def _call_helpers(
    builder: ir.IRBuilder, frame: Struct, job: Struct, task: ir.Function, most_threads: ir.Value
) -> None:
    """Have other threads help: as many as there are, and as the job is worth.

    The functions fail only where XLA has no pool, and it has one on every CPU.
    """
    api = Struct(builder, xla_ffi.API, frame.get(xla_ffi.FRAME_API))
    context = frame.get(xla_ffi.FRAME_CONTEXT)

    def call_xla(name: str, kind: ir.LiteralStructType, *values: ir.Value) -> None:
        arguments = Struct(builder, kind, on_stack(builder, kind))
        # Each member has eight bytes.
        for member, value in enumerate((I64(8 * len(kind.elements)), NULL, *values)):
            arguments.set(member, value)
        kind_of_function = ir.PointerType(ir.FunctionType(POINTER, [POINTER]))
        function = builder.load(api.address(xla_ffi.api_function(name)), typ=kind_of_function)
        builder.call(function, [arguments.start])

    num_threads = on_stack(builder, I64)
    builder.store(I64(1), num_threads)
    call_xla("ThreadPool_NumThreads", xla_ffi.NUM_THREADS_ARGUMENTS, context, num_threads)
    most = least(builder, builder.load(num_threads, typ=I64), most_threads)
    num_helpers = builder.sub(most, I64(1))
    with builder.if_then(builder.icmp_signed(">", num_helpers, I64(0))):
        builder.atomic_rmw("add", job.address(_HOLDERS), num_helpers, "monotonic")
        with Loop(builder, I64(0), num_helpers, I64(1)):
            call_xla("ThreadPool_Schedule", xla_ffi.SCHEDULE_ARGUMENTS, context, task, job.start)


def _wait(builder: ir.IRBuilder, job: Struct) -> None:
    """Wait for the pieces that helpers are at.

    These are microseconds, unless the system has stopped a helper. To yield at once would give this thread's
    time to others whenever there are any.
    """
    before = builder.block
    check, wait, rest, done = (
        builder.append_basic_block(name) for name in ("check", "wait", "rest", "all_done")
    )
    builder.branch(check)
    builder.position_at_end(check)
    num_checks = builder.phi(I64)
    num_checks.add_incoming(I64(1), before)
    num_done = builder.load_atomic(job.address(_DONE), "acquire", 8, typ=I64)
    builder.cbranch(builder.icmp_signed("<", num_done, job.get(_NUM_PIECES)), wait, done)
    builder.position_at_end(wait)
    following = builder.add(num_checks, I64(1))
    num_checks.add_incoming(following, wait)
    is_long = builder.icmp_signed("==", builder.urem(num_checks, I64(_CHECKS_BEFORE_YIELD)), I64(0))
    builder.cbranch(is_long, rest, check)
    builder.position_at_end(rest)
    num_checks.add_incoming(following, rest)
    call(builder, "sched_yield", I32)
    builder.branch(check)
    builder.position_at_end(done)
