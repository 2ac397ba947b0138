"""What the machine code of the main variants may cost at most. The tests compile them and fail where one costs more.

A figure is here once the kernels meet it, so that a change cannot undo it unseen. Nothing here imports triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Budget:
    """Limits of one variant on one architecture.

    Attributes:
        instructions: of a thread for one score, on the shortest way through the main loop.
        stack: bytes of local memory of a thread, none of which the main loop touches.
        width: bytes that every load and store of the main loop moves for each thread, at least.
    """

    instructions: float
    stack: int = 72
    width: int = 16


_EXP = 2.25
"""What exp2 and a reciprocal cost more than tanh, of a score."""

HSTU = MappingProxyType(
    {
        # Architecture -> kinds of bias and mask -> heads of 32, 64, 128 and 256, with tanh.
        90: {"": (5.75, 6.25, 6.25, 9.75), ".bias": (8.5, 9.0, 9.25, 12.75), ".mask": (8.75, 9.25, 9.5, 13.0)},
        80: {"": (6.2, 8.6, 13.0, 27.8), ".bias": (11.7, 15.1, 21.2, 38.8)},
    }
)


def hstu() -> Mapping[tuple[str, int], Budget]:
    """(variant, architecture) -> its budget, in bfloat16."""
    found = {}
    for architecture, kinds in HSTU.items():
        for extra, figures in kinds.items():
            for size, figure in zip((32, 64, 128, 256), figures, strict=True):
                has_tanh = size <= 64 and extra != ".bias"
                name = f"hstu_hierarchical_attention.tiles.bf16.d{size}{extra}" + ".large" * (architecture == 90)
                width = 8 if extra == ".mask" else 16  # rows of a mask of bytes begin at multiples of 8
                found[name, architecture] = Budget(figure + (0.0 if has_tanh else _EXP), width=width)
    return found
