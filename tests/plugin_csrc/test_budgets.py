"""The machine code of the main variants costs no more than its budget. Compiled here once, and then from Triton's cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks import kernel_cases, kernel_costs
from onnx_fuse.passes.select import cost_model, kernel_table
from onnx_fuse.plugin_csrc.kernels import budgets
from onnx_fuse.plugin_csrc.operators import catalogue
from tests.plugin_csrc.built import CACHE

BUDGETS = {**budgets.hstu(), **budgets.attention()}


@cache
def rows() -> dict[tuple[str, int], dict[str, Any]]:
    found = {}
    for architecture in sorted({architecture for _, architecture in BUDGETS}):
        found |= costs({name for name, each in BUDGETS if each == architecture}, architecture)
    return found


def costs(names: Iterable[str], architecture: int) -> dict[tuple[str, int], dict[str, Any]]:
    wanted = [
        (module.__name__, variant)
        for module in catalogue.MODULES
        for variant in module.variants()
        if variant.name in names
    ]
    assert {variant.name for _, variant in wanted} == names
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(CACHE / "triton"))
        found = kernel_costs.costs(wanted, [architecture])
    return {(row["variant"], row["architecture"]): row for row in found}


@pytest.mark.slow
def test_budgets() -> None:
    assert rows().keys() == BUDGETS.keys()
    over = []
    for place, budget in BUDGETS.items():
        row = rows()[place]
        main = row["main"]
        assert main["unit"] == "score" and main["is_loop"]
        narrow = [int(width) for moved in (main["loads"], main["stores"]) for width in moved]
        if main["shortest"] > budget.instructions:
            over.append(f"{place}: {main['shortest']} instructions for one score, {budget.instructions} are allowed")
        if row["stack"] > budget.stack:
            over.append(f"{place}: {row['stack']} bytes of stack, {budget.stack} are allowed")
        if main["local"]:
            over.append(f"{place}: the main loop touches local memory")
        if min(narrow, default=16) < budget.width:
            over.append(f"{place}: the main loop moves {min(narrow)} bytes at a time, {budget.width} are wanted")
        if set(row["stores"]) - {"16"}:
            over.append(f"{place}: stores of {row['stores']}")
    assert not over, "\n".join(over)


@pytest.mark.slow
def test_streams_keep_the_memory_busy() -> None:
    of = {case.operator: case for case in kernel_cases.CASES}
    wanted = [
        (replace(of[operator], sizes={**of[operator].sizes, **sizes}), share)
        for operator, sizes, share in budgets.STREAMS
    ]
    device = cost_model.DEVICES[kernel_costs.DEVICE]
    table = kernel_table.kernels(device.capability)
    launches = [each for case, _ in wanted for each in kernel_costs.launches(case, "bfloat16", device, table)]
    found = costs({launch.kernel.name for launch in launches}, device.capability)
    compiled = kernel_costs.kernels_of(found.values(), device.capability)
    short = []
    for case, share in wanted:
        launches = kernel_costs.predicted(case, device, compiled)["launches"]
        time = sum(launch["bytes"] / launch["share_of_bandwidth"] for launch in launches)
        reached = sum(launch["bytes"] for launch in launches) / time
        if reached < share:
            short.append(f"{case.name}: {reached:.0%} of the bandwidth, {share:.0%} is wanted")
    for row in found.values():
        pools = "interests" in row["variant"]  # which writes little
        if row["stack"] or "16" not in row["loads"] or not ("16" in row["stores"] or pools):
            short.append(
                f"{row['variant']}: {row['stack']} bytes of stack, loads {row['loads']}, stores {row['stores']}"
            )
    assert not short, "\n".join(short)
