"""What the machine code of the kernels tells, in short: `kernel_table.json`, which docs/generate.py makes of the cost report.

Nothing is compiled, and no compiler is needed, to read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

FORMAT = 1
"""Of the file."""
FILE = Path(__file__).with_suffix(".json")
SHARED = {86: 80, 89: 80, 100: 90, 120: 80}
"""Compute capability -> the one whose machine code is read in its place: kernels are written the same for both."""


@dataclass(frozen=True)
class Kernel:
    """One compiled variant.

    Attributes:
        name: of the variant.
        tile: sizes of what a block handles, by the kernel's own names ("ROWS", "BLOCK").
        registers: of a thread.
        shared: bytes of shared memory of a block.
        threads: of a block.
        is_float32: its products are plain instructions, and not those of tensor cores.
        products: multiplications and additions of a warp in its main loop, for one unit: a score of each thread, or a tensor
            instruction. 0 where it has no products.
        instructions: of a thread for one unit, on the shortest way through the main loop.
        special: those among them of the special function unit.
        rim: `instructions` in the loop over the diagonal and the end of the keys, where there is one.
    """

    name: str
    tile: Mapping[str, int]
    registers: int
    shared: int
    threads: int
    is_float32: bool
    products: float
    instructions: float
    special: float
    rim: float


COLUMNS = tuple(field.name for field in fields(Kernel))[2:]
"""Of a row in the file."""

Kernels = Mapping[str, Kernel]
"""Name of a variant -> its kernel, for one architecture."""


def kernels(capability: int) -> Kernels:
    """The variants that run on this compute capability (90 for sm_90)."""
    return _read().get(SHARED.get(capability, capability), {})


@cache
def _read() -> dict[int, dict[str, Kernel]]:
    content = json.loads(FILE.read_text(encoding="utf-8"))
    assert content["format"] == FORMAT and tuple(content["columns"]) == COLUMNS, "docs/generate.py makes this file"
    found: dict[int, dict[str, Kernel]] = {}
    for name, told in content["kernels"].items():
        tile = told.pop("tile")
        for architecture, figures in told.items():
            found.setdefault(int(architecture), {})[name] = Kernel(name, tile, *figures)
    return found
