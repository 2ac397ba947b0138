"""The cost report: what operators launch, without a GPU and without compiling, and the tables of its result."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from benchmarks import kernel_costs, kernels
from onnx_fuse.plugin_csrc.kernels.manifest import Variant
from onnx_fuse.plugin_csrc.operators import catalogue

VARIANTS = list(catalogue.variants())
NAMES = {variant.name for variant in VARIANTS}


@pytest.mark.parametrize("case", kernels.CASES, ids=lambda case: case.name)
def test_launches_of_a_case(case: kernels.Case) -> None:
    found = kernel_costs.launches(case, "bfloat16")
    assert found and {launch.variant.name for launch in found} <= NAMES
    assert all(launch.programs > 0 and kernel_costs.serial_loads(launch) > 0 for launch in found)
    assert sum(kernel_costs.products(case, launch) for launch in found) == case.flops(case.sizes)
    looked_up = max((count(case.sizes) for count in case.gathered.values()), default=0)
    moved = sum(launch.bytes(looked_up) for launch in found)
    # Several launches pass data on, through memory; a table is looked up in one of its rows for each output row.
    assert moved >= 0.99 * case.bytes("bfloat16")
    assert len(found) > 1 or moved <= 1.01 * case.bytes("bfloat16")


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_has_a_unit(variant: Variant) -> None:
    unit, handled = kernel_costs.units(variant)
    assert handled >= 32 * variant.num_warps or unit == "tensor instruction"


def test_the_result_is_about_the_kernels_there_are() -> None:
    content = json.loads(kernel_costs.RESULT.read_text())
    assert {row["variant"] for row in content["variants"]} == NAMES
    assert {row["case"] for row in content["cases"]} == {case.name for case in kernels.CASES}


def test_table() -> None:
    content = json.loads(kernel_costs.RESULT.read_text())
    for architecture in kernel_costs.ARCHITECTURES:
        lines = kernel_costs.table(content, dtype="fp32", architecture=architecture).splitlines()
        rows = [line for line in lines if line.startswith("| `")]
        assert len(rows) == sum(".fp32" in name for name in NAMES)
        assert len({line.count("|") for line in rows}) == 1
