"""The benchmark of the plugins where there is no GPU: its cases, what it counts, and all of it but the clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

import onnx_fuse
from benchmarks import kernels
from onnx_fuse.runtime.plugins import harness
from tests.plugin_csrc.built import ROOT, driver_settings, library, tools

CASES = {case.name: case for case in kernels.CASES}
RATES = {
    "copy_bytes_per_second": 4e12,
    "matrix_flops_per_second": {"bfloat16": 8e14, "float32": 5e13},
    "launch_seconds": 2e-6,
}


def case(start: str) -> kernels.Case:
    return next(case for name, case in CASES.items() if name.startswith(start))


def test_every_operator_has_a_case_that_its_plugin_takes() -> None:
    assert {case.operator for case in kernels.CASES} == {fusion.operator.name for fusion in onnx_fuse.fusions()}
    for item in kernels.CASES:
        kinds = harness.fields(library(), item.operator)
        names = {"inputs": ",".join(item.inputs), "outputs": ",".join(item.outputs)}
        numbers = {
            name: [float(each) for each in value] if isinstance(value, list) and kinds[name] == "float" else value
            for name, value in item.attributes.items()
        }
        plugin = harness.Plugin(library(), item.operator, {**numbers, **names})
        inputs = [
            harness.Tensor(item.type_of(name, "bfloat16"), item.shape(dims)) for name, dims in item.inputs.items()
        ]
        outputs = plugin.outputs(inputs)
        assert [tensor.sizes for tensor in outputs] == [item.shape(dims) for dims in item.outputs.values()], item.name
        assert plugin.refused_position(inputs, outputs) == -1
        plugin.close()


def test_bytes() -> None:
    assert case("FusedSwish").bytes("float16") == 2 * 2 * 8192 * 4096
    assert case("FusedSkipLayerNorm").bytes("float32") == 4 * (3 * 8192 * 4096 + 3 * 4096)
    found = case("FusedEmbedLayerNorm").bytes("float16")
    ids, rows = 8 * (64 * 512 + 512), 64 * 512
    assert found == ids + 2 * (30522 + 512 + 2 + rows) * 768  # the table has fewer rows than are looked up
    assert case("SequenceRecommendationInteraction").bytes("bfloat16") == 2 * 512 * (
        200 * 64 + 64 + 200 + 2 * 64 + 200**2
    )


def test_products() -> None:
    hstu = case("HSTUHierarchicalAttention B=8 S=2048")
    pairs = sum(row + 1 for row in range(2048))
    assert hstu.flops(hstu.sizes) == 2 * (2 * 8 * 4 * pairs * 128)
    dot = case("InteractionTritonFast")
    assert dot.flops(dot.sizes) == 2 * 4096 * (27 * 26 / 2) * 128
    linear = case("FusedLinearLayerNorm")
    assert linear.flops(linear.sizes) == 2 * 16384 * 1024 * 512


@pytest.mark.parametrize(
    "start, dtype, by, seconds",
    [
        ("FusedSwish", "bfloat16", "memory", 4 * 8192 * 4096 / 4e12),
        ("HSTUHierarchicalAttention B=4 S=4096", "bfloat16", "products", 4 * 4 * 512 * 4096 * 4097 / 2 / 8e14),
    ],
)
def test_the_limit(start: str, dtype: str, by: str, seconds: float) -> None:
    assert case(start).limit(dtype, RATES) == (pytest.approx(seconds), by)
    assert case(start).shrunk().limit(dtype, {**RATES, "launch_seconds": 1.0}) == (1.0, "launch")


def test_torch_and_the_onnx_body_agree() -> None:
    for item in kernels.CASES:
        kernels.dry_run(torch, item)


def test_a_wrong_form_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    swish = case("FusedSwish")
    wrong = kernels.Case(**{**swish.__dict__, "eager": lambda torch, x, beta: torch.tanh(x)})
    with pytest.raises(AssertionError, match="output of body is not what torch computes"):
        kernels.dry_run(torch, wrong)


ALL_BUT_THE_CLOCK = """
import json, pathlib, sys, torch
from benchmarks import kernels

def once(torch, runs):
    for run in runs:
        run()
    return 1e-3

kernels.DEVICE, kernels.seconds = "cpu", once
kernels.cache_bytes = kernels.stream = lambda torch: 0
torch.compile = lambda function, **_: function
rates = json.loads(sys.argv[2])
rows = [kernels.measured(torch, case.shrunk(), "float32", pathlib.Path(sys.argv[1]), rates) for case in kernels.CASES]
print(json.dumps(rows))
"""


def test_all_but_the_clock(tmp_path: Path) -> None:
    """Plugins are enqueued through the recording driver; what would be timed is run once."""
    done = subprocess.run(
        [sys.executable, "-c", ALL_BUT_THE_CLOCK, str(library()), json.dumps(RATES)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **driver_settings(tools(), tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    assert [row["operator"] for row in rows] == [case.operator for case in kernels.CASES]
    for row in rows:
        assert row["kernels"] and row["seconds"] == row["eager_seconds"] == row["compiled_seconds"] == 1e-3
        assert row["of_limit"] == pytest.approx(row["limit_seconds"] / 1e-3) and row["unfused_is"] == "torch eager"
        assert (row["sdpa_seconds"] is None) == (row["operator"] != "FusedAttentionLayerNorm")
    launches = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(launches) >= 2 * len(rows)  # two sets of buffers
    aims = kernels.aims([{**row, "sizes": case.sizes} for row, case in zip(rows, kernels.CASES, strict=True)], RATES)
    assert [aim["worst"] for aim in aims if "unfused" in aim["aim"]] == [1.0, 1.0]
    content = {"aims": aims, "device": {"name": "GPU", "driver": "1"}, "commit": "c", "results": rows}
    table = kernels.table(content)
    assert (
        table.count("\n| ") > len(rows) and "| 1000.0 |" in table and "not yet measured" in table
    )  # of two aims: no row


def test_without_a_gpu_nothing_is_written(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "benchmarks/kernels.py", "--out", str(tmp_path / "kernels.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == kernels.NO_GPU and "nothing is measured" in done.stderr
    assert not list(tmp_path.iterdir())
