"""What is known of plugins is what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from onnx import helper

from onnx_fuse.passes.select.cost_model import Device
from onnx_fuse.passes.select.plugin_facts import plugin_facts

SLOW = Device("slow", 80, 10, bandwidth=1e9, float32=1e9, tf32=1e10, half=1e11)


def facts_of(operator: str, attributes: Mapping[str, Any], **inputs: Sequence[int]) -> Any:
    node = helper.make_node(operator, list(inputs), ["y"], domain="gr.ml.infra", **attributes)
    node.attribute.append(helper.make_attribute("inputs", ",".join(inputs)))
    return plugin_facts(node, lambda name: tuple(inputs[name]), True, SLOW)


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


def test_launches_are_those_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each of the cases that the plugins' C++ is tested with, as many kernels as their `launch` starts."""
    pytest.importorskip("triton")
    torch = pytest.importorskip("torch")
    from tests.plugin_csrc.built import launched
    from tests.plugin_csrc.test_launches import CASES, MULTIPROCESSORS

    device = Device("recording", 80, MULTIPROCESSORS, 1e12, 1e12, 1e12, 1e12)
    for case in CASES:
        launches, _ = launched(monkeypatch, case.launch)
        if not launches:
            continue  # a tensor without elements
        names = {"inputs": ",".join(case.inputs), "outputs": ",".join(case.outputs)}
        node = helper.make_node(case.name, list(case.inputs), list(case.outputs), domain="gr.ml.infra")
        for key, value in {**case.attributes, **names}.items():
            node.attribute.append(helper.make_attribute(key, value))
        shapes = {name: tuple(item.shape) for name, item in case.inputs.items()}
        half = next(iter(case.inputs.values())).dtype in (torch.float16, torch.bfloat16)
        if case.name == "FusedEmbedLayerNorm":
            half = case.inputs["table_1"].dtype != torch.float32
        facts = plugin_facts(node, shapes.__getitem__, half, device)
        assert facts is not None and facts.refusal is None and facts.launches == len(launches), (
            f"{case.name} of {shapes}"
        )
