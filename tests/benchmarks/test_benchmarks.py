"""The benchmarks at a tiny size: they run, the peers do the same work, and the result files hold what the docs quote.

Nothing here looks at a clock: what is measured is for the benchmarks to say.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_fuse
from onnx_fuse.runtime.onnxruntime import kernel_library
from tests.helpers import model
from tests.runtime.onnxruntime.libraries import library

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def content(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    assert loaded["machine"]["cpu"] and loaded["machine"]["cores"] >= 1
    assert {"onnx", "onnxruntime", "onnxscript"} <= set(loaded["versions"])
    assert loaded["command"].startswith("python benchmarks/")
    return loaded


@pytest.mark.long
def test_scaling(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    sizes = ["--sizes", "32", "--large-blocks", "2", "--large-hidden", "64"]
    run("scaling.py", *sizes, "--repeats", "1", "--out", str(tmp_path))
    found = content(tmp_path / "scaling.json")
    tools = {"onnx-fuse", "onnxscript", "onnx-graphsurgeon", "onnx load+save"}
    assert {(row["tool"], row["nodes"]) for row in found["results"]} == {(tool, 32) for tool in tools}
    for row in found["results"]:
        fused = 0 if row["tool"] == "onnx load+save" else 2
        assert row["fused"] == {"FusedSwish": fused, "FusedSkipLayerNorm": fused}
        assert row["cpu_seconds"] >= 0 and row["peak_mb"] >= row["above_mb"] >= 0
        assert len(row["cpu_seconds_of_each"]) == 1
    assert set(found["exponents"]) == tools
    assert found["large"]["fuse"]["fused"] == {"FusedSwish": 2, "FusedSkipLayerNorm": 2}
    assert found["large"]["verify"]["outcome"] == "passed"
    assert {"times_faster_than_onnxscript", "memory_of_onnxscript", "exponent"} <= set(found["targets"])
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_scaling_where_no_block_repeats_another(tmp_path: Path) -> None:
    run("scaling.py", "--irregular", "--sizes", "1600", "--repeats", "1", "--out", str(tmp_path))
    rows = {row["tool"]: row for row in content(tmp_path / "scaling_irregular.json")["results"]}
    assert rows["onnx-fuse"]["fused"] == {"FusedSwish": 100, "FusedSkipLayerNorm": 100}
    assert set(rows) == {"onnx-fuse", "onnx load+save"}


def test_irregular_blocks_are_never_left_out_of_the_search() -> None:
    from benchmarks.scaling import synthetic_model
    from onnx_fuse.passes.fuse.excerpt import excerpt
    from onnx_fuse.passes.graph.index import Graph

    graphs = {kind: synthetic_model(100, irregular=kind) for kind in (False, True)}
    excerpts = {kind: excerpt(Graph(made.graph, made)) for kind, made in graphs.items()}
    assert excerpts[False] is not None and excerpts[True] is None


@pytest.mark.long
def test_coverage(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    run("coverage.py", "--sample", "one", "--no-trained", "--out", str(tmp_path))
    found = content(tmp_path / "coverage.json")
    (row,) = found["results"]
    assert row["blocks"] == row["norms"] == 2
    assert set(row["tools"]) == {"onnx-fuse", "onnxruntime.transformers", "onnxscript ort_fusions"}
    for result in row["tools"].values():
        assert "error" not in result and "run_error" not in result
        assert result["cpu_seconds"] >= 0 and result["above_mb"] >= 0
        assert result["difference"] < 1e-3
    ours = row["tools"]["onnx-fuse"]
    assert ours["attention"] == ours["norms"] == row["blocks"] and ours["nodes_after"] < ours["nodes_before"]
    table = (tmp_path / "coverage.md").read_text()
    assert "| bert | 1 | 2/2 | 2/2 | 2/2 |" in table
    assert "| bert-script14-eager-static | 14 | 2 | 2 | 2 | 2 |  |" in table


@pytest.mark.long
def test_bert_base(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    run("bert_base.py", "--layers", "2", "--heads", "1", "--repeats", "1", "--out", str(tmp_path))
    found = content(tmp_path / "bert_base.json")
    assert found["layers"] == 2 and found["model_mb"] > 1
    assert [row["attention"] for row in found["results"]] == [2, 2, 2]
    for row in found["results"]:
        assert row["process_cpu_seconds"] > row["cpu_seconds"] > 0 and row["peak_mb"] >= row["above_mb"] > 0
    assert "| onnx-fuse | 2 |" in (tmp_path / "bert_base.md").read_text()


@pytest.mark.long
def test_recommenders(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    run("recommenders.py", "--models", "DLRM", "DIN", "--script-only", "--runs", "2", "--out", str(tmp_path))
    rows = content(tmp_path / "recommenders.json")["results"]
    assert [row["fused"] for row in rows] == [{"InteractionTritonFast": 1}] * 2 + [{}] * 2
    assert all(row["verified"] and row["ms_after"] > 0 for row in rows)
    assert (
        "| DLRM | script 14 | 1 InteractionTritonFast | as expected | yes |"
        in (tmp_path / "recommenders.md").read_text()
    )


@pytest.mark.long
def test_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    arguments = ["--models", "DLRM", "ViT", "--script-only", "--seconds", "0", "--threads", "1", "--out", str(tmp_path)]
    monkeypatch.setenv(kernel_library.VARIABLE, str(library()))
    run("onnxruntime.py", *arguments)
    found = content(tmp_path / "onnxruntime.json")
    rows = found["results"]
    assert found["kernels"] in ("plain", "avx2", "avx512")
    assert [(row["model"], row["batch"], row["threads"]) for row in rows] == [
        (name, batch, 1) for name in ("DLRM", "ViT") for batch in (1, 32)
    ]
    for row in rows:
        other = "optimizer" if row["model"] == "ViT" else "library"
        assert row["fused"] and row["ratio"]["original"] == 1 and row["turns"] >= 9
        assert set(row["ratio"]) == set(row["run_mb"]) == {"original", "bodies", other}
        assert all(value > 0 for side in ("ratio", "ms") for value in row[side].values())
    table = (tmp_path / "onnxruntime.md").read_text()
    assert table.startswith("`python benchmarks/onnxruntime.py --models DLRM ViT ")
    assert table.count("\n| DLRM | script 17 | ") == 2 and "| **geometric mean** |" in table
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "onnxruntime.png").read_bytes().startswith(b"\x89PNG")


def test_a_body_does_not_pass_for_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark looks at a profile of the session that it would measure, and stops."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from benchmarks import onnxruntime as benchmark

    original = model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) y = Mul(x, s) }")
    fused = onnx_fuse.fuse(original, enable=["FusedSwish"], verify=False)
    given = {"x": np.ones((1, 4), np.float32)}
    case = benchmark.Case("swish", "text", original, fused.model, {}, given, benchmark.Model(None))
    monkeypatch.setenv(kernel_library.VARIABLE, str(library()))
    assert benchmark._library(case, 1) is not None
    kernels = kernel_library.choose(case.fused)
    with pytest.raises(RuntimeError, match=r"swish, text: kernels for \{'FusedSwish': 1\}, and there ran"):
        benchmark._require_kernels(case, replace(kernels, library=None))
