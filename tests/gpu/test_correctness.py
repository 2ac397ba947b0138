"""The cases that kernels are tested with, run through the plugins: all types, sizes around the tiles, masks, magnitudes."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from tests.gpu import nodes
from tests.plugin_csrc import (
    test_kernels_attention,
    test_kernels_hstu,
    test_kernels_interaction,
    test_kernels_rows,
    test_kernels_sequence,
)
from tests.plugin_csrc.reference import drawn

SUITES = (
    test_kernels_attention,
    test_kernels_hstu,
    test_kernels_interaction,
    test_kernels_rows,
    test_kernels_sequence,
)
NOT_OF_PLUGINS = ("norm_rows_gates_and_ends_rows", "refus")  # kernels alone, and `launch` itself

for suite in SUITES:
    area = suite.__name__.rsplit("_", 1)[-1]
    for name, test in list(vars(suite).items()):
        if name.startswith("test_") and not any(part in name for part in NOT_OF_PLUGINS):
            globals()[f"test_{area}_{name.removeprefix('test_')}"] = test


@pytest.fixture(autouse=True)
def plugins_launch(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are launched by plugins. Where nothing runs, nothing is compared."""
    for operator, module in nodes.MODULES.items():
        monkeypatch.setattr(module, "launch", nodes.through(operator, driver.run))
    if type(driver).__name__ == "Plan":
        for suite in SUITES:
            monkeypatch.setattr(suite, "check", lambda *_: None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width, norm", [(128, "layer"), (512, "rms")])
def test_attention_with_its_rim_in_one_launch(dtype: Any, width: int, norm: str) -> None:
    """As many tiles as the largest GPU has multiprocessors: then one kernel does it all."""
    batch, size = 200, 16
    given = test_kernels_attention.operands(dtype, batch, 2, 5, 9, size, size, 2)
    weight, out_bias = drawn((2 * size, width), dtype, 3, 0.2), drawn((width,), torch.float32, 4)
    residual, gamma, beta = drawn((batch, 5, width), dtype, 5), drawn((width,), dtype, 6), drawn((width,), dtype, 7)
    rim = (weight, out_bias, residual, gamma, beta)
    test_kernels_attention.run(*given, None, None, *rim, norm=norm, epsilon=1e-5, residual_sum=True)
