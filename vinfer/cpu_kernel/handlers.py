"""Compiles the kernels for the CPU that is here."""

from __future__ import annotations

import functools

import llvmlite.binding as llvm
from llvmlite import ir

from vinfer.cpu_kernel.attention import build_attention
from vinfer.cpu_kernel.code import F16, F32, I16, Target
from vinfer.cpu_kernel.product import build_product

KERNELS = {"product": build_product, "attention": build_attention}
_STORED = {"float32": F32, "bfloat16": I16, "float16": F16}


def native_target(dtype: str) -> Target:
    """Return what to build for this CPU, for weights, keys and values of a dtype."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        lanes, max_rows = 16, 6
    elif features.get("avx2"):
        lanes, max_rows = 8, 2
    else:
        # NEON has 32 registers, SSE 16.
        lanes, max_rows = 4, 6 if features.get("neon") else 2
    return Target(lanes, max_rows, _STORED[dtype])


@functools.cache
def compile_handler(kernel: str, target: Target) -> int:
    """Return the address of a handler of `KERNELS`; valid as long as the process lives."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = ir.Module()
    module.triple = llvm.get_process_triple()
    KERNELS[kernel](module, kernel, target)
    machine = llvm.Target.from_triple(module.triple).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
    engine.finalize_object()
    # The code lives as long as its engine.
    _engines.append(engine)
    return int(engine.get_function_address(kernel))


_engines: list[llvm.ExecutionEngine] = []
