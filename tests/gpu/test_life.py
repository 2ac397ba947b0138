"""What TensorRT does with plugins besides one run: again and again, in several contexts, streams and threads, in CUDA graphs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.plugins.torch_harness import Bound, Node
from tests.gpu import drivers
from tests.plugin_csrc.built import ROOT
from tests.plugin_csrc.reference import drawn
from tests.plugin_csrc.test_launches import CASES, Case

THREADS = 4


def filled(case: Case, seed: int = 0) -> Node:
    """The node of a case, with numbers in place of its zeros. (Zeros are good indices.)"""

    def numbers(name: str, like: Any) -> Any:
        if name == "lengths":
            return torch.full_like(like, 20)
        if like.dtype == torch.bool:
            return drawn(like.shape, torch.float32, seed) > 0
        return drawn(like.shape, like.dtype, seed) if like.is_floating_point() else like

    inputs = {name: numbers(name, like) for name, like in case.inputs.items()}
    return Node(case.name, case.attributes, inputs, tuple(case.outputs))


def cuda_only(driver: Any) -> None:
    if driver.device != "cuda":
        pytest.skip("needs a GPU: the interpreter has neither streams nor graphs")


def same(left: Bound, right: Bound) -> bool:
    return all(torch.equal(_bits(item), _bits(right.outputs[name])) for name, item in left.outputs.items())


def _bits(tensor: Any) -> Any:
    return tensor.contiguous().view(torch.uint8) if tensor.numel() else tensor


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_runs_repeat_bit_for_bit(driver: Any, case: Case) -> None:
    first, again = (driver.bind(filled(case)) for _ in range(2))
    for bound in (first, again):
        driver.enqueue(bound)
    assert same(first, again)
    if type(driver).__name__ != "Plan":
        assert not any(item.isnan().any() for item in first.outputs.values())
    once = {name: item.clone() for name, item in first.outputs.items()}
    for _ in range(3):
        driver.enqueue(first)
        assert all(torch.equal(_bits(once[name]), _bits(item)) for name, item in first.outputs.items())


FIRST = {case.name: case for case in reversed(CASES)}
WITHOUT_ANY = ("FusedSwish", "SequenceRecommendationInteraction")
"""Operators without kernels for tensors that begin anywhere."""


def slice_of(item: Any, device: str) -> Any:
    """The same numbers behind one that is not read, as where TensorRT hands over a slice of another tensor."""
    longer = torch.empty(item.numel() + 1, dtype=item.dtype, device=device)
    longer[1:] = item.flatten().to(device)
    return longer[1:].view(item.shape)


@pytest.mark.parametrize("case", FIRST.values(), ids=FIRST)
def test_tensors_that_begin_anywhere(driver: Any, case: Case) -> None:
    node = filled(case)
    wanted = driver.run(node)
    moved = replace(node, inputs={name: slice_of(item, driver.device) for name, item in node.inputs.items()})
    if case.name in WITHOUT_ANY:
        with pytest.raises(UsageError, match=r"input (x|items) begins at address 0x"):
            driver.run(moved)
        return
    found = driver.run(moved)
    for name, item in wanted.items():
        if type(driver).__name__ != "Plan":
            torch.testing.assert_close(found[name], item, rtol=1e-2, atol=1e-2)


def test_contexts_in_threads_and_streams(driver: Any) -> None:
    """Every thread attaches contexts of its own to the same plugins, and runs them on a stream of its own."""
    cuda_only(driver)
    bound = [driver.bind(filled(case)) for case in CASES]
    for item in bound:
        driver.enqueue(item)

    def work(_: int) -> list[Bound]:
        torch.cuda.set_device(0)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            mine = [item.attached() for item in bound]
            for _ in range(5):
                for item in mine:
                    item.enqueue(stream.cuda_stream)
        stream.synchronize()
        return mine

    with ThreadPoolExecutor(THREADS) as pool:
        for mine in pool.map(work, range(THREADS)):
            for item, wanted, case in zip(mine, bound, CASES, strict=True):
                assert same(item, wanted), case.name


def test_two_streams_at_once(driver: Any) -> None:
    cuda_only(driver)
    streams = [torch.cuda.Stream() for _ in range(2)]
    for case in CASES:
        alone = driver.bind(filled(case))
        driver.enqueue(alone)
        pair = [alone.attached() for _ in streams]
        torch.cuda.synchronize()
        for _ in range(10):
            for item, stream in zip(pair, streams, strict=True):
                item.enqueue(stream.cuda_stream)
        torch.cuda.synchronize()
        assert all(same(item, alone) for item in pair), case.name


def test_capture_in_a_cuda_graph(driver: Any) -> None:
    """A captured run neither allocates nor waits, and computes anew from what its inputs hold at each replay."""
    cuda_only(driver)
    for case in CASES:
        captured = driver.bind(filled(case))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured.enqueue(torch.cuda.current_stream().cuda_stream)
        for seed in (1, 2):
            wanted = driver.bind(filled(case, seed))
            driver.enqueue(wanted)
            for name, item in wanted.inputs.items():
                captured.inputs[name].copy_(item)
            graph.replay()
            torch.cuda.synchronize()
            assert same(captured, wanted), case.name


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(driver: Any, tool: str) -> None:
    cuda_only(driver)
    if (found := shutil.which("compute-sanitizer")) is None:
        pytest.skip("compute-sanitizer is not on PATH")
    checked = [found, "--tool", tool, "--error-exitcode", "9"]
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu/test_correctness.py"]
    settings = {
        "ONNX_FUSE_TEST_SAMPLE": "3",
        drivers.LIBRARY: str(driver.library),
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }
    done = subprocess.run(
        [*checked, *tests], cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
