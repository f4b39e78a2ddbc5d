"""XLA's interface for foreign functions, as LLVM types and constants.

Source: `xla/ffi/api/c_api.h`, which jaxlib has in its `include` folder. XLA supports an older version of its
interface for a year at least.
"""

from __future__ import annotations

from llvmlite import ir

from vinfer.cpu_kernel.code import I32, I64, POINTER

API_MAJOR, API_MINOR = 0, 3
METADATA_EXTENSION = 1
"""XLA_FFI_Extension_Metadata: XLA asks what the handler was written for and calls nothing."""


_HEAD = (I64, POINTER)
"""Every struct begins with its size and its extensions."""

EXTENSION = ir.LiteralStructType([I64, I32, POINTER])
EXTENSION_TYPE = 1
METADATA_EXTENSION_DATA = ir.LiteralStructType([EXTENSION, POINTER])
METADATA_EXTENSION_METADATA = 1

VERSION = ir.LiteralStructType([*_HEAD, I32, I32])
METADATA = ir.LiteralStructType([I64, VERSION, I32, I64])
METADATA_VERSION = 1
METADATA_TRAITS = 2
VERSION_MAJOR, VERSION_MINOR = 2, 3

BUFFERS = ir.LiteralStructType([*_HEAD, I64, POINTER, POINTER])
BUFFERS_LIST = 4
CALL_FRAME = ir.LiteralStructType([*_HEAD, POINTER, POINTER, I32, BUFFERS, BUFFERS])
FRAME_EXTENSION, FRAME_API, FRAME_CONTEXT, FRAME_ARGUMENTS, FRAME_RESULTS = 1, 2, 3, 5, 6

BUFFER = ir.LiteralStructType([*_HEAD, I32, POINTER, I64, POINTER])
BUFFER_DATA, BUFFER_SHAPE = 3, 5

_API_FUNCTIONS = (
    "Error_Create",
    "Error_GetMessage",
    "Error_Destroy",
    "Handler_Register",
    "Stream_Get",
    "Type_Register",
    "ExecutionContext_Get",
    "State_Set",
    "State_Get",
    "DeviceMemory_Allocate",
    "DeviceMemory_Free",
    "ThreadPool_Schedule",
    "ThreadPool_NumThreads",
)
API = ir.LiteralStructType([*_HEAD, VERSION, POINTER, *[POINTER] * len(_API_FUNCTIONS)])


def api_function(name: str) -> int:
    """Return the place of a function in `API`."""
    return len(API.elements) - len(_API_FUNCTIONS) + _API_FUNCTIONS.index(name)


SCHEDULE_ARGUMENTS = ir.LiteralStructType([*_HEAD, POINTER, POINTER, POINTER])
NUM_THREADS_ARGUMENTS = ir.LiteralStructType([*_HEAD, POINTER, POINTER])
