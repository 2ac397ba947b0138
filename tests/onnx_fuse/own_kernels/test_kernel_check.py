"""What the check of kernels in Triton's interpreter finds."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from onnx_fuse.errors import UsageError
from onnx_fuse.own_kernels import kernel_check
from onnx_fuse.own_kernels.kernel_check import Checked
from onnx_fuse.own_kernels.read_folder import ResolvedKernel
from tests.onnx_fuse.own_kernels.kernels import MIXED, NARROW, read, written


def results(resolved: ResolvedKernel, *sizes: dict[str, int]) -> list[Checked]:
    return [result for kind, result in kernel_check.checks(resolved, sizes) if kind == "result"]


def test_the_check_runs_every_kernel(tmp_path: Path) -> None:
    resolved = read(tmp_path, mixed=MIXED)
    found = results(resolved)
    assert [item for item in found if item.problem] == []
    assert {item.kernel for item in found} == {item.name for item in resolved.operator.variants()} | {"MixedRows"}
    assert any(item.sizes["B"] == 0 for item in found)


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ("a + b, a * b", "a + b, a - b", "of its largest magnitude"),
        ("* scale * factor", "* scale * scale", "of its largest magnitude"),
        ("D + column, value.to(y.dtype.element_ty), mask=column < D)", "D + column, value.to(y.dtype.element_ty))", "writes outside of y"),
        ("column < D, other=0.0).to(tl.float32)\n        value", "column <= D, other=0.0).to(tl.float32)\n        value", "NaN"),
        ("tl.store(total + row, tl", "tl.store(total + row // 2, tl", "were never written"),
        ("value = tl.where", "value = nothing + tl.where", "name 'nothing' is not defined"),
    ],
)  # fmt: skip
def test_the_check_finds_what_is_wrong(old: str, new: str, problem: str, tmp_path: Path) -> None:
    assert MIXED.count(old) == 1
    cases = [{"B": 2, "S": 3, "D": 5, "R": 4}, {"B": 3, "S": 2, "D": 5, "R": 4}]
    found = results(read(tmp_path, mixed=MIXED.replace(old, new)), *cases)
    assert any(problem in (item.problem or "") for item in found), found


def test_the_check_says_what_it_could_not_reach(tmp_path: Path) -> None:
    text = NARROW.replace('when="N <= BLOCK"', 'when="N <= BLOCK and M == 1009"')
    assert "no sizes were drawn that it takes" in [item.problem for item in results(read(tmp_path, narrow=text))]
    with pytest.raises(UsageError, match="lack N of TwiceNarrow"):
        results(read(tmp_path, narrow=text), {"M": 1})
    wrong = NARROW.replace('when="N', 'outputs={"output": ["M", 2, "N + 1"]}, when="N')
    assert any("its outputs are" in (item.problem or "") for item in results(read(tmp_path, narrow=wrong)))


def test_a_kernel_that_ends_the_interpreter(tmp_path: Path) -> None:
    astray = NARROW.replace("x + place, mask", "x + place + (N // 8).to(tl.int64) * 1099511627776, mask")
    found = kernel_check.check(written(tmp_path, narrow=astray), [{"M": 1, "N": 7}, {"M": 1, "N": 8}])
    assert [item.problem is None for item in found] == [True, True, False]
    assert found[-1].kernel == "TwiceNarrow" and found[-1].sizes["N"] == 8
    assert "the interpreter ended with status" in (found[-1].problem or "")
