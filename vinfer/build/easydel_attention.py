"""Corrections of EasyDeL 0.3.0's attention that several families need, put on the built module."""

from __future__ import annotations

from typing import Any


def drop_output_bias(attention: Any) -> None:
    """Take the bias off o_proj: `UnifiedAttention._create_o_proj` gives it one where q, k and v have one."""
    attention.o_proj.use_bias = False
    attention.o_proj.bias = None
