"""The same bytes on every run, in every process, whatever the hash seed; and a fused model has nothing left to fuse."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import onnx_fuse
from tests import helpers
from tests.trust import graphs
from tests.trust.graphs import ATTENTION, DECOMPOSED, EMBEDDING, EVERY, GUARD, SKIP, SWISH, build

GRAPHS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": (ATTENTION, {}),
    "attention in heads, masked, decomposed": (
        ATTENTION,
        {
            "inputs": {"qh": "[B,2,S,4]", "m": "bool[S,S]"},
            "query": "",
            "mask": "masked = Where(m, lowest, {})",
            "guard": GUARD,
            "norm": DECOMPOSED,
        },
    ),
    "a core without its norm": (ATTENTION, {"residual": "total = Sub({}, x)"}),
    "embeddings": (EMBEDDING, {}),
    "a skip": (SKIP, {"first": "shifted_x = Add(x, bias)", "sum": "total = Add(shifted_x, skip)"}),
    "swish": (SWISH, {}),
    "nothing": (SWISH, {"gate": "gate = HardSigmoid(x)"}),
}


def layers(count: int) -> ModelProto:
    """Blocks of attention, one after the other, with a swish between: many equal matches, and ties to settle."""
    whole = build(ATTENTION, inputs=dict.fromkeys("qkv", "[B,S,8]"))
    block = build(ATTENTION)
    nodes, weights = [], {tensor.name: tensor for tensor in block.graph.initializer}
    value = "x"
    for number in range(count):
        names = {name: f"layer.{number}/{name}" for node in block.graph.node for name in node.output}
        names |= dict.fromkeys(("q", "k", "v", "x"), value)
        for node in block.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"layer.{number}/{node.name}"
            copy.input[:] = [names.get(name, name) for name in node.input]
            copy.output[:] = [names[name] for name in node.output]
            nodes.append(copy)
        normed, gate, value = names["normed"], f"layer.{number}/gate", f"layer.{number}/swish"
        nodes.append(helper.make_node("Sigmoid", [normed], [gate], name=f"layer.{number}/sigmoid"))
        nodes.append(helper.make_node("Mul", [normed, gate], [value], name=value))
    inputs = [item for item in whole.graph.input if item.name == "x"]
    outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["B", "S", 8])]
    graph = helper.make_graph(nodes, "layers", inputs, outputs, list(weights.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def digest(model: ModelProto, report: onnx_fuse.Report | None = None) -> str:
    """A hash of the model's bytes as they are saved, and of what the report says but for times and versions."""
    told = b""
    if report is not None:
        told = repr([report.matches, report.near_misses, report.warnings, report.equalities]).encode()
    return hashlib.sha256(model.SerializeToString() + told).hexdigest()


def fused_digest(model: ModelProto, **options: Any) -> str:
    result = onnx_fuse.fuse(model, fusions=list(EVERY), verify=False, **options)
    return digest(result.model, result.report)


@pytest.mark.parametrize(("fusion", "steps"), GRAPHS.values(), ids=GRAPHS)
def test_the_same_bytes_twice(fusion: str, steps: dict[str, Any]) -> None:
    model = build(fusion, **steps)
    assert fused_digest(model) == fused_digest(helpers.copied(model))
    assert fused_digest(model, simplify=True) == fused_digest(model, simplify=True)
    assert fused_digest(model, functions="inline") == fused_digest(model, functions="inline")


@pytest.mark.parametrize(("fusion", "steps"), GRAPHS.values(), ids=GRAPHS)
def test_a_fused_model_stays_as_it_is(fusion: str, steps: dict[str, Any]) -> None:
    once = graphs.fused(build(fusion, **steps)).model
    again = graphs.fused(once)
    assert again.report.fused == {}
    assert again.model.SerializeToString() == once.SerializeToString()


def test_a_fused_model_stays_as_it_is_when_layers_follow_each_other() -> None:
    model = layers(4)
    first = graphs.fused(model)
    assert first.report.fused == {ATTENTION: 4, SWISH: 4}
    graphs.assert_equal(model, first.model, graphs.feeds_of(model))
    assert graphs.fused(first.model).model.SerializeToString() == first.model.SerializeToString()


FUSE = """
import sys
import onnx
from tests.trust.test_determinism import fused_digest
print(*(fused_digest(onnx.load(path)) for path in sys.argv[1:]))
"""


def digests(paths: list[Path], seed: str) -> str:
    """What a process of its own, with this hash seed, makes of the models."""
    done = subprocess.run(
        [sys.executable, "-c", FUSE, *map(str, paths)],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    models = {name: build(fusion, **steps) for name, (fusion, steps) in GRAPHS.items()}
    paths = []
    for number, model in enumerate([*models.values(), layers(3)]):
        paths.append(tmp_path / f"{number}.onnx")
        onnx.save(model, paths[-1])
    here = " ".join(fused_digest(onnx.load(path)) for path in paths) + "\n"
    assert [digests(paths, seed) for seed in ("0", "1", "4321")] == [here] * 3


def test_a_file_and_a_model_in_memory_give_the_same(tmp_path: Path) -> None:
    model = layers(2)
    onnx.save(model, tmp_path / "in.onnx")
    loaded = onnx_fuse.fuse(tmp_path / "in.onnx", fusions=list(EVERY), verify=False)
    loaded.save(tmp_path / "out.onnx")
    assert digest(onnx.load(tmp_path / "out.onnx")) == digest(graphs.fused(model).model)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
@pytest.mark.parametrize("name", ["bert-script17-sdpa-dynamic", "gpt2-dynamo18-sdpa-dynamic"])
def test_exports_come_out_the_same_and_stay_so(name: str, tmp_path: Path) -> None:
    from tests.models import exports

    path = exports.cached(next(cell for cell in exports.matrix() if cell.name == name))
    digest_here = fused_digest(onnx.load(path))
    assert digests([path], "7") == digest_here + "\n"
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    first = onnx_fuse.fuse(path, fusions=list(EVERY), verify=False)
    assert first.report.fused.get(ATTENTION, 0) > 0
    first.save(once)
    again = onnx_fuse.fuse(once, fusions=list(EVERY), verify=False)
    assert again.report.fused == {}
    again.save(twice)
    assert once.read_bytes() == twice.read_bytes()
