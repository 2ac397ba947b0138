"""One node of each operator and type, then nodes with every shape that their declarations allow, against their bodies.

These come before all other tests of this folder: they tell most, and take seconds.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from tests.gpu import cases, names


@pytest.mark.parametrize("name", names.FIRST)
def test_first(driver: Any, name: str) -> None:
    check(driver, name)


@pytest.mark.parametrize("name", names.CONTRACT)
def test_contract(driver: Any, name: str) -> None:
    check(driver, name)


def check(driver: Any, name: str) -> None:
    case = cases.read(name)
    made = driver.run(case.node)
    for output, wanted in case.wanted.items():
        found = made[output].double()
        assert found.shape == wanted.shape, output
        if type(driver).__name__ == "Plan":
            continue
        assert not (found.isnan() & ~wanted.isnan()).any(), (
            f"{output}: {found.isnan().sum()} of {wanted.numel()} are NaN"
        )
        scale = wanted.nan_to_num(0.0, 0.0, 0.0).abs().max().item() or 1.0
        error = (found - wanted).nan_to_num(0.0).abs().max().item() / scale
        assert error <= cases.ALLOWED[case.element], f"{output}: wrong by {error:.2g} of the greatest number"
