"""What is compiled ahead of time: a kernel with its argument types and constants. Nothing here imports triton."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

TYPES = ("fp32", "fp16", "bf16")
"""Element types that every operator has kernels for, in Triton's words."""

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities that kernels are compiled for: 90 for sm_90."""

SAME_PTX: Mapping[int, int] = MappingProxyType({86: 80, 89: 80, 120: 80})
"""Architecture -> the one whose PTX its machine code is made of, where both are compiled for.

Triton's code for sm_86 and sm_89 differs from that for sm_80 in nothing but the target it names. What it makes for sm_120a has
the same products, loads and stores as what ptxas makes for sm_120 of sm_80's, and as many instructions within 3 %.
"""


@dataclass(frozen=True)
class Variant:
    """One kernel to be compiled.

    Args:
        name: what the plugin asks for: the operator's file, the type and what else tells variants apart, joined by dots, such
            as "hstu_attention.fp16.d64".
        function: the `triton.jit` function.
        signature: run-time argument -> Triton type ("*fp16", "i32", "i64", "fp32"), in the function's order.
        constants: `tl.constexpr` argument -> value. The plugin can read those that are integers (tile sizes, for its grid).
        divisible: names of integer arguments that are multiples of 16.
        num_warps, num_stages: as in `triton.compile`.
        aligned: whether pointers are multiples of 16 bytes; if not, they are multiples of their element's size alone. Plugins
            launch no kernel on other pointers.
        architectures: that it is compiled for.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: frozenset[str] = field(default_factory=frozenset)
    num_warps: int = 4
    num_stages: int = 2
    aligned: bool = True
    architectures: frozenset[int] = frozenset(ARCHITECTURES)
