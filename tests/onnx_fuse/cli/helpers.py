"""What the tests of the commands share: running one, doubles of the API, and what every error looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

import onnx_fuse
from onnx_fuse.cli.app import app
from onnx_fuse.passes.files import io
from onnx_fuse.passes.report import MatchRecord, NearMissRecord, PassRecord, Report

HIDDEN = 8

TERMINAL = {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "80"}
"""The environment of a terminal without colours: lines are wrapped there, and nowhere else."""


def small_model(scale: float = 1.0) -> ModelProto:
    """relu(x w): nothing that any fusion matches."""
    weight = (np.arange(HIDDEN * HIDDEN, dtype=np.float32).reshape(HIDDEN, HIDDEN) - 30) * scale
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"], name="multiply"),
            helper.make_node("Relu", ["xw"], ["y"], "relu"),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", HIDDEN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", HIDDEN])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(*arguments: str | Path | float, **environment: str) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80", **environment})


def process(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, as a shell starts it."""
    variables = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    command = [sys.executable, "-m", "onnx_fuse", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**variables, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def assert_error(done: Result | subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    """One line of cause and one of remedy on stderr, nothing on stdout."""
    got = done.exit_code if isinstance(done, Result) else done.returncode
    assert got == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("error: ") and lines[1].startswith("hint: ")
    for text in said:
        assert text in done.stderr


def assert_fits(text: str) -> None:
    """No line of a table or paragraph on a `TERMINAL` is wider than 80 columns; a line with a path in it may be."""
    for line in text.splitlines():
        assert len(line.rstrip()) <= 80 or "/" in line, line


def assert_plain(text: str) -> None:
    """Off a terminal nothing is padded."""
    assert all(line == line.rstrip() for line in text.splitlines()), text


class FakeResult:
    """What `onnx_fuse.fuse` gives, without fusing."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.saved: dict[str, Any] = {}

    def save(self, path: Path, *, external_data: str = "auto") -> None:
        self.saved = {"path": path, "external_data": external_data}
        io.save(small_model(), path)


def fake_api(
    monkeypatch: pytest.MonkeyPatch, report: Report | None = None, error: Exception | None = None
) -> dict[str, Any]:
    """Puts doubles in the place of `fuse` and `explain`; gives the arguments they were called with."""
    called: dict[str, Any] = {}
    report = report or Report(nodes_before=2, nodes_after=2)

    def fuse(model: Any, **options: Any) -> FakeResult:
        called.update(options, model=model)
        options["progress"]("a pass")
        if error is not None:
            raise error
        called["result"] = FakeResult(report)
        return called["result"]

    def explain(model: Any, **options: Any) -> Report:
        called.update(options, model=model)
        return report

    monkeypatch.setitem(vars(onnx_fuse), "fuse", fuse)
    monkeypatch.setitem(vars(onnx_fuse), "explain", explain)
    return called


def full_report() -> Report:
    """A report with everything a run can have in it, names of the awkward kind included."""
    long = "/encoder/layer.0/attention/self/some/very/long/scope/name/that/exporters/write/MatMul_1"
    return Report(
        model="m.onnx",
        nodes_before=354,
        nodes_after=120,
        matches=[
            MatchRecord(
                fusion="FusedAttentionLayerNorm", operator="FusedAttentionLayerNorm", node=f"fused_{index}", graph="",
                root=f"root_{index}", replaced=("a", "b", long), inputs=("query", "key"), outputs=("output",),
                parts=("projection", "residual", "norm"), left_out=("rotary stays outside",),
            )
            for index in range(3)
        ],
        near_misses=[
            NearMissRecord(fusion="FusedSwish", node=long, op_type="Mul", graph="loop/body", failed_at="s", matched=2,
                           total=2, reason="its output '[/bold]s' is also read by relu outside of the match :smile:")
        ] * 4
        + [
            NearMissRecord(fusion="FusedEmbedLayerNorm", node=f"n{index}", op_type="Add", graph="", failed_at="t",
                           matched=1, total=6, reason=f"reason {index}")
            for index in range(5)
        ],
        passes=[PassRecord("normalize", 0.25, 354, 300, 54),
                PassRecord("fuse", 1.5, 300, 120, 3, 9, error="a rule raised")],
        warnings=["several bodies of one name"],
        equalities={"sequence": 7},
        verification={"passed": True, "skipped": None, "rtol": 1e-4, "cases": [
            {"comparisons": [{"output": "y", "relative": 1.5e-6}, {"output": "z", "relative": "nan"}]}]},
    )  # fmt: skip
