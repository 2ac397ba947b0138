"""The tests of tests/gpu where there is no GPU: what they would launch, and a sample of them in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from benchmarks.kernels import NO_GPU
from onnx_fuse.plugin_csrc.kernels.manifest import ARCHITECTURES, TYPES
from onnx_fuse.plugin_csrc.operators import catalogue
from tests.gpu import bundle, names, nodes, results
from tests.plugin_csrc.built import ROOT, library, tools

NUMBERS_OF_NOTHING = (  # tests that ask for numbers although nothing runs
    "masked_row_is_nan or sanitizer or read_outside or beyond_the_lengths"
)

NOT_RUN = {
    *(f"fused_embed_layer_norm.{element}" for element in ("fp16.128", "bf16.128", "fp16.512", "bf16.512", "fp32.512")),
}
"""Variants for every architecture that no case of the suite for a GPU is of the size for."""

QUICK = (
    *("rows_swish", "rows_skip_layer_norm", "embed_layer_norm_fills", "sequence_fusion_with_windows"),
    *(
        "sequence_interaction",
        "sequence_fm",
        "interaction_programs",
        "attention_masks",
        "linear_layer_norm",
        "hstu_masks",
    ),
)
"""Tests of which one case each takes a few seconds; together they are of every operator."""


def suite(driver: str, *options: str, **environment: str) -> str:
    tools()  # built here, where other tests may wait for it
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu", *options],
        cwd=ROOT,
        env={**os.environ, "ONNX_FUSE_TEST_DRIVER": driver, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make gpu-bundle` makes, with the library of placeholders."""
    folder = tmp_path_factory.mktemp("carried") / "gpu"
    bundle.make(folder, library())
    return folder


def there(
    carried: Path, file: Path, *options: str, script: str = "run.sh", **environment: str
) -> subprocess.Popen[str]:
    """A script of the folder as on a machine that has only that; the recording driver stands in for the GPU's."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    settings = {"PYTHON": sys.executable, "ONNX_FUSE_TEST_RESULTS": str(file), "ONNX_FUSE_TEST_DRIVER": "interpreter"}
    return subprocess.Popen(
        [carried / script, *options],
        cwd="/",
        env={**kept, **settings, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_what_is_carried_measures_there(carried: Path, tmp_path: Path) -> None:
    """All but the clock, from the folder alone."""
    running = there(carried, tmp_path / "none", "--dry-run", "--operators", "FMInteraction", script="bench.sh")
    told, _ = running.communicate(timeout=300)
    assert running.returncode == 0 and told.startswith("FMInteraction "), told
    if not torch.cuda.is_available():
        running = there(carried, tmp_path / "none", script="bench.sh")
        told, _ = running.communicate(timeout=300)
        assert running.returncode == NO_GPU and "nothing is measured" in told


@pytest.mark.slow
def test_what_is_carried_to_a_gpu_runs_there(carried: Path, tmp_path: Path) -> None:
    """From the folder alone, in the order in which it tells most; what is compared is wrong if a case is."""
    file = tmp_path / "results.jsonl"
    chosen = "FusedSwish-float16 or HSTUHierarchicalAttention-float32 or FMInteraction-2 or rows_swish"
    told, _ = there(carried, file, "-k", chosen).communicate(timeout=300)
    found = results.read(file)
    tests = [test.rpartition("::")[2] for test in found.planned]
    assert tests[:3] == [
        "test_first[HSTUHierarchicalAttention-float32]",
        "test_first[FusedSwish-float16]",
        "test_contract[FMInteraction-2]",
    ]
    assert all("rows_swish" in test for test in tests[3:]) and len(tests) > 10
    assert not found.not_run and {line["outcome"] for line in found.found.values()} == {"passed"}, told
    assert f"{len(tests)} of {len(tests)} tests ran" in told

    case = carried / "cases" / "FusedSwish-float16.npz"
    right = case.read_bytes()
    with np.load(case) as arrays:
        np.savez(case, **{key: item + (key == "output_output") for key, item in arrays.items()})
    there(carried, file, "-k", "FusedSwish-float16").communicate(timeout=300)
    case.write_bytes(right)
    (line,) = results.read(file).found.values()
    assert line["outcome"] == "failed" and "output: wrong by" in line["why"]


@pytest.mark.slow
def test_a_run_that_is_stopped_loses_nothing(carried: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    run = there(carried, file, ONNX_FUSE_TEST_DRIVER="plan")
    while run.poll() is None and not (file.is_file() and len(file.read_text().splitlines()) > 40):
        time.sleep(0.05)
    run.kill()
    run.communicate()
    found = results.read(file)
    first = [test.rpartition("::")[2] for test in found.planned[:30]]
    assert first == [f"test_first[{name}]" for name in names.FIRST]
    assert set(found.planned[:30]) <= found.found.keys()
    assert 100 < len(found.not_run) < len(found.planned) - 30
    summary = found.summary()
    assert f"{len(found.found)} of {len(found.planned)} tests ran" in summary
    assert "not run: " in summary and "test_capture_in_a_cuda_graph (1)" in summary


@pytest.mark.slow
def test_a_run_whose_time_is_up_says_what_it_did_not_run(carried: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    there(carried, file, "-k", "FusedSwish", ONNX_FUSE_TEST_MINUTES="0").communicate(timeout=300)
    found = results.read(file)
    assert found.not_run == found.planned and len(found.planned) > 10
    assert found.summary().startswith(f"0 of {len(found.planned)} tests ran")


@pytest.mark.long
def test_every_operator_and_variant_is_run(tmp_path: Path) -> None:
    file = tmp_path / "used.json"
    suite("plan", "-k", f"not ({NUMBERS_OF_NOTHING})", ONNX_FUSE_TEST_COVERAGE=str(file))
    used = json.loads(file.read_text())
    assert sorted(used) == sorted(nodes.OPERATORS) == sorted(nodes.MODULES)
    # One GPU runs what is compiled for its architecture; the tests of the kernels run the others in the interpreter.
    everywhere = {variant.name for variant in catalogue.variants() if variant.architectures == set(ARCHITECTURES)}
    assert everywhere - {kernel for kernels in used.values() for kernel in kernels} == NOT_RUN
    for operator, kernels in used.items():
        assert {kernel for kernel in kernels for element in TYPES if f".{element}" in kernel} == set(kernels), operator


@pytest.mark.long
def test_plugins_compute_their_operators_in_the_interpreter() -> None:
    """The plugin's C++ says what to launch, on which memory; the interpreter launches that."""
    told = suite("interpreter", "-k", " or ".join(QUICK), ONNX_FUSE_TEST_SAMPLE="1")
    assert f"{len(QUICK)} passed" in told
