"""What is compiled of a kernel, and what is said wrongly of it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from onnx_fuse.runtime.plugins import aot
from tests.onnx_fuse.own_kernels.kernels import MIXED, assert_told, read


def test_signatures_are_those_that_are_compiled(tmp_path: Path) -> None:
    resolved = read(tmp_path, mixed=MIXED)
    variants = {item.name: item for item in resolved.operator.variants()}
    assert aot.letters(variants["MixedRows.bf16.0"]) == "pppppplilfii"
    assert variants["MixedRows.bf16.0"].signature["keep"] == "*i1"
    assert variants["MixedRows.fp16.1.x16"].divisible == {"D"} and variants["MixedRows.fp16.1"].divisible == set()


@pytest.mark.parametrize(
    "old, new, line, reason",
    [
        ("function=mixed_rows", "function=body", 43, "function: .* is no function decorated with triton.jit"),
        ("table, keep, y, total, S", "table, keep, y, other, S", 43, "function: its argument other is none of ids, x"),
        ("keep, y, total, S", "keep, y, S", 43, "function: it has no argument total, which MixedRows has"),
        ("D: tl.int32", "D: tl.int16", 43, "function: D is int16; sizes are int32 or int64"),
        ("LOOP: tl.constexpr", "R: tl.constexpr", 46, "configs: .* has what is no constant of the kernel, LOOP"),
        ('"(ceil_div', '"(ceil', 44, "sizes: 'ceil.*: the functions are ceil_div, min, max"),
        ('sizes={', 'sizes={"even": "B", ', 44, "sizes: even is no size among the arguments of the kernel"),
        ('grid=["B * S", 1]', 'grid=["B * S / 2"]', 45, "grid: 'B . S / 2': a size is an integer; write // or ceil_div"),
        ('grid=["B * S", 1]', "grid=[]", 45, "grid: it has 0 axes"),
        ('grid=["B * S", 1]', 'grid=["C"]', 45, "grid: 'C' is none of B, S, D, R, factor, BLOCK, LOOP"),
        ('{"BLOCK": 16, "LOOP": 0}', '{"BLOCK": 16}', 46, "configs: .* lacks the kernel's constant LOOP"),
        ('"LOOP": 0}', '"LOOP": 0, "WIDE": 1}', 46, "configs: .* has what is no constant of the kernel, WIDE"),
        ("num_warps=1", "num_warps=1, num_ctas=2", 46, "configs: num_ctas is not supported"),
        ("triton.Config({\"BLOCK\": 16, \"LOOP\": 0}, num_warps=1)", "16", 46, "configs: 16 is no triton.Config"),
        ("D <= BLOCK or", "D + BLOCK or", 50, "when: 'D . BLOCK' is no condition"),
        ("D <= BLOCK or LOOP == 1", "LOOP == 1", 50, "when: it is never met for .'BLOCK': 16"),
        ("D <= BLOCK or LOOP == 1", "D <= BLOCK or BLOCK // LOOP == 1", 50, "when: it divides by 0"),
        ('multiples_of_16=["D"]', 'multiples_of_16=["x"]', 51, "multiples_of_16: x is no integer argument"),
        ('multiples_of_16=["D"]', 'types=["float64"]', 51, "types: .'float64',. are not among float32"),
    ],
)  # fmt: skip
def test_what_is_said_wrongly_is_told_with_its_line(old: str, new: str, line: int, reason: str, tmp_path: Path) -> None:
    assert_told(tmp_path, old, new, line, reason)
