"""The machine code of the main variants costs no more than its budget. Compiled here once, and then from Triton's cache."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks import kernel_costs
from onnx_fuse.plugin_csrc.kernels import budgets
from onnx_fuse.plugin_csrc.operators import catalogue
from tests.plugin_csrc.built import CACHE

BUDGETS = budgets.hstu()


@cache
def rows() -> dict[tuple[str, int], dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(CACHE / "triton"))
        found = []
        for architecture in sorted({architecture for _, architecture in BUDGETS}):
            names = {name for name, each in BUDGETS if each == architecture}
            wanted = [
                (module.__name__, variant)
                for module in catalogue.MODULES
                for variant in module.variants()
                if variant.name in names
            ]
            assert {variant.name for _, variant in wanted} == names
            found += kernel_costs.costs(wanted, [architecture])
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
