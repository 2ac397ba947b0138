"""Whatever file the command is given: a clear error with the right exit code, or a model that computes the same.

Never a traceback, never half a file, and the input stays as it is.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

import onnx_fuse
from onnx_fuse.cli.app import app
from onnx_fuse.errors import ModelError, OnnxFuseError
from tests import helpers
from tests.trust.mutations import attention_block, attention_core, embedding, flip_bytes, swish_and_gelu

INVALID = 5
Build = Callable[[], ModelProto]
make = helper.make_node


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})


def said(done: Result) -> str:
    """The error of a run, which is two lines: a cause and a remedy; nothing else came out."""
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning")]
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), done.stderr
    return lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(model: ModelProto | bytes, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "m.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refuses(path: Path, out: Path, *words: str) -> None:
    """`fuse` and `explain` refuse the model, with exit code 5 and these words; the other commands do not stumble over it."""
    before = contents(path.parent)
    for arguments in (("fuse", path, "-o", out), ("fuse", path, "-o", out, "--no-verify"), ("explain", path)):
        done = command(*arguments)
        assert done.exit_code == INVALID, (arguments, done.stderr)
        sentence = said(done)
        for word in words:
            assert word in sentence
    for arguments in (("inspect", path), ("inspect", path, "--json"), ("verify", path, path)):
        done = command(*arguments)
        assert done.exit_code in (0, 4, INVALID), (arguments, done.stderr)
        assert "Traceback" not in done.stderr
    assert not out.exists() and not list(out.parent.glob(".onnx-fuse-*"))
    assert contents(path.parent) == before


def takes(model: ModelProto, folder: Path, fused: int, **sizes: int) -> ModelProto:
    """`fuse` writes a model with so many fused nodes that computes the same; without any, the file is the same."""
    path, out = written(model, folder / "in"), folder / "out.onnx"
    before = path.read_bytes()
    done = command("fuse", path, "-o", out, "--no-verify", "--enable", "FusedSwish", "--enable", "FusedSkipLayerNorm")
    assert done.exit_code == 0, done.stderr
    assert path.read_bytes() == before
    result = onnx.load(out)
    assert sum(node.domain == "gr.ml.infra" for node in result.graph.node) == fused
    if not fused:
        assert out.read_bytes() == before
    assert command("explain", path).exit_code == 0
    assert command("inspect", out).exit_code == 0
    helpers.assert_same_results(model, result, **sizes)
    return result


def chain(*nodes: NodeProto, weights: list[TensorProto] | None = None) -> ModelProto:
    """x -> y through the nodes."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        weights or [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def edited(edit: Callable[[GraphProto], object], base: Build = attention_block) -> ModelProto:
    model = base()
    edit(model.graph)
    return model


def node_of(graph: GraphProto, op_type: str) -> NodeProto:
    return next(node for node in graph.node if node.op_type == op_type)


def weight_of(graph: GraphProto, name: str) -> TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == name)


def branch(*nodes: NodeProto, output: str) -> GraphProto:
    return helper.make_graph(list(nodes), "b", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def with_function(*nodes: NodeProto, opset: bool = True) -> ModelProto:
    model = chain(make("Block", ["x"], ["y"], domain="local"))
    imports = [helper.make_opsetid("", 17)] if opset else []
    imports.append(helper.make_opsetid("local", 1))
    model.functions.append(helper.make_function("local", "Block", ["a"], ["b"], list(nodes), imports))
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def cyclic() -> ModelProto:
    return chain(make("Add", ["x", "b"], ["a"]), make("Relu", ["a"], ["b"]), make("Relu", ["b"], ["y"]))


def self_reading() -> ModelProto:
    return chain(make("Add", ["x", "y"], ["y"]))


def reversed_nodes() -> ModelProto:
    model = attention_block()
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


INVALID_MODELS: dict[str, tuple[Build, str]] = {
    "cycle": (cyclic, "b"),
    "reads itself": (self_reading, "y"),
    "unsorted": (reversed_nodes, ""),
    "value made twice": (lambda: chain(make("Relu", ["x"], ["y"]), make("Abs", ["x"], ["y"])), "y"),
    "value is an input too": (lambda: chain(make("Relu", ["x"], ["x"]), make("Abs", ["x"], ["y"])), "x"),
    "missing initializer": (
        lambda: edited(lambda graph: graph.initializer.remove(weight_of(graph, "gamma"))),
        "gamma",
    ),
    "undefined input": (lambda: chain(make("Add", ["x", "nowhere"], ["y"])), "nowhere"),
    "no outputs": (lambda: chain(), "y"),
    "unknown operator": (lambda: chain(make("NoSuchOperator", ["x"], ["y"])), "NoSuchOperator"),
    "operator of a domain that is not imported": (lambda: chain(make("A", ["x"], ["y"], domain="far")), "far"),
    "too few inputs": (lambda: chain(make("Add", ["x"], ["y"])), "Add"),
    "no operator type": (lambda: chain(make("", ["x"], ["y"])), ""),
    "attribute of another type": (
        lambda: edited(
            lambda graph: node_of(graph, "Transpose").attribute[0].CopyFrom(helper.make_attribute("perm", 1.0))
        ),
        "perm",
    ),
    "unknown attribute": (lambda: chain(make("Relu", ["x"], ["y"], hardness=3)), "hardness"),
    "subgraph that captures what is not there": (
        lambda: chain(
            make("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
            make(
                "If",
                ["c"],
                ["y"],
                then_branch=branch(make("Relu", ["nowhere"], ["t"]), output="t"),
                else_branch=branch(make("Relu", ["x"], ["e"]), output="e"),
            ),
        ),
        "nowhere",
    ),
    "function that calls itself": (lambda: with_function(make("Block", ["a"], ["b"], domain="local")), ""),
    "function without an opset": (lambda: with_function(make("Relu", ["a"], ["b"]), opset=False), ""),
    "more data than the shape needs": (
        lambda: edited(lambda graph: weight_of(graph, "wq").dims.__setitem__(0, 4)),
        "wq",
    ),
    "less data than the shape needs": (
        lambda: edited(lambda graph: weight_of(graph, "wq").dims.__setitem__(0, 16)),
        "wq",
    ),
    "negative dimension": (lambda: edited(lambda graph: weight_of(graph, "wq").dims.__setitem__(0, -8)), "wq"),
    "huge dimensions": (lambda: edited(lambda graph: weight_of(graph, "wq").dims.extend([1 << 62, 1 << 62])), "wq"),
    "type of a weight unknown": (lambda: edited(lambda graph: setattr(weight_of(graph, "wq"), "data_type", 0)), "wq"),
    "newer opset": (lambda: opset(999), "999"),
    "newer IR version": (lambda: ir_version(999), "999"),
    "IR version 3 and a weight that is no input": (lambda: ir_version(3), ""),
}


def opset(version: int) -> ModelProto:
    model = attention_block()
    model.opset_import[0].version = version
    return model


def ir_version(version: int) -> ModelProto:
    model = attention_block()
    model.ir_version = version
    return model


@pytest.mark.parametrize("name", INVALID_MODELS)
def test_invalid_models_are_refused(name: str, tmp_path: Path) -> None:
    build, word = INVALID_MODELS[name]
    refuses(written(build(), tmp_path / "in"), tmp_path / "out.onnx", word)


# -- models that are odd and right -----------------------------------------------------------------------------------------


def as_inputs(model: ModelProto) -> ModelProto:
    """IR version 3: every initializer is an input too."""
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return model


def renamed(rename: Callable[[str], str]) -> ModelProto:
    """Every value of the attention block under another name; nodes too."""
    model = attention_block()
    graph = model.graph
    for node in graph.node:
        node.input[:] = map(rename, node.input)
        node.output[:] = map(rename, node.output)
        node.name = rename(node.name)
    for item in (*graph.input, *graph.output, *graph.initializer):
        item.name = rename(item.name)
    return model


def one_name(graph: GraphProto, name: str) -> None:
    for node in graph.node:
        node.name = name


def also_output(graph: GraphProto, name: str, rank: int = 3) -> None:
    value = next((value for value in graph.input if value.name == name), None)
    graph.output.append(value or helper.make_tensor_value_info(name, TensorProto.FLOAT, list("ABCD")[:rank]))


RIGHT_MODELS: dict[str, tuple[Build, int]] = {
    "no node names": (lambda: edited(lambda graph: one_name(graph, "")), 1),
    "unicode names": (lambda: renamed(lambda name: f"é中\U0001f600\n{name}"), 1),
    "very long names": (lambda: renamed(lambda name: "x" * 20_000 + name), 1),
    "names with brackets": (lambda: renamed(lambda name: f"[red]{name}[/] %s {{}} :x:"), 1),
    "an output that is an input": (lambda: edited(lambda graph: also_output(graph, "x")), 1),
    "an output twice under two names": (
        lambda: edited(
            lambda graph: (graph.node.append(make("Identity", ["y"], ["again"])), also_output(graph, "again"))
        ),
        1,
    ),
    "an inner output, so that just the norm is fused": (
        lambda: edited(lambda graph: also_output(graph, "probabilities", 4)),
        1,
    ),
    "IR version 3": (lambda: as_inputs(attention_block()), 1),
    "types declared for nothing": (
        lambda: edited(lambda graph: graph.value_info.extend([helper.make_tensor_value_info("none", 1, [1])])),
        1,
    ),
}


@pytest.mark.parametrize("name", RIGHT_MODELS)
def test_odd_models_are_fused(name: str, tmp_path: Path) -> None:
    build, fused = RIGHT_MODELS[name]
    takes(build(), tmp_path, fused)


def test_a_weight_that_the_caller_may_replace_is_no_constant(tmp_path: Path) -> None:
    model = as_inputs(swish_and_gelu())
    model.ir_version = 8
    path, out = written(model, tmp_path / "in"), tmp_path / "out.onnx"
    assert command("fuse", path, "-o", out, "--no-verify", "--enable", "FusedSwish").exit_code == 0
    fused = onnx.load(out)
    given = {"beta_1": np.array(0.3, np.float32), "gamma": np.full(8, 3.0, np.float32), **helpers.feeds(model)}
    for want, got in zip(helpers.run(model, given), helpers.run(fused, given), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def declared(name: str, kind: onnx.TypeProto) -> onnx.ValueInfoProto:
    return helper.make_value_info(name, kind)


def odd_types() -> ModelProto:
    """Strings, a sequence, an optional, a sparse weight and an empty tensor beside a Swish."""
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 8])
    words = helper.make_tensor_type_proto(TensorProto.STRING, [2])
    graph = helper.make_graph(
        [
            make("SequenceConstruct", ["x", "x"], ["pair"]),
            make("Optional", ["x"], ["maybe"]),
            make("OptionalGetElement", ["maybe"], ["surely"]),
            make("Identity", ["words"], ["same"]),
            make("Sigmoid", ["surely"], ["s"]),
            make("Mul", ["surely", "s"], ["swish"]),
            make("Concat", ["swish", "empty"], ["y"], axis=0),
            make("Identity", ["label"], ["told"]),
            make("MatMul", ["y", "thin"], ["z"]),
        ],
        "g",
        [declared("x", tensor), declared("words", words)],
        [
            declared("y", tensor),
            declared("pair", helper.make_sequence_type_proto(tensor)),
            declared("same", words),
            declared("told", words),
            declared("z", helper.make_tensor_type_proto(TensorProto.FLOAT, ["m", 2])),
        ],
        [
            numpy_helper.from_array(np.zeros((0, 8), np.float32), "empty"),
            helper.make_tensor("label", TensorProto.STRING, [2], [b"a", b"\xff"]),
        ],
        sparse_initializer=[
            helper.make_sparse_tensor(
                helper.make_tensor("thin", TensorProto.FLOAT, [1], [2.0]),
                helper.make_tensor("places", TensorProto.INT64, [1], [3]),
                [8, 2],
            )
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_strings_sequences_optionals_sparse_and_empty_tensors(tmp_path: Path) -> None:
    path, out = written(odd_types(), tmp_path / "in"), tmp_path / "out.onnx"
    done = command("fuse", path, "-o", out, "--no-verify", "--enable", "FusedSwish", "--simplify")
    assert done.exit_code == 0, done.stderr
    assert [node.op_type for node in onnx.load(out).graph.node].count("FusedSwish") == 1
    assert command("inspect", out).exit_code == 0
    given = {"x": np.ones((3, 8), np.float32), "words": np.array(["a", "b"], dtype=object)}
    want, got = (helpers.session(onnx.load(item)).run(["y", "same"], given) for item in (path, out))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    assert list(got[1]) == ["a", "b"]


def test_no_nodes_at_all(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    graph = helper.make_graph([], "g", [value], [value])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path, out = written(model, tmp_path / "in"), tmp_path / "out.onnx"
    assert command("fuse", path, "-o", out).exit_code == 0
    assert out.read_bytes() == path.read_bytes()
    assert command("explain", path).exit_code == command("inspect", path).exit_code == 0


def test_a_chain_of_5000_nodes_and_a_nest_of_20_branches(tmp_path: Path) -> None:
    nodes = [make("Abs" if i % 3 else "Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(5000)]
    model = chain(make("Identity", ["x"], ["v0"]), *nodes, make("Identity", ["v5000"], ["y"]))
    takes(model, tmp_path / "chain", 0)
    inner = branch(make("Sigmoid", ["x"], ["s"]), make("Mul", ["x", "s"], ["r0"]), output="r0")
    for depth in range(20):
        node = make(
            "If",
            ["c"],
            [f"r{depth + 1}"],
            then_branch=inner,
            else_branch=branch(make("Relu", ["x"], ["e"]), output="e"),
        )
        inner = branch(node, output=f"r{depth + 1}")
    nest = chain(make("Identity", ["x"], ["y"]))
    del nest.graph.node[:]
    nest.graph.node.extend(inner.node)
    nest.graph.output[0].name = "r20"
    nest.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    path, out = written(nest, tmp_path / "nest"), tmp_path / "out.onnx"
    done = command("fuse", path, "-o", out, "--no-verify", "--enable", "FusedSwish")
    assert done.exit_code in (0, INVALID), done.stderr


def test_an_unknown_domain_is_left_alone(tmp_path: Path) -> None:
    model = edited(lambda graph: node_of(graph, "Softmax").MergeFrom(NodeProto(domain="far")))
    model.opset_import.append(helper.make_opsetid("far", 7))
    path, out = written(model, tmp_path / "in"), tmp_path / "out.onnx"
    assert command("fuse", path, "-o", out, "--no-verify").exit_code == 0
    assert out.read_bytes() == path.read_bytes()


# -- damaged files ---------------------------------------------------------------------------------------------------------


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    data = embedding().SerializeToString()
    lengths = sorted({0, 1, 2, 3, len(data) - 1, *range(5, len(data), len(data) // 60)})
    for length in lengths:
        path = written(data[:length], tmp_path / "in")
        with pytest.raises(ModelError):
            onnx_fuse.fuse(path)
    for length in lengths[:: len(lengths) // 4]:
        refuses(written(data[:length], tmp_path / "in"), tmp_path / "out.onnx")


def test_damaged_bytes(tmp_path: Path) -> None:
    seeds = [build().SerializeToString() for build in (attention_core, embedding, swish_and_gelu)]
    for number in range(150):
        path = written(flip_bytes(seeds[number % len(seeds)], random.Random(number)), tmp_path / "in")
        for action in (onnx_fuse.fuse, onnx_fuse.explain):
            try:
                action(path, **({"verify": False} if action is onnx_fuse.fuse else {}))
            except OnnxFuseError as error:
                assert error.exit_code in (4, INVALID), error


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    data = swish_and_gelu().SerializeToString()
    for name in (b"Mul_swish", b"swish"):
        spoiled = data.replace(name, b"\xff\xfe" + name[2:])
        path, out = written(spoiled, tmp_path / "in"), tmp_path / "out.onnx"
        for arguments in (("fuse", path, "-o", out, "--enable", "FusedSwish"), ("explain", path), ("inspect", path)):
            done = command(*arguments)
            assert done.exit_code in (0, INVALID), done.stderr
            assert "Traceback" not in done.stderr


# -- external data ---------------------------------------------------------------------------------------------------------


def split(folder: Path, **entries: str) -> Path:
    """The attention block with `wq` in a file beside it, whose entry is as told."""
    model = attention_block()
    tensor = weight_of(model.graph, "wq")
    folder.mkdir(exist_ok=True)
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "w.bin"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    return written(model, folder)


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"location": "gone.bin"}, "missing"),
        ({"location": "/etc/passwd"}, "absolute"),
        ({"location": "C:\\w.bin"}, "absolute"),
        ({"location": "../in/w.bin"}, "leads out of"),
        ({"location": ""}, "names no file"),
        ({"location": "."}, "not a regular file"),
        ({"offset": "99999999999"}, "has only"),
        ({"offset": "1"}, "has only"),
        ({"offset": "-1"}, "offset"),
        ({"length": "-4"}, "length"),
        ({"length": "4"}, "but its shape"),
        ({"length": "9" * 19}, "has only"),
        ({"offset": "9" * 40}, "offset"),
        ({"offset": "1e3"}, "offset"),
    ],
)
def test_external_data_that_cannot_be_trusted(entries: dict[str, str], word: str, tmp_path: Path) -> None:
    refuses(split(tmp_path / "in", **entries), tmp_path / "out.onnx", "'wq'", word)


def test_external_data_behind_a_link(tmp_path: Path) -> None:
    path = split(tmp_path / "in")
    secret = tmp_path / "secret.bin"
    (path.parent / "w.bin").rename(secret)
    (path.parent / "w.bin").symlink_to(secret)
    refuses(path, tmp_path / "out.onnx", "link")
    (path.parent / "w.bin").unlink()
    os.mkfifo(path.parent / "w.bin")
    refuses_without_reading(path, tmp_path / "out.onnx")


def refuses_without_reading(path: Path, out: Path) -> None:
    done = command("fuse", path, "-o", out)
    assert done.exit_code == INVALID and "regular file" in said(done)


# -- the process -----------------------------------------------------------------------------------------------------------


def test_the_command_itself(tmp_path: Path) -> None:
    """As a shell runs it: one model for each exit code that a file can cause, and nothing left behind."""
    cut = written(attention_block().SerializeToString()[:700], tmp_path / "cut")
    good = written(attention_block(), tmp_path / "good")
    out = tmp_path / "out.onnx"
    for code, path, target in ((5, cut, out), (6, good, tmp_path / "no" / "out.onnx"), (0, good, out)):
        done = subprocess.run(
            [sys.executable, "-m", "onnx_fuse", "fuse", path, "-o", target],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert target.exists() == (code == 0)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["cut", "good", "out.onnx"]
