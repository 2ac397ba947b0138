"""What the cost model has to know of the plugins: how many kernels each launches, what these pass on, and what they refuse.

It repeats what plugin_csrc/operators/<operator> does; tests hold the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto, helper

from onnx_fuse.passes.select.cost_model import Device
from onnx_fuse.patterns.language.operator import DOMAIN

_LARGEST_HEAD, _MOST_FEATURES, _MOST_TABLES, _MOST_LEVELS, _MOST_WINDOWS = 256, 64, 8, 128, 4
_NARROW, _WIDE = 128, 512  # columns of a row that kernels with a norm hold

Shape = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True)
class PluginFacts:
    """How a plugin runs a node.

    Attributes:
        launches: its kernels.
        scratch: bytes that they pass to each other through memory.
        tables: inputs of which only some rows are read.
        refusal: why it has no kernel for the node; None where it has.
    """

    launches: int = 1
    scratch: int = 0
    tables: tuple[str, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True)
class _Call:
    """A fused node: its attributes, and its inputs by the operator's names, with their shapes; whether it is of 16-bit types."""

    attributes: Mapping[str, Any]
    inputs: Mapping[str, str]
    shapes: Mapping[str, Sequence[int]]
    half: bool
    device: Device


def plugin_facts(node: NodeProto, shape: Shape, half: bool, device: Device) -> PluginFacts | None:
    """What is known of the plugin of a fused node; None for an operator that is not ours."""
    facts = _FACTS.get(node.op_type) if node.domain == DOMAIN else None
    if facts is None:
        return None
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    names = attributes.get("inputs", b"").decode().split(",")
    inputs = dict(zip(names, node.input, strict=False))
    shapes = {name: shape(value) for name, value in inputs.items() if value}
    return facts(_Call(attributes, inputs, shapes, half, device))


def _attention(call: _Call) -> PluginFacts:
    query, value = call.shapes["query"], call.shapes["value"]
    heads = call.attributes["num_heads"]
    split = call.attributes["layout"] == b"BHSD"
    size = query[-1] if split else query[-1] // heads
    value_size = value[-1] if split else value[-1] // call.attributes["num_key_value_heads"]
    if max(size, value_size) > _LARGEST_HEAD:
        return PluginFacts(refusal=f"heads of {max(size, value_size)} are above {_LARGEST_HEAD}")
    batch, queries = query[0], query[-2]
    has_norm = call.attributes["norm"] != b"none"
    context = (2 if call.half else 4) * batch * queries * heads * value_size
    if "out_weight" not in call.shapes:
        has_rim = has_norm or "residual" in call.shapes or "out_bias" in call.shapes
        return PluginFacts(2, 2 * context if call.half else context) if has_rim else PluginFacts()
    width = call.shapes["out_weight"][1]
    aligned = size % 16 == 0 and value_size % 16 == 0 and width % 16 == 0
    keys = call.shapes["key"][-2]
    dense = all(call.shapes[name][-1] == keys for name in ("attention_bias", "mask") if name in call.shapes)
    projected = call.half and aligned and dense and max(size, value_size) <= 64 and width <= _NARROW
    if projected and batch * math.ceil(queries / 64) >= call.device.multiprocessors:
        return PluginFacts()
    linear = _linear_launches(heads * value_size, width, has_norm)
    total = 4 * batch * queries * width if linear == 2 else 0
    return PluginFacts(1 + linear, context + total)


def _linear_launches(inner: int, width: int, has_norm: bool) -> int:
    held = _WIDE if inner % 16 == 0 and width % 16 == 0 else _NARROW
    return 2 if has_norm and width > held else 1


def _linear(call: _Call) -> PluginFacts:
    inner, width = call.shapes["weight"][0], call.shapes["weight"][1]
    launches = _linear_launches(inner, width, call.attributes["norm"] != b"none")
    return PluginFacts(launches, 4 * math.prod(call.shapes["x"][:-1]) * width if launches == 2 else 0)


def _hstu(call: _Call) -> PluginFacts:
    heads = call.attributes["num_heads"]
    largest = max(call.shapes["q"][-1], call.shapes["v"][-1]) // heads
    if largest > _LARGEST_HEAD:
        return PluginFacts(refusal=f"heads of {largest} are above {_LARGEST_HEAD}")
    if call.attributes["norm"] == b"layer" and heads > 1:
        return PluginFacts(2, 4 * math.prod(call.shapes["v"]))
    return PluginFacts()


def _embeddings(call: _Call) -> PluginFacts:
    tables = tuple(value for name, value in call.inputs.items() if name.startswith("table_"))
    refusal = f"{len(tables)} tables are more than {_MOST_TABLES}" if len(tables) > _MOST_TABLES else None
    return PluginFacts(tables=tables, refusal=refusal)


def _levels(call: _Call) -> PluginFacts:
    levels, windows = call.shapes["level_embeddings"][0], len(call.attributes.get("windows", ()))
    if levels > _MOST_LEVELS:
        return PluginFacts(refusal=f"{levels} levels are more than {_MOST_LEVELS}")
    if windows > _MOST_WINDOWS:
        return PluginFacts(refusal=f"{windows} windows are more than {_MOST_WINDOWS}")
    return PluginFacts()


def _features(call: _Call) -> PluginFacts:
    parts = [call.shapes[name][1] if len(call.shapes[name]) == 3 else 1 for name in call.shapes]
    if sum(parts) > _MOST_FEATURES:
        return PluginFacts(refusal=f"{sum(parts)} features are more than {_MOST_FEATURES}")
    return PluginFacts()


def _interests(call: _Call) -> PluginFacts:
    outputs = call.attributes.get("outputs", b"").decode().split(",")
    return PluginFacts(("cooccurrence" in outputs) + (outputs != ["cooccurrence"]))


def _one_kernel(call: _Call) -> PluginFacts:
    return PluginFacts()


_FACTS = {
    "FusedSwish": _one_kernel,
    "FusedSkipLayerNorm": _one_kernel,
    "FMInteraction": _one_kernel,
    "FusedAttentionLayerNorm": _attention,
    "FusedLinearLayerNorm": _linear,
    "HSTUHierarchicalAttention": _hstu,
    "FusedEmbedLayerNorm": _embeddings,
    "HierarchicalSequenceFusion": _levels,
    "InteractionTritonFast": _features,
    "SequenceRecommendationInteraction": _interests,
}
