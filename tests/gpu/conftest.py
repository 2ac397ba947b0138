"""Every plugin on a GPU. Elsewhere the same tests run through the recording driver: see `tests.gpu.drivers.DRIVER`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.gpu.drivers import Cuda

HERE = Path(__file__).parent
COVERAGE = "ONNX_FUSE_TEST_COVERAGE"
"""Environment variable: a file for the kernels that every operator has used, as JSON."""
SAMPLE = "ONNX_FUSE_TEST_SAMPLE"
"""Environment variable: run so many of the cases of each test."""


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    for item in mine:
        item.add_marker(pytest.mark.gpu)
    if wanted := int(os.environ.get(SAMPLE, "0")):
        groups: dict[object, list[pytest.Item]] = {}
        for item in mine:
            groups.setdefault(getattr(item, "function", item), []).append(item)
        kept = {
            id(group[(2 * number + 1) * len(group) // (2 * wanted)])
            for group in groups.values()
            for number in range(wanted)
        }
        items[:] = [item for item in items if item not in mine or id(item) in kept]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cuda]:
    for package in ("torch", "triton"):
        pytest.importorskip(package)
    from tests.gpu import drivers

    if reason := drivers.missing():
        pytest.skip(reason)
    made = drivers.make(tmp_path_factory.mktemp("driver"))
    yield made
    if file := os.environ.get(COVERAGE):
        used = {operator: sorted(kernels) for operator, kernels in made.used.items()}
        Path(file).write_text(json.dumps(used, indent=2))
