"""The cost report: what operators launch, without a GPU and without compiling, and the tables of its result."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from benchmarks import kernel_cases, kernel_costs
from onnx_fuse.passes.select import cost_model, kernel_table
from onnx_fuse.plugin_csrc.kernels.manifest import Variant
from onnx_fuse.plugin_csrc.operators import catalogue

VARIANTS = list(catalogue.variants())
NAMES = {variant.name for variant in VARIANTS}


DEVICE = cost_model.DEVICES[kernel_costs.DEVICE]


@pytest.mark.parametrize("case", kernel_cases.CASES, ids=lambda case: case.name)
def test_launches_of_a_case(case: kernel_cases.Case) -> None:
    found = kernel_costs.launches(case, "bfloat16", DEVICE, kernel_table.kernels(DEVICE.capability))
    assert found and all(launch.programs > 0 and launch.serial_loads > 0 for launch in found)
    assert sum(launch.products for launch in found) == case.flops(case.sizes)
    moved = sum(launch.bytes for launch in found)
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
    assert {row["case"] for row in content["cases"]} == {case.name for case in kernel_cases.CASES}


def test_table() -> None:
    content = json.loads(kernel_costs.RESULT.read_text())
    for architecture in kernel_costs.ARCHITECTURES:
        lines = kernel_costs.table(content, dtype="fp32", architecture=architecture).splitlines()
        rows = [line for line in lines if line.startswith("| `")]
        assert len(rows) == sum(".fp32" in name for name in NAMES)
        assert len({line.count("|") for line in rows}) == 1


def test_the_table_of_the_cost_model_has_what_the_report_has() -> None:
    content = json.loads(kernel_costs.RESULT.read_text())
    for architecture in kernel_costs.ARCHITECTURES:
        found = kernel_costs.kernels_of(content["variants"], architecture)
        assert found == kernel_table.kernels(architecture) and found
        for name, kernel in found.items():
            assert kernel.is_float32 == (".fp32" in name and kernel.products > 0)
            assert bool(kernel.products) == (kernel.instructions > 0)
