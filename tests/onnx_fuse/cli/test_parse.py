"""`onnx-fuse parse`: what the parser says, and how to get plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from tests.onnx_fuse.cli.helpers import (
    TERMINAL,
    assert_fits,
    run,
)


def test_accepted(small: Path) -> None:
    parsing = pytest.importorskip("onnx_fuse.runtime.tensorrt.parse")
    done = run("parse", small)
    if "TensorRT" in done.stderr and done.exit_code == 2:
        pytest.skip("no TensorRT is installed")
    assert parsing and done.exit_code == 0 and "accepts the model" in done.stdout


def test_how_to_get_plugins(tmp_path: Path) -> None:
    node = helper.make_node("FusedSwish", ["x"], ["y"], domain="gr.ml.infra", plugin_namespace="gr.ml.infra")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("gr.ml.infra", 1)]
    body = helper.make_function(
        "gr.ml.infra", "FusedSwish", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets[:1]
    )
    graph = helper.make_graph([node], "swish", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)
    path, advice = tmp_path / "m.onnx", "onnx-fuse plugins build"
    onnx.save(model, path)
    done = run("parse", path, **TERMINAL)
    if "TensorRT" in done.stderr and done.exit_code == 2:
        pytest.skip("no TensorRT is installed")
    assert done.exit_code == 0 and advice in done.stdout and "--plugins LIB" in done.stdout
    assert_fits(done.stdout)
    assert advice not in run("parse", path, "--no-plugins").stdout
    del model.functions[:]
    onnx.save(model, path)
    done = run("parse", path)
    error, hint = done.stderr.splitlines()
    assert done.exit_code == 4 and "it has no plugin for gr.ml.infra::FusedSwish, and the model no body." in error
    assert advice in hint and "--plugins LIB" in hint


def test_not_accepted(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsing = pytest.importorskip("onnx_fuse.runtime.tensorrt.parse")
    issue = parsing.ParseIssue("multiply", "MatMul", "INVALID_NODE", "no [such] thing\nat all", ("if (If)",))
    refused = parsing.ParseResult(
        accepted=False, layers=1, plugins=("p",), inlined={"d::F": 2}, errors=(issue,), inputs=(), outputs=(),
        module="tensorrt", version="1", log=("WARNING: hm",),
    )  # fmt: skip
    seen: list[Any] = []

    def parse(model: Path, *, plugins: Any) -> Any:
        seen.extend(plugins)
        return refused

    monkeypatch.setattr(parsing, "parse", parse)
    done = run("parse", small, "--plugins", "a.so", "--plugins", "b.so", **TERMINAL)
    assert seen == [Path("a.so"), Path("b.so")]
    assert done.exit_code == 4 and len(done.stderr.splitlines()) == 2
    for said in (
        "does NOT accept",
        "multiply (MatMul): INVALID_NODE",
        "no [such] thing at all",
        "if (If)",
        "d::F: 2 calls",
    ):
        assert said in done.stdout, said
    assert_fits(done.stdout)
