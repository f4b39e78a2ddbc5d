"""Counts the bytes that our own kernel moves, which HLO does not say.

Knows the arguments and the loads of `vinfer.compiler.decode_kernel.paged_decode`. A test counts the loads of
the kernel as it runs, and compares.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from accelerator_check.hlo import ITEM_BITS, Instruction, Leaf, UnreadableError
from vinfer.compiler.decode_kernel import CUSTOM_CALL, paged_decode, tile_len


def is_paged_decode(call: Instruction) -> bool:
    """Return whether a custom call is the decode kernel."""
    names = re.findall(r'\bname = "(\w+)"', call.attributes)
    return f'custom_call_target="{CUSTOM_CALL}"' in call.attributes and paged_decode.__name__ in names


def paged_decode_bytes(call: Instruction, operands: Sequence[Instruction], seen: int) -> int:
    """Return the bytes that one call reads and writes.

    Args:
        seen: positions that each row sees.

    Raises:
        UnreadableError: the call has other arguments than the kernel.
    """
    leaves = [operand.leaves[0] for operand in operands]
    if len(leaves) != 7 or len(call.leaves) != 3:
        raise UnreadableError(f"{call.name} has {len(leaves)} arguments and {len(call.leaves)} results")
    query, k, _, table, first, end, first_kv_head = leaves
    rows, _, dim = query.shape
    value_dim = call.leaves[2].shape[3]
    kv_heads, splits = (_grid(call, axis) for axis in "yz")
    # Keys and values: what the row sees, once for each KV head. Loads are masked, so not whole pages.
    of_pages = rows * seen * kv_heads * (dim + value_dim) * _item_bytes(k)
    # Each part of a row loads its queries and limits, and each tile an entry of the table.
    tile = tile_len(k.shape[1], max(dim, value_dim), _item_bytes(k))
    of_parts = splits * (query.num_bytes + kv_heads * (first.num_bytes + end.num_bytes))
    of_parts += rows * kv_heads * splits * first_kv_head.num_bytes
    of_tiles = rows * kv_heads * -(-seen // tile) * table.num_bytes // max(table.num_elements, 1)
    written = sum(leaf.num_bytes for leaf in call.leaves)
    return of_pages + of_parts + of_tiles + written


def _grid(call: Instruction, axis: str) -> int:
    stated = re.search(rf"\bgrid_{axis} = (\d+) : i32", call.attributes)
    if stated is None:
        raise UnreadableError(f"{call.name} states no grid")
    return int(stated[1])


def _item_bytes(leaf: Leaf) -> int:
    return ITEM_BITS[leaf.dtype] // 8
