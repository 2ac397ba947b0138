"""Every operator's body in ONNX Runtime at the smallest sizes: no batch, no position, one position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper

import onnx_fuse
from onnx_fuse.patterns.language.operator import DOMAIN, FusedOp

OPERATORS: dict[str, FusedOp] = {fusion.operator.name: fusion.operator for fusion in onnx_fuse.fusions()}
SIZES = ({"B": 0, "S": 4}, {"B": 0, "S": 1}, {"B": 1, "S": 1}, {"B": 3, "S": 1}, {"B": 2, "S": 4})
NO_POSITIONS = ({"B": 2, "S": 0}, {"B": 0, "S": 0})
KINDS = {"float": np.float32, "half": np.float16, "int": np.int64, "bool": np.bool_}


@dataclass(frozen=True)
class Case:
    """A node: name of each input and output -> element type and dimensions, in which B and S are open."""

    operator: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    attributes: dict[str, Any] = field(default_factory=dict)
    needs_positions: bool = False  # docs/operators.md says so

    def __str__(self) -> str:
        told = [str(value) for value in self.attributes.values() if isinstance(value, str)]
        return "-".join([self.operator, *self.inputs, *told])


ATTENTION: dict[str, Any] = {
    "num_heads": 2, "num_key_value_heads": 2, "scale": 0.5, "mask_value": -np.inf, "causal": "none", "masked_row": "nan",
    "norm": "none", "epsilon": 1e-5, "layout": "BSH",
}  # fmt: skip
HSTU: dict[str, Any] = {
    "num_heads": 2, "alpha": 0.5, "bias_order": "outside_alpha", "norm_length": 0.0, "causal": 0, "norm": "none",
    "gate_activation": "none", "epsilon": 1e-5, "mode": "silu", "num_levels": 1, "decay": 0.9,
}  # fmt: skip
LEVELS: dict[str, Any] = {"temperature": 0.7, "windows": [1], "window_weights": [0.0], "pad": "truncate"}
SEQUENCE: dict[str, Any] = {"short_window": 3, "decay": 0.1, "normalize": 0}
DOT: dict[str, Any] = {"triangle": "lower", "self_interaction": 0, "concat_dense": "none"}
NORM: dict[str, Any] = {"norm": "layer", "epsilon": 1e-5}

QKV = {"query": "float B S 8", "key": "float B S 8", "value": "float B S 12"}
HEADS = {"query": "float B 2 S 4", "key": "float B 1 S 4", "value": "float B 1 S 6"}
RIM = {"out_weight": "float 12 16", "out_bias": "float 16", "residual": "float B S 16"}
AFFINE = {"gamma": "float 16", "beta": "float 16"}
UVQK = {"q": "float B S 8", "k": "float B S 8", "v": "float B S 12"}
ITEMS = {"items": "float B S 8", "user": "float B 8", "time_weights": "float B S", "mask": "bool B S"}
FOUR = {"scores": "float B S", "short_term": "float B 8", "long_term": "float B 8", "cooccurrence": "float B S S"}
LOOK_UPS = {"ids_1": "int B S", "table_1": "float 5 16", "ids_2": "int 1 S", "table_2": "float 5 16"}

CASES = [
    Case("FusedAttentionLayerNorm", QKV, {"output": "float B S 12"}, ATTENTION),
    Case("FusedAttentionLayerNorm", QKV, {"output": "float B S 12"}, {**ATTENTION, "causal": "upper_left"}),
    Case(
        "FusedAttentionLayerNorm",
        {**QKV, "mask": "bool B 1 S S", **RIM, **AFFINE},
        {"output": "float B S 16", "residual_sum": "float B S 16"},
        {**ATTENTION, "causal": "lower_right", "masked_row": "zero", "norm": "layer"},
    ),
    Case(
        "FusedAttentionLayerNorm",
        {**HEADS, "attention_bias": "float 1 2 S S", "mask": "bool B 1 1 S"},
        {"output": "float B S 12"},
        {**ATTENTION, "num_key_value_heads": 1, "mask_value": -1e4, "masked_row": "uniform", "layout": "BHSD"},
        needs_positions=True,
    ),
    Case("FusedEmbedLayerNorm", {**LOOK_UPS, **AFFINE}, {"output": "float B S 16", "embedding_sum": "float B S 16"},
         {"num_tables": 2, **NORM}),
    Case("FusedEmbedLayerNorm", {"ids_1": "int B S", "table_1": "float 5 16"}, {"output": "float B S 16"},
         {"num_tables": 1, "norm": "rms", "epsilon": 1e-5}),
    Case("HSTUHierarchicalAttention", UVQK, {"y": "float B S 12"}, HSTU),
    Case(
        "HSTUHierarchicalAttention",
        {**UVQK, "bias": "float 1 1 S S", "mask": "float B 1 S S", "lengths": "int B", "u": "float B S 12",
         "gamma": "float 12", "beta": "float 12"},
        {"y": "float B S 12"},
        {**HSTU, "bias_order": "inside_alpha", "causal": 1, "norm": "layer", "gate_activation": "silu", "norm_length": 9.0},
    ),
    Case(
        "HSTUHierarchicalAttention",
        {**UVQK, "scale": "float B 1 S 1", "u": "float B S 12", "gamma": "float 2", "beta": "float 2"},
        {"y": "float B S 12"},
        {**HSTU, "norm": "group", "gate_activation": "sigmoid"},
    ),
    Case("HSTUHierarchicalAttention", UVQK, {"y": "float B S 12"}, {**HSTU, "mode": "level_softmax", "num_levels": 3}),
    Case("HSTUHierarchicalAttention", {**UVQK, "mask": "bool B 1 S S"}, {"y": "float B S 12"},
         {**HSTU, "mode": "level_softmax", "num_levels": 3}),
    Case("HierarchicalSequenceFusion", {"x": "float B S 8", "level_embeddings": "float 3 8", "level_mask": "bool B S 3"},
         {"y": "float B S 8", "level_weights": "float B S 3"}, LEVELS),
    *(
        Case("HierarchicalSequenceFusion", {"x": "float B S 8", "level_embeddings": "float 3 8"}, {"y": "float B S 8"},
             {**LEVELS, "windows": [3, 5], "window_weights": [0.25, 0.5], "pad": pad},
             needs_positions=True)
        for pad in ("truncate", "zero")
    ),
    Case("InteractionTritonFast", {"E": "float B 4 8"}, {"output": "float B 6"}, DOT),
    Case("InteractionTritonFast", {"dense": "float B 8", "sparse": "float B 3 8"}, {"output": "float B 18"},
         {"triangle": "upper", "self_interaction": 1, "concat_dense": "first"}),
    Case("InteractionTritonFast", {f"feature_{number}": "float B 8" for number in (1, 2, 3, 4)}, {"output": "float B 14"},
         {**DOT, "concat_dense": "last"}),
    Case("SequenceRecommendationInteraction", ITEMS, FOUR, SEQUENCE),
    Case("SequenceRecommendationInteraction", {"items": "float B S 8"}, {"short_term": "float B 8", "long_term": "float B 8"},
         {**SEQUENCE, "normalize": 1}),
    Case("FMInteraction", {"E": "float B 4 8"}, {"output": "float B 8"}, {"reduce": 0}),
    Case("FMInteraction", {"E": "float B 4 8"}, {"output": "float B 1"}, {"reduce": 1}),
    Case("FusedLinearLayerNorm", {"x": "float B S 8", "weight": "float 8 16", "bias": "float 16", **AFFINE},
         {"output": "float B S 16"}, NORM),
    Case("FusedSkipLayerNorm", {"x": "float B S 16", "skip": "float B S 16", "bias": "float 16", **AFFINE},
         {"output": "float B S 16", "residual_sum": "float B S 16"}, NORM),
    Case("FusedSkipLayerNorm", {"x": "float B S 16", "skip": "float B S 16"}, {"output": "float B S 16"},
         {"norm": "rms", "epsilon": 1e-5}),
    Case("FusedSwish", {"x": "float B S 8"}, {"output": "float B S 8"}, {"beta": 1.5}),
]  # fmt: skip


def declared(tensors: dict[str, str]) -> list[Any]:
    """Inputs or outputs of a graph; B and S are dimensions of that name."""
    found = []
    for name, (kind, *dims) in ((name, told.split()) for name, told in tensors.items()):
        sizes = [dim if dim.isalpha() else int(dim) for dim in dims]
        found.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(KINDS[kind])), sizes))
    return found


def node_and_body(case: Case, opset: int) -> ModelProto:
    """A model of one node that calls the body."""
    operator, inputs = OPERATORS[case.operator], {name: name for name in case.inputs}
    node = operator.make_node(inputs, {name: name for name in case.outputs}, case.attributes, "fused")
    function = operator.make_function(
        operator.present(inputs), list(case.outputs), case.attributes, {"": opset}, TensorProto.FLOAT
    )
    graph = helper.make_graph([node], "main", declared(case.inputs), declared(case.outputs))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)


def shape(told: str, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim] if dim in sizes else int(dim) for dim in told.split()[1:])


def drawn(told: str, sizes: dict[str, int]) -> np.ndarray:
    """Numbers, or ones: every mask keeps everything, every list has one entry, every id is in its table."""
    kind = KINDS[told.split()[0]]
    if kind in (np.bool_, np.int64):
        return np.ones(shape(told, sizes), kind)
    return np.random.default_rng(0).standard_normal(shape(told, sizes)).astype(kind)


@pytest.mark.parametrize("opset", [13, 18, 23])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smallest_sizes(case: Case, opset: int) -> None:
    """As users run it, optimised by ONNX Runtime: one session for all sizes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    model = node_and_body(case, opset).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for sizes in (*SIZES, *(() if case.needs_positions else NO_POSITIONS)):
        found = session.run(list(case.outputs), {name: drawn(told, sizes) for name, told in case.inputs.items()})
        for array, told in zip(found, case.outputs.values(), strict=True):
            assert array.shape == shape(told, sizes) and np.isfinite(array).all(), (sizes, told)


def test_every_operator_has_a_case() -> None:
    assert {case.operator for case in CASES} == set(OPERATORS)
    assert {name for case in CASES for name in case.attributes} == {
        name for operator in OPERATORS.values() for name in operator.attributes
    }
    named = {(case.operator, name.rstrip("0123456789")) for case in CASES for name in (*case.inputs, *case.outputs)}
    assert named == {
        (operator.name, name.removesuffix("*"))
        for operator in OPERATORS.values()
        for name in (*operator.inputs, *operator.outputs)
    }
