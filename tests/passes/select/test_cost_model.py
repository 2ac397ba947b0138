"""What becomes one kernel, and what kernels cost: worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from onnx_fuse.errors import UsageError
from onnx_fuse.passes.select import cost_model
from onnx_fuse.passes.select.cost_model import Device, Step, device_of, kernels

SLOW = Device("slow", 80, 10, bandwidth=1e9, float32=1e9, tf32=1e10, half=1e11)


def step(kind: str, reads: str, makes: str, size: int = 100, **more: Any) -> Step:
    return Step(kind, dict.fromkeys(reads.split(), size), dict.fromkeys(makes.split(), size), **more)


def grouped(*steps: Step) -> list[list[str]]:
    """What each kernel makes."""
    return [[value for item in kernel.steps for value in item.makes] for kernel in kernels(steps)]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("pointwise", "x", "a"), ("pointwise", "a", "b"), ("pointwise", "b x", "c")], [["a", "b", "c"]]),
        ([("matrix", "x w", "a"), ("pointwise", "a bias", "b"), ("pointwise", "b", "c")], [["a", "b", "c"]]),
        ([("matrix", "x w", "a"), ("pointwise", "a r", "b"), ("reduction", "b", "c"), ("pointwise", "b c", "d")], [["a", "b"], ["c", "d"]]),
        ([("pointwise", "x", "a"), ("matrix", "a w", "b")], [["a"], ["b"]]),
        ([("gather", "t1 i", "a"), ("gather", "t2 j", "b"), ("pointwise", "a b", "c"), ("reduction", "c", "d")], [["a", "b", "c", "d"]]),
        ([("gather", "t1 i", "a"), ("gather", "t2 j", "b"), ("other", "a b", "c")], [["a", "b"], ["c"]]),
        ([("pointwise", "i", "a"), ("gather", "t a", "b"), ("matrix", "b w", "c")], [["a", "b"], ["c"]]),
        ([("other", "x", "a"), ("pointwise", "a", "b")], [["a"], ["b"]]),
        ([("pointwise", "x", "a"), ("other", "a", "b"), ("pointwise", "a b", "c")], [["a"], ["b"], ["c"]]),
    ],
    ids=["chain", "epilogue", "norm after product", "product", "look-ups and norm", "look-ups", "indices", "after another kind", "around another kind"],
)  # fmt: skip
def test_what_becomes_one_kernel(steps: Sequence[tuple[str, str, str]], expected: list[list[str]]) -> None:
    assert grouped(*(step(*item) for item in steps)) == expected


def test_no_kernel_waits_for_itself() -> None:
    """`c` needs the product of `a`, so it cannot be in the kernel that the product waits for."""
    found = kernels([step("pointwise", "x", "a"), step("matrix", "a w", "b"), step("pointwise", "a b", "c")])
    assert [[v for item in kernel.steps for v in item.makes] for kernel in found] == [["a"], ["b", "c"]]
    for kernel in found:
        made = {value for item in kernel.steps for value in item.makes}
        later = {v for other in found if other.order > kernel.order for item in other.steps for v in item.makes}
        assert not later & {v for item in kernel.steps for v in item.reads if v not in made}


def test_attention_is_one_kernel() -> None:
    chain = [
        step("attention", "q k", "s", chain=1),
        step("matrix", "x w", "v"),
        step("attention", "s", "p", chain=1),
        step("attention", "p v", "o", chain=1),
        step("pointwise", "o", "y"),
    ]
    assert grouped(*chain) == [["s", "p", "o"], ["v"], ["y"]]


def test_what_kernels_cost() -> None:
    """Bytes by bandwidth or products by rate, whichever takes longer, and a launch; what stays inside is not moved."""
    chain = [step("pointwise", "x", "a", 1000), step("pointwise", "a", "b", 1000)]
    found = cost_model.cost(chain, SLOW, lambda value: value == "b")
    assert (found.launches, found.bytes) == (1, 2000)
    assert found.seconds == pytest.approx(
        cost_model.LAUNCH + 2000 / (cost_model.HIGHEST_SHARE * cost_model.COPY_SHARE * 1e9)
    )
    both = cost_model.cost(chain, SLOW, lambda value: True)
    assert both.bytes == 3000
    for half, rate in ((False, 1e10), (True, 1e11)):
        product = cost_model.cost([step("matrix", "x w", "y", 8, products=1e9, half=half)], SLOW, lambda value: True)
        assert product.seconds == pytest.approx(cost_model.LAUNCH + 1e9 / (cost_model.PRODUCT_SHARE * rate))


def test_devices() -> None:
    assert device_of("NVIDIA H100 80GB HBM3").name == "H100"
    h100, h200 = device_of("NVIDIA H100 PCIe"), device_of("NVIDIA H200")
    assert (h100.name, h200.name) == ("H100", "H200") and h100.bandwidth < h200.bandwidth
    assert device_of("rtx-4090").name == device_of("NVIDIA GeForce RTX 4090").name == "RTX 4090"
    assert device_of("sm_120").name == "RTX 5090" and device_of("NVIDIA L4").name == "L4"
    with pytest.raises(UsageError, match="speed of 'T4'"):
        device_of("T4")
