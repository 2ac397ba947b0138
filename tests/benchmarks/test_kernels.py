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
from benchmarks import jsonl, kernel_cases, kernels
from onnx_fuse.runtime.plugins import harness
from tests.plugin_csrc.built import ROOT, driver_settings, library, tools

CASES = {case.name: case for case in kernel_cases.CASES}
RATES = {
    "copy_bytes_per_second": 4e12,
    "matrix_flops_per_second": {"bfloat16": 8e14, "float32": 5e13},
    "launch_seconds": 2e-6,
}


def case(start: str) -> kernel_cases.Case:
    return next(case for name, case in CASES.items() if name.startswith(start))


def test_every_operator_has_a_case_that_its_plugin_takes() -> None:
    assert {case.operator for case in kernel_cases.CASES} == {fusion.operator.name for fusion in onnx_fuse.fusions()}
    for item in kernel_cases.CASES:
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
    assert case("FusedSkipLayerNorm R=8192").bytes("float32") == 4 * (3 * 8192 * 4096 + 3 * 4096)
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
    for item in {item.shrunk().name: item for item in kernel_cases.CASES}.values():
        kernels.dry_run(torch, item)


def test_a_wrong_form_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    swish = case("FusedSwish")
    wrong = kernel_cases.Case(**{**swish.__dict__, "eager": lambda torch, x, beta: torch.tanh(x)})
    with pytest.raises(AssertionError, match="output of body is not what torch computes"):
        kernels.dry_run(torch, wrong)


def test_what_tells_most_comes_first() -> None:
    operators = list(dict.fromkeys(case.operator for case in kernel_cases.CASES))
    assert operators[:4] == [
        "HSTUHierarchicalAttention",
        *("FMInteraction", "InteractionTritonFast", "FusedAttentionLayerNorm"),
    ]
    sizes = [case.sizes for case in kernel_cases.CASES if case.operator == "HSTUHierarchicalAttention"]
    assert {128, 512, 2048, 4096} <= {size["S"] for size in sizes} and {1, 128} <= {size["B"] for size in sizes}
    assert len({case.name for case in kernel_cases.CASES}) == len(kernel_cases.CASES)


ALL_BUT_THE_CLOCK = """
import dataclasses, json, pathlib, sys, torch
from benchmarks import kernel_cases, kernels
from onnx_fuse.passes.select import cost_model

def once(torch, runs):
    for run in runs:
        run()
    return 1e-3

kernels.DEVICE, kernels.seconds = "cpu", once
kernels.cache_bytes = kernels.stream = lambda torch: 0
kernels.device_rates = lambda torch, dtypes: json.loads(sys.argv[2])
torch.compile = lambda function, **_: function
cases = {case.shrunk().name: case.shrunk() for case in kernel_cases.CASES}.values()
device = dataclasses.replace(cost_model.DEVICES["A100"], multiprocessors=132)
about = {"device": {"name": "GPU", "driver": "1"}, "commit": "c"}
kernels.run(
    torch, list(cases), ["float32"], pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3]),
    minutes=float(sys.argv[4]), device=device, about=about,
)
"""


def measured(folder: Path, minutes: float) -> Path:
    """The results of a run in which plugins are enqueued through the recording driver, and what would be timed is run once."""
    file = folder / "kernels.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", ALL_BUT_THE_CLOCK, str(library()), json.dumps(RATES), str(file), str(minutes)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **driver_settings(tools(), folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return file


def test_all_but_the_clock(tmp_path: Path) -> None:
    content = kernels.read(measured(tmp_path, 60))
    rows: list[dict[str, Any]] = content["results"]
    assert [f"{row['case']} {row['dtype']}" for row in rows] == content["planned"]
    assert {row["operator"] for row in rows} == {case.operator for case in kernel_cases.CASES}
    for row in rows:
        assert row["seconds"] == row["eager_seconds"] == row["compiled_seconds"] == 1e-3
        assert row["kernels"] == row["predicted_kernels"] and row["predicted_seconds"] > 2e-6
        assert row["of_limit"] == pytest.approx(row["limit_seconds"] / 1e-3)
        assert (row["sdpa_seconds"] is None) == (row["operator"] != "FusedAttentionLayerNorm")
    launches = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(launches) >= 2 * len(rows)  # two sets of buffers
    assert [aim["worst"] for aim in content["aims"] if "unfused" in aim["aim"]] == [1.0, 1.0]
    table = kernels.table(content)
    assert table.count("\n| ") > len(rows) and "| 1000.0 |" in table
    assert "not yet measured" in table  # of two aims: no row


def test_a_run_that_is_stopped_loses_nothing(tmp_path: Path) -> None:
    """Times of torch.compile and ONNX Runtime come last; a line that was cut short is left out."""
    file = measured(tmp_path, 60)
    lines = file.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert "planned" in rows[0] and "measured" in rows[1]
    count = len(rows[0]["planned"])
    assert all("seconds" in row for row in rows[2 : 2 + count]) and len(rows) == 2 + 2 * count
    file.write_text("\n".join(lines[:5])[:-10])
    content = kernels.read(file)
    assert len(content["results"]) == 2 and "compiled_seconds" not in content["results"][0]
    assert f"2 of {count} cases" in kernels.table(content)


def test_a_run_whose_time_is_up_begins_nothing(tmp_path: Path) -> None:
    content = kernels.read(measured(tmp_path, 0))
    assert content["results"] == [] and content["planned"] and content["measured"] == RATES
    assert "0 of" in kernels.table(content)


def test_errors_of_the_predictions() -> None:
    def row(operator: str, predicted: float | None, kernel: str = "k") -> dict[str, Any]:
        return {
            "operator": operator,
            "seconds": 4e-6,
            "predicted_seconds": predicted,
            "kernels": ["k"],
            "predicted_kernels": [kernel],
        }

    rows = [row("A", 2e-6), row("A", 8e-6, "other"), row("B", 1e-6), row("C", None)]
    found = {item["operator"]: item for item in kernels.errors_of_prediction(rows)}
    assert list(found) == ["A", "B", "all"] and found["A"]["mean"] == pytest.approx(1.0)
    assert (found["A"]["least"], found["A"]["largest"], found["A"]["as_predicted"]) == (0.5, 2.0, 1)
    assert found["all"]["cases"] == 3 and found["all"]["mean"] == pytest.approx(4 ** (1 / 3))
    assert kernels.errors_of_prediction([row("C", None)]) == []


def test_lines(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "lines"
    jsonl.begin(file, {"planned": 1})
    jsonl.write(file, {"a": 2})
    jsonl.begin(file, {"planned": 3})
    file.write_text(file.read_text() + '{"cut": ')
    assert list(jsonl.read(file)) == [{"planned": 3}]


def test_without_a_gpu_nothing_is_written(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "benchmarks/kernels.py", "--out", str(tmp_path / "kernels.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == kernels.NO_GPU and "nothing is measured" in done.stderr
    assert not list(tmp_path.iterdir())
