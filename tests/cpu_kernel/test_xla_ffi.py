"""Our description of XLA's interface is that of the header which jaxlib has."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import pytest

from vinfer.cpu_kernel import xla_ffi

HEADER = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text()
TYPES = {"size_t": "i64", "int64_t": "i64", "int": "i32", "uint32_t": "i32"}
"""What is not listed is an enumeration if its name says so; structs are looked up."""
STRUCTS = {
    "XLA_FFI_Extension_Base": xla_ffi.EXTENSION,
    "XLA_FFI_Api_Version": xla_ffi.VERSION,
    "XLA_FFI_Metadata": xla_ffi.METADATA,
    "XLA_FFI_Metadata_Extension": xla_ffi.METADATA_EXTENSION_DATA,
    "XLA_FFI_Args": xla_ffi.BUFFERS,
    "XLA_FFI_Rets": xla_ffi.BUFFERS,
    "XLA_FFI_CallFrame": xla_ffi.CALL_FRAME,
    "XLA_FFI_Buffer": xla_ffi.BUFFER,
    "XLA_FFI_ThreadPool_Schedule_Args": xla_ffi.SCHEDULE_ARGUMENTS,
    "XLA_FFI_ThreadPool_NumThreads_Args": xla_ffi.NUM_THREADS_ARGUMENTS,
}
MEMBERS = {
    ("XLA_FFI_Extension_Base", "type"): xla_ffi.EXTENSION_TYPE,
    ("XLA_FFI_Metadata_Extension", "metadata"): xla_ffi.METADATA_EXTENSION_METADATA,
    ("XLA_FFI_Metadata", "api_version"): xla_ffi.METADATA_VERSION,
    ("XLA_FFI_Metadata", "traits"): xla_ffi.METADATA_TRAITS,
    ("XLA_FFI_Api_Version", "major_version"): xla_ffi.VERSION_MAJOR,
    ("XLA_FFI_Api_Version", "minor_version"): xla_ffi.VERSION_MINOR,
    ("XLA_FFI_Args", "args"): xla_ffi.BUFFERS_LIST,
    ("XLA_FFI_Rets", "rets"): xla_ffi.BUFFERS_LIST,
    ("XLA_FFI_CallFrame", "extension_start"): xla_ffi.FRAME_EXTENSION,
    ("XLA_FFI_CallFrame", "api"): xla_ffi.FRAME_API,
    ("XLA_FFI_CallFrame", "ctx"): xla_ffi.FRAME_CONTEXT,
    ("XLA_FFI_CallFrame", "args"): xla_ffi.FRAME_ARGUMENTS,
    ("XLA_FFI_CallFrame", "rets"): xla_ffi.FRAME_RESULTS,
    ("XLA_FFI_Buffer", "data"): xla_ffi.BUFFER_DATA,
    ("XLA_FFI_Buffer", "dims"): xla_ffi.BUFFER_SHAPE,
}


UP_TO = {"XLA_FFI_CallFrame": xla_ffi.FRAME_RESULTS + 1}


def members_of(struct: str) -> list[tuple[str, str]]:
    """Return type and name of each member of a struct of the header."""
    body = re.search(rf"struct {struct} {{(.*?)\n}}", HEADER, re.DOTALL)
    assert body is not None, struct
    text = re.sub(r"//[^\n]*", "", body[1])
    found = [(kind.strip(), name) for kind, name in re.findall(r"([\w\s]+?[\s*]+)(\w+);", text)]
    # Nothing is read of what follows the results of a call.
    return found[: UP_TO.get(struct)]


def llvm_type(kind: str) -> str:
    name = kind.removeprefix("const ").removeprefix("struct ")
    if name.endswith("*"):
        return "ptr"
    if name in STRUCTS:
        return str(STRUCTS[name])
    if name == "XLA_FFI_TypeId":
        return "i64"
    is_number = name.endswith(("Type", "Stage", "Traits"))
    return "i32" if is_number else "ptr" if name == "XLA_FFI_Task" else TYPES[name]


@pytest.mark.parametrize("struct", STRUCTS)
def test_structs_have_the_members_of_the_header(struct: str) -> None:
    ours = [str(element) for element in STRUCTS[struct].elements]
    theirs = [llvm_type(kind) for kind, _ in members_of(struct)]
    assert theirs == ours


@pytest.mark.parametrize(("struct", "name"), MEMBERS)
def test_members_are_where_the_header_has_them(struct: str, name: str) -> None:
    assert members_of(struct)[MEMBERS[struct, name]][1] == name


def test_functions_are_where_the_header_has_them() -> None:
    names = re.findall(r"_XLA_FFI_API_STRUCT_FIELD\(XLA_FFI_(\w+)\);", HEADER)
    before = len(members_of("XLA_FFI_Api"))
    for name in ("ThreadPool_Schedule", "ThreadPool_NumThreads"):
        assert xla_ffi.api_function(name) == before + names.index(name)


PARTS = ("MAJOR", "MINOR")


def test_the_version_is_the_header_s() -> None:
    versions = [
        int(re.search(rf"#define XLA_FFI_API_{part} (\d+)", HEADER)[1]) for part in ("MAJOR", "MINOR")
    ]
    assert versions == [xla_ffi.API_MAJOR, xla_ffi.API_MINOR]
    assert f"XLA_FFI_Extension_Metadata = {xla_ffi.METADATA_EXTENSION}," in HEADER
