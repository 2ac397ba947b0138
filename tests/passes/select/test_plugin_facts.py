"""What is known of plugins is what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from onnx import NodeProto, TensorProto, helper

from onnx_fuse.passes.select import kernel_table
from onnx_fuse.passes.select.cost_model import Device
from onnx_fuse.passes.select.plugin_facts import PluginFacts, Tensor, plugin_facts

SLOW = Device("slow", 80, 10, bandwidth=1e9, float32=1e9, tf32=1e10, half=1e11)
TYPES = {
    "torch.float32": TensorProto.FLOAT,
    "torch.float16": TensorProto.FLOAT16,
    "torch.bfloat16": TensorProto.BFLOAT16,
    "torch.bool": TensorProto.BOOL,
    "torch.int32": TensorProto.INT32,
    "torch.int64": TensorProto.INT64,
}


def node_of(operator: str, attributes: Mapping[str, Any], inputs: Sequence[str], outputs: Sequence[str]) -> NodeProto:
    node = helper.make_node(operator, inputs, outputs, domain="gr.ml.infra")
    for key, value in {**attributes, "inputs": ",".join(inputs), "outputs": ",".join(outputs)}.items():
        node.attribute.append(helper.make_attribute(key, value))
    return node


def facts_of(operator: str, attributes: Mapping[str, Any], **inputs: Sequence[int]) -> Any:
    node = node_of(operator, attributes, list(inputs), ["output"])
    shapes = {**inputs, "output": (2, 8)}

    def tensor(name: str) -> Tensor:
        return Tensor(tuple(shapes[name]), TensorProto.FLOAT16, name)

    return plugin_facts(node, tensor, SLOW, kernel_table.kernels(80))


def test_what_plugins_refuse() -> None:
    """The limits of docs/plugins.md: building an engine would fail there."""
    tables = {f"table_{number}": (10, 8) for number in range(1, 10)}
    assert "9 tables" in facts_of("FusedEmbedLayerNorm", {}, **tables).refusal
    levels = {"x": (2, 3, 8), "level_embeddings": (129, 8)}
    assert "129 levels" in facts_of("HierarchicalSequenceFusion", {"windows": [1]}, **levels).refusal
    windows = {"x": (2, 3, 8), "level_embeddings": (4, 8)}
    assert "5 windows" in facts_of("HierarchicalSequenceFusion", {"windows": [1, 3, 5, 7, 9]}, **windows).refusal
    assert "65 features" in facts_of("InteractionTritonFast", {}, E=(2, 65, 8)).refusal
    wide = {"q": (2, 3, 1024), "k": (2, 3, 1024), "v": (2, 3, 1024)}
    assert "heads of 512" in facts_of("HSTUHierarchicalAttention", {"num_heads": 2, "norm": "none"}, **wide).refusal


@pytest.mark.parametrize("architecture", [80, 90])
def test_launches_are_those_of_the_kernels(monkeypatch: pytest.MonkeyPatch, architecture: int) -> None:
    """For each of the cases that the plugins' C++ is tested with, the variants and grids that their `launch` starts."""
    pytest.importorskip("triton")
    pytest.importorskip("torch")
    from tests.plugin_csrc import test_launches as cases
    from tests.plugin_csrc.built import launched

    device = Device("recording", architecture, cases.MULTIPROCESSORS, 1e12, 1e12, 1e12, 1e12)
    for case in cases.CASES if architecture == 80 else cases.LARGE_CASES:
        launches, made = launched(monkeypatch, case.launch)
        outputs = [item for item in (made if isinstance(made, tuple) else (made,)) if item is not None]
        tensors = {**case.inputs, **dict(zip(case.outputs, outputs, strict=True))}

        def tensor(name: str, tensors: Mapping[str, Any] = tensors) -> Tensor:
            return Tensor(tuple(tensors[name].shape), TYPES[str(tensors[name].dtype)], name)

        node = node_of(case.name, case.attributes, list(case.inputs), list(case.outputs))
        facts = plugin_facts(node, tensor, device, kernel_table.kernels(architecture))
        assert isinstance(facts, PluginFacts) and facts.refusal is None
        shapes = {name: tuple(item.shape) for name, item in tensors.items()}
        found = [(item.kernel.name, item.programs) for item in facts.launches]
        assert found == [(item.kernel, item.programs) for item in launches], f"{case.name} of {shapes}"
        if facts.launches:
            least = sum(item.numel() * item.element_size() for name, item in tensors.items() if "table" not in name)
            assert sum(item.bytes for item in facts.launches) >= least, f"{case.name} of {shapes}"
