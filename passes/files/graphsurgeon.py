"""The border to onnx-graphsurgeon: its graphs come in and go out without losing what it does not know.

graphsurgeon drops the `overload` of nodes and functions and then exports an invalid model; models with overloads have those
bodies inlined before they go there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard

from onnx import ModelProto, helper

from onnx_fuse.passes.graph.inlining import inline_bodies

_FUNCTION_IR = 8


class SurgeonGraph(Protocol):
    """An `onnx_graphsurgeon.Graph`, of a package that has no types."""

    nodes: Sequence[Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    opset: int
    ir_version: int | None


def is_surgeon_graph(item: object) -> TypeGuard[SurgeonGraph]:
    """Whether an object is an onnx_graphsurgeon.Graph, without importing graphsurgeon to find out."""
    return any(
        kind.__module__.startswith("onnx_graphsurgeon") and kind.__name__ == "Graph" for kind in type(item).__mro__
    )


def to_surgeon(model: ModelProto) -> SurgeonGraph:
    """The model as an onnx_graphsurgeon.Graph."""
    import onnx_graphsurgeon as gs

    overloaded = {(item.domain, item.name) for item in model.functions if item.overload}
    return gs.import_onnx(inline_bodies(model, overloaded))


def from_surgeon(graph: SurgeonGraph, like: ModelProto | None = None) -> ModelProto:
    """The onnx_graphsurgeon.Graph as a model; what graphsurgeon does not carry (metadata of the model) comes from `like`."""
    import onnx_graphsurgeon as gs

    model: ModelProto = gs.export_onnx(graph)
    if graph.ir_version is None:
        # graphsurgeon writes the newest there is, which ONNX Runtime may not know yet.
        model.ir_version = max(helper.find_min_ir_version_for(model.opset_import, True), _FUNCTION_IR)
    if like is not None:
        model.ir_version = max(model.ir_version, like.ir_version)
        if not model.metadata_props:
            model.metadata_props.extend(like.metadata_props)
    return model
