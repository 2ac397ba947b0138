"""Every plugin on a GPU. Elsewhere the same tests run through the recording driver: see `tests.gpu.drivers.DRIVER`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks import jsonl
from tests.gpu import results

if TYPE_CHECKING:
    from tests.gpu.drivers import Cuda

HERE = Path(__file__).parent
COVERAGE = "ONNX_FUSE_TEST_COVERAGE"
"""Environment variable: a file for the kernels that every operator has used, as JSON."""
SAMPLE = "ONNX_FUSE_TEST_SAMPLE"
"""Environment variable: run so many of the cases of each test."""
MINUTES = "ONNX_FUSE_TEST_MINUTES"
"""Environment variable: start no test when so many minutes have passed."""
ORDER = ("test_first", "test_contract")
"""Tests that come before all others."""

_started = time.monotonic()


@pytest.hookimpl(trylast=True)  # tests/conftest.py has slow tests come first
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
    names = [getattr(item, "originalname", "") for item in items]
    places = {name: place for place, name in enumerate(ORDER)}
    order = sorted(range(len(items)), key=lambda index: (places.get(names[index], len(places)), index))
    items[:] = [items[index] for index in order]
    if file := os.environ.get(results.FILE):
        results.begin(Path(file), [item.nodeid for item in items if HERE in item.path.parents])


def pytest_runtest_setup(item: pytest.Item) -> None:
    limit = os.environ.get(MINUTES)
    if limit and time.monotonic() - _started > 60 * float(limit):
        pytest.skip(results.NO_TIME)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    file = os.environ.get(results.FILE)
    if file and "tests/gpu/" in report.nodeid and (report.when == "call" or report.outcome != "passed"):
        why = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longreprtext
        line = {
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 3),
            "why": why[-4000:],
        }
        jsonl.write(Path(file), line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if file := os.environ.get(results.FILE):
        terminalreporter.write_line(results.read(Path(file)).summary())
        terminalreporter.write_line(f"results: {file}")


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
