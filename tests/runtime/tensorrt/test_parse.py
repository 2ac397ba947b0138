"""onnx_fuse.runtime.tensorrt.parse and .tensorrt: on the CPU, against the real parser, with plugins written in Python."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser

from onnx_fuse.errors import ModelError, UsageError
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.parse import parse, parse_network

try:
    trt = binding.module()
except UsageError as missing:
    pytest.skip(str(missing), allow_module_level=True)

HEAD = '<ir_version: 10, opset_import: ["": 18, "gr.ml.infra": 1]>\n'
NODE = 'plugin_namespace = "gr.ml.infra", plugin_version = "1"'
SCALE = """
<domain: "gr.ml.infra", opset_import: ["": 18]>
Scale <factor> (a) => (b) { c = Constant <value_float: float = @factor> ()  b = Mul (a, c) }
"""
SCALE_AND_ADD = """
<domain: "gr.ml.infra", overload: "with_addend", opset_import: ["": 18]>
Scale <factor> (a, d) => (b) { c = Constant <value_float: float = @factor> ()  e = Mul (a, c)  b = Add (e, d) }
"""


def model(text: str, *node_names: str) -> ModelProto:
    """The model of a graph in ONNX's text form; its first nodes get the names."""
    proto = parser.parse_model(HEAD + text)
    for node, name in zip(proto.graph.node, node_names, strict=False):
        node.name = name
    return proto


def constants(proto: ModelProto) -> list[list[float]]:
    """The weights of each constant in TensorRT's network."""
    parsed = parse_network(proto)
    assert parsed.result.accepted, parsed.result.errors
    found = []
    for layer in map(parsed.network.get_layer, range(parsed.network.num_layers)):
        if layer.type == trt.LayerType.CONSTANT:
            layer.__class__ = trt.IConstantLayer
            found.append(np.array(layer.weights).ravel().tolist())
    return found


def operations(proto: ModelProto) -> dict[str, list[str]]:
    """Name of each output of TensorRT's network -> the elementwise operations that lead to it."""
    parsed = parse_network(proto)
    network, producers = parsed.network, {}
    for layer in map(network.get_layer, range(network.num_layers)):
        producers.update({layer.get_output(index).name: layer for index in range(layer.num_outputs)})

    def leading_to(tensor: str) -> list[str]:
        if tensor not in producers:
            return []
        layer = producers[tensor]
        found = [step for index in range(layer.num_inputs) for step in leading_to(layer.get_input(index).name)]
        if layer.type == trt.LayerType.ELEMENTWISE:
            layer.__class__ = trt.IElementWiseLayer
            found.append(layer.op.name)
        return found

    return {name: leading_to(name) for name in (network.get_output(index).name for index in range(network.num_outputs))}


def test_plain_model() -> None:
    result = parse(model("g (float[N, 4] x) => (float[N, 4] y) { t = Relu (x)  y = Add (t, x) }"))
    assert result.accepted and not result.errors and result.layers == 2
    assert result.module == trt.__name__ and result.version == trt.__version__
    data = json.loads(json.dumps(result.to_dict()))
    assert data["inputs"] == [{"name": "x", "dtype": "FLOAT", "shape": ["N", 4]}]
    assert data["outputs"] == [{"name": "y", "dtype": "FLOAT", "shape": [-1, 4]}]


def test_each_parse_is_alone_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    good = model("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    bad = model("g (float[N] x) => (float[N] y) { y = gr.ml.infra.Unknown (x) }")
    results = [parse(good), parse(bad), parse(good)]
    assert [result.accepted for result in results] == [True, False, True]
    assert results[0] == results[2] and results[0].log == ()
    assert any("Plugin not found" in line for line in results[1].log)
    assert capfd.readouterr() == ("", "")


def test_operators_without_plugin_and_body_are_all_reported() -> None:
    proto = model(
        f"g (float[N] x) => (float[N] y) {{ t = gr.ml.infra.Unknown <{NODE}> (x)  u = Relu (t)  y = gr.ml.infra.Other (x) }}",
        "first",
    )
    result = parse(proto)
    assert not result.accepted and result.plugins == () and result.inlined == {}
    assert {(issue.node, issue.op_type, issue.code) for issue in result.errors} >= {
        ("first", "Unknown", "INVALID_NODE"),
        ("node_of_y", "Other", "INVALID_NODE"),
    }
    assert "Plugin not found" in result.errors[0].message
    assert result.missing == result.lacking == ("gr.ml.infra::Unknown",)  # Other does not say that it wants a plugin


def test_an_error_in_a_subgraph_names_its_surroundings() -> None:
    result = parse(
        model(
            """g (float[4] x, bool c) => (float[4] y) {
                y = If (c) <then_branch = yes () => (float[4] a) { a = gr.ml.infra.Unknown (x) },
                            else_branch = no () => (float[4] b) { b = Relu (x) }>
            }""",
            "branch",
        )
    )
    (issue,) = result.errors
    assert (issue.node, issue.op_type) == ("node_of_a", "Unknown")
    assert issue.stack[0] == "branch (If)"


def test_attributes_reach_the_inlined_body_of_each_call() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 4] y) {
            t = gr.ml.infra.Scale <factor = 2.0> (x)
            y = gr.ml.infra.Scale <factor = 3.0> (t)
        }"""
        + SCALE,
        "first",
        "second",
    )
    before = proto.SerializeToString(deterministic=True)
    result = parse(proto)
    assert result.accepted and result.inlined == {"gr.ml.infra::Scale": 2} and result.plugins == ()
    assert sorted(constants(proto)) == [[2.0], [3.0]]
    parsed = parse_network(proto)
    names = [parsed.network.get_layer(index).name for index in range(parsed.network.num_layers)]
    assert [name for name in names if "/" in name] == ["first/node_of_b__1", "second/node_of_b__2"]
    assert proto.SerializeToString(deterministic=True) == before


def test_overloads_are_inlined_each_with_its_own_body() -> None:
    proto = model(
        """g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y, float[N, 4] w) {
            y = gr.ml.infra.Scale <factor = 2.0> (x)
            w = gr.ml.infra.Scale : with_addend <factor = 5.0> (x, z)
        }"""
        + SCALE
        + SCALE_AND_ADD
    )
    assert sorted(constants(proto)) == [[2.0], [5.0]]
    assert operations(proto) == {"y": ["PROD"], "w": ["PROD", "SUM"]}


def test_nested_bodies_keep_their_attributes() -> None:
    proto = model(
        "g (float[N] x) => (float[N] y) { y = gr.ml.infra.Twice <outer = 7.0> (x) }"
        + """
        <domain: "gr.ml.infra", opset_import: ["": 18, "gr.ml.infra": 1]>
        Twice <outer> (a) => (b) {
            t = gr.ml.infra.Scale <factor: float = @outer> (a)
            b = gr.ml.infra.Scale <factor = 0.5> (t)
        }"""
        + SCALE,
        "twice",
    )
    assert parse(proto).inlined == {"gr.ml.infra::Scale": 2, "gr.ml.infra::Twice": 1}
    assert sorted(constants(proto)) == [[0.5], [7.0]]


def test_calls_in_subgraphs_are_inlined() -> None:
    proto = model(
        """g (float[4] x, bool c) => (float[4] y) {
            y = If (c) <then_branch = yes () => (float[4] a) { a = gr.ml.infra.Scale <factor = 2.0> (x) },
                        else_branch = no () => (float[4] b) { b = gr.ml.infra.Scale <factor = 4.0> (x) }>
        }"""
        + SCALE
    )
    assert parse(proto).inlined == {"gr.ml.infra::Scale": 2}
    assert sorted(constants(proto)) == [[2.0], [4.0]]


def test_a_plugin_takes_its_node_and_the_body_the_others(plugin: Callable[..., None]) -> None:
    plugin("Scale")
    proto = model(
        f"""g (float[N] x) => (float[N] y) {{
            t = gr.ml.infra.Scale <factor = 2.0, {NODE}> (x)
            y = gr.ml.infra.Scale <factor = 3.0, plugin_namespace = "gr.ml.infra", plugin_version = "2"> (t)
        }}"""
        + SCALE,
        "with_plugin",
        "with_body",
    )
    proto.graph.node[0].overload = "0"  # what the body of the other call is numbered while it is inlined
    result = parse(proto)
    assert result.accepted and result.plugins == ("with_plugin",) and result.inlined == {"gr.ml.infra::Scale": 1}
    assert constants(proto) == [[3.0]]


def test_a_plugin_inside_an_inlined_body(plugin: Callable[..., None]) -> None:
    plugin("Scale")
    proto = model(
        "g (float[N] x) => (float[N] y) { y = gr.ml.infra.Outer (x) }"
        + f"""
        <domain: "gr.ml.infra", opset_import: ["": 18, "gr.ml.infra": 1]>
        Outer (a) => (b) {{ t = gr.ml.infra.Scale <factor = 2.0, {NODE}> (a)  b = Relu (t) }}"""
        + SCALE,
        "outer",
    )
    result = parse(proto)
    assert result.accepted and result.inlined == {"gr.ml.infra::Outer": 1}
    assert [name.split("__")[0] for name in result.plugins] == ["outer/node_of_t"]


def test_a_name_that_tensorrt_knows(plugin: Callable[..., None]) -> None:
    """A `Gelu` of ours is the plugin, else its body; with neither, TensorRT's own stands in, and a warning says so."""
    text = f"g (float[N] x) => (float[N] y) {{ y = gr.ml.infra.Gelu <{NODE}> (x) }}"
    body = '<domain: "gr.ml.infra", opset_import: ["": 18]> Gelu (a) => (b) { b = Add (a, a) }'
    assert operations(model(text + body)) == {"y": ["SUM"]}
    alone = parse(model(text, "mine"))
    assert (
        alone.missing == ("gr.ml.infra::Gelu",)
        and alone.plugins == ()
        and any("no plugin is registered for node mine" in line for line in alone.log)
    )
    plugin("Gelu")
    for proto in (model(text + body, "mine"), model(text, "mine")):
        result = parse(proto)
        assert result.plugins == ("mine",) and result.log == () and result.missing == ()


def test_bodies_that_cannot_be_inlined() -> None:
    call = "g (float[N] x) => (float[N] y) { y = gr.ml.infra.Loop_ (x) }"
    endless = '<domain: "gr.ml.infra", opset_import: ["": 18, "gr.ml.infra": 1]> Loop_ (a) => (b) { b = gr.ml.infra.Loop_ (a) }'
    with pytest.raises(ModelError, match="calls itself"):
        parse(model(call + endless))
    with pytest.raises(ModelError, match="cannot be inlined"):
        parse(model(call.replace("(x) }", "(x, x) }") + endless.replace("gr.ml.infra.Loop_ (a)", "Relu (a)")))


def test_a_body_of_another_opset_is_converted() -> None:
    """ReduceMean takes its axes as an attribute up to opset 17, as an input from 18."""
    proto = model(
        "g (float[N, 4] x) => (float[N, 1] y) { y = gr.ml.infra.Mean (x) }"
        '<domain: "gr.ml.infra", opset_import: ["": 17]> Mean (a) => (b) { b = ReduceMean <axes = [1]> (a) }'
    )
    result = parse(proto)
    assert result.accepted and result.outputs[0].shape in ((-1, 1), ("N", 1))


def test_external_data(tmp_path: Path) -> None:
    proto = model(
        "g (float[N, 4] x) => (float[N, 4] y) { t = gr.ml.infra.Scale <factor = 2.0> (x)  y = Add (t, W) }" + SCALE
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3, 4], np.float32), "W"))
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    files = sorted(tmp_path.iterdir())
    unread = onnx.load(path, load_external_data=False)
    assert parse(path).accepted and parse(str(path)).accepted and parse(unread, base_dir=tmp_path).accepted
    assert [1.0, 2.0, 3.0, 4.0] in constants(onnx.load(path))
    assert sorted(tmp_path.iterdir()) == files

    (tmp_path / "weights.bin").unlink()
    result = parse(path)
    assert not result.accepted and any("weights.bin" in line for line in result.log)


def test_what_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx cannot be read"):
        parse(tmp_path / "none.onnx")
    (tmp_path / "garbage.onnx").write_bytes(b"garbage" * 100)
    with pytest.raises(ModelError, match=r"garbage\.onnx cannot be read"):
        parse(tmp_path / "garbage.onnx")
    (tmp_path / "empty.onnx").touch()
    for nothing in (parse(tmp_path / "empty.onnx"), parse(ModelProto())):
        assert (
            not nothing.accepted and nothing.layers == 0 and [issue.code for issue in nothing.errors] == ["NO_LAYERS"]
        )


def test_unusable_plugin_libraries(tmp_path: Path) -> None:
    proto = model("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    with pytest.raises(UsageError, match=r"none\.so cannot be read: No such file"):
        parse(proto, plugins=[tmp_path / "none.so"])
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        parse(proto, plugins=[tmp_path])
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(UsageError, match="is not a 64-bit ELF file"):
        parse(proto, plugins=[tmp_path / "text.so"])
    library = Path(onnx.onnx_cpp2py_export.__file__)  # a whole library, with no plugins in it
    with pytest.raises(UsageError, match=r"does not load the plugin library .*getCreators"):
        parse(proto, plugins=[library])
    content = library.read_bytes()
    for length in (20, 64, 1000, len(content) // 2, len(content) - 1):
        (tmp_path / "short.so").write_bytes(content[:length])
        with pytest.raises(UsageError, match="is cut short"):
            parse(proto, plugins=[tmp_path / "short.so"])
    assert parse(proto).accepted


def test_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UsageError, match=r"\[tensorrt-rtx\]"):
        binding.module.__wrapped__()


@pytest.mark.skipif(trt.__name__ != "tensorrt_rtx", reason="tensorrt needs no preparation")
def test_an_early_import_is_an_error_and_no_abort() -> None:
    script = """
import tensorrt_rtx
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.tensorrt import binding
binding.module()
try:
    binding.require_plugin_nodes()
except UsageError as error:
    print(error.cause)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "imported before onnx-fuse" in done.stdout
