"""What plugins promise to TensorRT, held by a driver that records: nothing here runs a kernel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from onnx_fuse.plugin_csrc.operators import catalogue
from onnx_fuse.runtime.plugins import aot
from tests.plugin_csrc.built import ROOT, driver_settings, library, tools
from tests.plugin_csrc.life import WORKSPACE
from tests.plugin_csrc.test_launches import CASES

MOST_COMBINATIONS = 16
"""TensorRT stops looking at 100 combinations of types, and times each that it finds."""

ALIGNED = {variant.name: variant.aligned for variant in catalogue.variants()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("life")


def lives(folder: Path, *names: str, driver: Path | None = None) -> Any:
    settings = driver_settings(driver or tools(), folder)
    done = subprocess.run(
        [sys.executable, "-m", "tests.plugin_csrc.life", str(library()), *names],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@cache
def _all(folder: Path) -> Any:
    """Most of them at once: the imports take longer than the rest."""
    names = ("waiting", "reborn", "contexts", "empty", "workspaces", "formats", "timing", "unaligned")
    return lives(folder, *names)


def test_a_plugin_is_the_same_when_it_was_serialised_read_back_cloned_and_attached(folder: Path) -> None:
    found = _all(folder)["reborn"]
    assert len(found) == len(CASES)
    for told, before, after in found:
        assert before == after, told
    assert sum(bool(before[0]) for _, before, _ in found) > len(CASES) * 0.9


def test_two_contexts_with_different_shapes_do_not_disturb_each_other(folder: Path) -> None:
    different = 0
    for told, alone, turns in _all(folder)["contexts"]:
        assert turns == [alone, alone], told
        different += alone[0] != alone[1]
    assert different > len(CASES) * 0.8


@pytest.mark.parametrize("has_ids", [True, False])
def test_another_context_at_the_address_of_one_that_was_destroyed(folder: Path, tmp_path: Path, has_ids: bool) -> None:
    """It gets kernels of its own, also from a driver older than CUDA 12, which has no cuCtxGetId."""
    driver = tmp_path / "driver"
    shutil.copytree(tools(), driver, symlinks=True)
    if not has_ids:
        path = (driver / "libcuda.so.1").resolve()
        data = path.read_bytes()
        assert b"\0cuCtxGetId\0" in data
        path.write_bytes(data.replace(b"\0cuCtxGetId\0", b"\0cuCtxGetXX\0"))
    before, after, found = lives(folder, "replaced", driver=driver)["replaced"]
    assert found == has_ids
    assert len(before) == 1 and after == before


def test_nothing_is_launched_for_a_batch_of_nothing(folder: Path) -> None:
    for told, launches in _all(folder)["empty"]:
        assert launches == [], told


def test_workspace_is_there_where_a_launch_needs_it_and_for_all_smaller_sizes(folder: Path) -> None:
    for told, answers in _all(folder)["workspaces"]:
        (largest, *_), *_ = answers
        for needed, addresses, kernels in answers:
            assert needed <= largest, told
            assert all(WORKSPACE <= address < WORKSPACE + needed for address in addresses), told
            # What attention needs with fewer samples is asked for with many, for which one launch may do.
            assert bool(addresses) == bool(needed) or not kernels or kernels == ["attention_projected"], told


def test_nothing_that_waits_for_the_device_is_called_when_a_plugin_is_enqueued(folder: Path) -> None:
    """In all the other runs of this file; the driver refuses it, as it does here to a plugin that was not told its sizes."""
    told, log = _all(folder)["waiting"]
    assert "cuModuleLoadDataEx failed" in told and json.loads(log.splitlines()[0]) == {"waits": "cuModuleLoadDataEx"}


def test_few_combinations_of_types_are_offered(folder: Path) -> None:
    for told, count, refused in _all(folder)["formats"]:
        assert refused == -1, told
        assert 1 <= count <= MOST_COMBINATIONS, f"{told}: {count}"


def test_timings_are_kept_by_all_that_changes_speed(folder: Path, tmp_path: Path) -> None:
    one, same, other = _all(folder)["timing"]
    assert one == same != other
    digests = set()
    for size in (1, 2):
        image = aot.Image(80, False, "k", 32, 0, size, b"." * size)
        aot.write_sources([aot.Kernel("k", "p", {}, (image,))], tmp_path)
        digests.add(
            next(
                line
                for line in (tmp_path / "kernels.cpp").read_text().splitlines()
                if line.startswith("char const gr_")
            )
        )
    assert len(digests) == 2


def test_no_kernel_is_launched_on_an_address_that_it_does_not_take(folder: Path) -> None:
    """Where there is a kernel for addresses of the element type it is launched; all else is refused with a sentence."""
    launched, refused = set(), set()
    for told, name, natural, is_empty, kernels, launches, error in _all(folder)["unaligned"]:
        case = f"{told} {name} {natural}: {error}"
        if is_empty or not kernels:
            continue
        operator = told.split()[0]
        if natural and not any(ALIGNED[kernel] for kernel in kernels):
            assert not error and launches == len(kernels), case
            launched.add(operator)
        else:
            assert launches == 0, case
            assert re.match(f"{operator} failed: {operator}: (in|out)put {name} begins at address 0x", error), case
            refused.add(operator)
    assert refused == {case.name for case in CASES}
    assert launched >= {"FusedSkipLayerNorm", "HSTUHierarchicalAttention", "FusedAttentionLayerNorm"}
