"""`onnx-fuse inspect`: as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tests.onnx_fuse.cli.helpers import (
    HIDDEN,
    TERMINAL,
    assert_error,
    assert_fits,
    run,
    small_model,
)


def test_trained_model(minilm: Path) -> None:
    done = run("inspect", minilm, **TERMINAL)
    assert done.exit_code == 0 and done.stderr == ""
    for said in (
        "ai.onnx 17",
        "nodes: 354",
        "input_ids",
        "int64[batch_size, sequence_length]",
        "LayerNormalization",
    ):
        assert said in done.stdout
    assert_fits(done.stdout)


def test_json(tmp_path: Path) -> None:
    model = small_model()
    # A fused node with a body, an If with two branches, and weights outside.
    body = helper.make_function(
        "gr.ml.infra",
        "FusedSwish",
        ["x"],
        ["y"],
        [helper.make_node("Relu", ["x"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    model.functions.append(body)
    fused = helper.make_node("FusedSwish", ["y"], ["z"], name="swish", domain="gr.ml.infra")
    fused.attribute.append(helper.make_attribute("inputs", "x"))
    fused.attribute.append(helper.make_attribute("outputs", "output"))
    branch = helper.make_graph([fused], "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])
    model.graph.node.append(
        helper.make_node("If", ["c"], ["out"], name="choose", then_branch=branch, else_branch=branch)
    )
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT16, None)
    model.graph.input.append(sequence)
    model.opset_import.append(helper.make_opsetid("gr.ml.infra", 1))
    helper.set_model_props(model, {"note": "x" * 500})
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    found = json.loads(run("inspect", path, "--json").stdout)
    assert found["opsets"] == {"ai.onnx": 17, "gr.ml.infra": 1}
    assert found["inputs"] == [
        {"name": "x", "type": "float32[n, 8]"},
        {"name": "c", "type": "bool[]"},
        {"name": "s", "type": "sequence(float16[...])"},
    ]
    assert (found["nodes"], found["subgraph_nodes"], found["function_nodes"]) == (3, 2, 1)
    assert found["operators"] == {"Relu": 2, "gr.ml.infra::FusedSwish": 2, "If": 1, "MatMul": 1}
    assert found["fused"][0] == {
        "name": "swish",
        "operator": "FusedSwish",
        "graph": "choose/else_branch",
        "inputs": ["x"],
        "outputs": ["output"],
    }
    assert found["functions"] == [{"name": "gr.ml.infra::FusedSwish", "inputs": 1, "outputs": 1, "nodes": 1}]
    size = HIDDEN * HIDDEN * 4
    assert found["external_data"] == [{"location": "m.data", "file_bytes": size, "tensors": 1, "tensor_bytes": size}]
    assert (found["embedded_bytes"], found["external_bytes"], found["parameters"]) == (0, size, HIDDEN * HIDDEN)
    text = run("inspect", path, **TERMINAL).stdout
    assert "m.data" in text and "(500 characters)" in text and "swish in choose/else_branch" in text
    assert_fits(text)


def test_external_data_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(small_model(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()
    assert_error(run("inspect", path), 5, "Initializer 'w'", "m.data")


def test_names_that_would_control_a_terminal(tmp_path: Path) -> None:
    model = small_model()
    model.graph.input[0].name = model.graph.node[0].input[0] = "x\x1b]0;owned\x07[bold]\n"
    onnx.save(model, tmp_path / "m.onnx")
    text = run("inspect", tmp_path / "m.onnx").stdout
    assert "\x1b" not in text and "\x07" not in text and "[bold]" in text
