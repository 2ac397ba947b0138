"""A fused model with all bodies written out and all sizes known: what its values and nodes will be in an engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from onnx import ModelProto, NodeProto, TensorProto, helper

from onnx_fuse.passes.graph import inlining
from onnx_fuse.passes.graph.dims import Product
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.onnx_inference import inferred_types
from onnx_fuse.passes.select import cost_model
from onnx_fuse.passes.select.plugin_facts import Tensor
from onnx_fuse.passes.select.sizes import LENGTH
from onnx_fuse.passes.view.view import View

Alternative = Literal["original", "body"]

PRECISIONS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
"""Types that a model may be converted to, by name."""

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

_FLOATS = (TensorProto.FLOAT, *HALF)
_BYTES: dict[int, int] = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2, TensorProto.DOUBLE: 8}


class OpenedModel:
    """The fused model with all bodies written out, and which of its nodes came from which fused node.

    Args:
        model: a fused model with the bodies in it and sizes in its inputs; nodes without a name are given one.
        precision: a name in `PRECISIONS` where the model will be converted to it; None: as it is.
        alternative: what TensorRT gets instead of a plugin.

    Attributes:
        fused: the fused nodes.
        unknown: dimensions that depend on data and whose size was assumed.
    """

    def __init__(self, model: ModelProto, precision: str | None, alternative: Alternative) -> None:
        for item in model.graph.node:
            item.name = item.name or next(iter(item.output), "")
        bodies = {(item.domain, item.name) for item in model.functions}
        calls = {
            item.name: item
            for item in model.graph.node
            if (item.domain, item.op_type) in bodies and any(a.name == "plugin_namespace" for a in item.attribute)
        }
        opened = inlining.inline_nodes(model, lambda call: call.name in calls)
        self.graph = Graph(opened.graph, opened)
        self.view = View(self.graph, inferred_types(self.graph))
        self.unknown: set[str] = set()
        self._precision = None if precision is None else PRECISIONS[precision]
        self._alternative = alternative
        self._owner: dict[int, str] = {}
        self.fused = list(calls.values())
        self._calls = calls
        self._results = {value: name for name, call in calls.items() for value in call.output}
        self._bodies: dict[str, list[Node]] = {name: [] for name in calls}
        for node in self.graph.nodes:
            owner = _owner(node.label, calls)
            if owner is not None:
                self._owner[node.position] = owner
                self._bodies[owner].append(node)

    def call(self, name: str) -> NodeProto:
        """The fused node of this name."""
        return self._calls[name]

    def body(self, name: str) -> list[Node]:
        """The nodes of its body."""
        return self._bodies[name]

    def is_in_body(self, node: Node) -> bool:
        """Whether a node came from a fused node."""
        return node.position in self._owner

    def makers(self, value: str) -> list[Node]:
        """The node that makes a value, if any."""
        node = self.graph.producers.get(value)
        return [] if node is None else [node]

    def readers(self, value: str) -> Sequence[Node]:
        """The nodes that read a value."""
        return self.graph.readers.get(value, ())

    def shape(self, value: str) -> tuple[int, ...]:
        """Sizes of a value; what depends on data is assumed."""
        return tuple(dim if isinstance(dim, int) else self._assumed(dim) for dim in self.view.shape(value) or ())

    def _assumed(self, dim: Product) -> int:
        self.unknown.update(dim.symbols)
        return dim.factor * LENGTH ** len(dim.symbols)

    def dtype(self, value: str) -> int:
        """Element type of a value as it will be: converted, and in a body narrowed to what the original nodes compute in."""
        dtype = self.view.dtype(value)
        if self._precision is not None and dtype in _FLOATS:
            dtype = self._precision
        producer = self.graph.producers.get(value)
        owner = None if producer is None else self._owner.get(producer.position)
        if owner is None or dtype not in _FLOATS or value in self._results:
            return dtype
        return TensorProto.FLOAT if self._alternative == "body" else self.operator_type(owner)

    def operator_type(self, name: str) -> int:
        """The type T of a fused node: that of its first output."""
        dtype = self.view.dtype(self._calls[name].output[0])
        return self._precision if self._precision is not None and dtype in _FLOATS else dtype

    def precision(self) -> str:
        """The type that most fused nodes have."""
        types = [self.view.dtype(node.output[0]) for node in self.fused]
        names: dict[int, str] = {number: name for name, number in PRECISIONS.items()}
        return names.get(max(set(types), key=types.count), "float32") if types else "float32"

    def size(self, value: str) -> int:
        """Bytes of a value."""
        dtype = self.dtype(value)
        width = _BYTES.get(dtype) or (helper.tensor_dtype_to_np_dtype(dtype).itemsize if dtype else 4)
        return int(width) * math.prod(self.shape(value))

    def tensor(self, value: str) -> Tensor:
        """What a plugin sees of a value."""
        return Tensor(self.shape(value), self.dtype(value), self.source(value))

    def source(self, value: str) -> str:
        """The value whose bytes these are: what only looks at them in another shape is passed over."""
        while (node := self.graph.producers.get(value)) is not None and self.is_free(node) and node.inputs:
            value = node.inputs[0]
        return value

    def is_free(self, node: Node) -> bool:
        """Whether a node needs no kernel: a reshape, or sizes and constants that are known beforehand."""
        if node.domain == "" and node.op_type in cost_model.FREE:
            return True
        if self._is_weight(node):
            return True
        if node.op_type in ("Cast", "CastLike") and self.dtype(node.inputs[0]) == self.dtype(node.outputs[0]):
            return True
        outputs = [output for output in node.outputs if output]
        contents = [self.view.info(output).content for output in outputs]
        if contents and all(content is not None and None not in content for content in contents):
            return True
        return bool(outputs) and all(self.view.is_constant(output) for output in outputs)

    def _is_weight(self, node: Node) -> bool:
        """Whether a node reads nothing but weights, and is computed when the engine is built."""
        return bool(node.inputs) and all(
            not value or self.graph.tensor(value) is not None or self._made_of_weights(value) for value in node.inputs
        )

    def _made_of_weights(self, value: str) -> bool:
        maker = self.graph.producers.get(value)
        return maker is not None and (
            maker.op_type == "Constant" or (len(maker.inputs) <= 2 and self._is_weight(maker))
        )


def _owner(name: str, calls: Mapping[str, Any]) -> str | None:
    """The fused node from whose body a node of this name came: the longest of their names that it begins with."""
    end = name.rfind("/")
    while end > 0:
        if name[:end] in calls:
            return name[:end]
        end = name.rfind("/", 0, end)
    return None
