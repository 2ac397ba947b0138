"""The tests of tests/gpu where there is no GPU: what they would launch, and a sample of them in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from onnx_fuse.plugin_csrc.kernels.manifest import TYPES
from onnx_fuse.plugin_csrc.operators import catalogue
from tests.gpu import nodes
from tests.plugin_csrc.built import ROOT, tools

NUMBERS_OF_NOTHING = "masked_row_is_nan or sanitizer"  # tests that ask for numbers although nothing runs

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


@pytest.mark.long
def test_every_operator_and_variant_is_run(tmp_path: Path) -> None:
    file = tmp_path / "used.json"
    suite("plan", "-k", f"not ({NUMBERS_OF_NOTHING})", ONNX_FUSE_TEST_COVERAGE=str(file))
    used = json.loads(file.read_text())
    assert sorted(used) == sorted(nodes.OPERATORS) == sorted(nodes.MODULES)
    assert {kernel for kernels in used.values() for kernel in kernels} == {
        variant.name for variant in catalogue.variants()
    }
    for operator, kernels in used.items():
        assert {kernel for kernel in kernels for element in TYPES if f".{element}" in kernel} == set(kernels), operator


@pytest.mark.long
def test_plugins_compute_their_operators_in_the_interpreter() -> None:
    """The plugin's C++ says what to launch, on which memory; the interpreter launches that."""
    told = suite("interpreter", "-k", " or ".join(QUICK), ONNX_FUSE_TEST_SAMPLE="1")
    assert f"{len(QUICK)} passed" in told
