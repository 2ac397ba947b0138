"""Constants that are computed: what follows from stored constants and known sizes alone, as an array.

This is the one place that says which operators are folded, how far, and by what. Whatever cannot be folded stays a node of the
graph: nothing depends on folding but convenience.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from onnx_fuse.passes.graph.constants import CONSTANT_LIMIT
from onnx_fuse.passes.graph.node import MadeNode, Node
from onnx_fuse.passes.graph.shapes.inference import Info
from onnx_fuse.passes.view.overlay import Overlay
from onnx_fuse.passes.view.stored_constants import StoredConstants

_NOT_FOLDED = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Optional",
}
_DEEPEST = 400
"""Most nodes on a way from a stored constant to a folded value."""


class Folding:
    """The constants of a view, stored or computed.

    Args:
        overlay: the view's structure.
        stored: its stored constants.
        info: value -> what is known of its type, shape and content.
    """

    def __init__(self, overlay: Overlay, stored: StoredConstants, info: Callable[[str], Info]) -> None:
        self._overlay = overlay
        self._stored = stored
        self._info = info
        self._folded: dict[str, np.ndarray | None] = {}
        self._scalars: dict[str, float | None] = {}
        self._candidates: set[str] | None = None

    def constant(self, value: str, limit: int = CONSTANT_LIMIT) -> np.ndarray | None:
        """The value as an array if it is a constant, or is computed from constants and known sizes alone.

        None where it is not, is larger than `limit` elements, or lies in external data and is not small.
        """
        return self._fold(self._overlay.resolve(value), limit, 0)

    def scalar(self, value: str) -> float | None:
        """The number in a constant with one element, or None."""
        value = self._overlay.resolve(value)
        if not value or not self._may_be_constant(value):
            return None
        if value not in self._scalars:
            self._scalars[value] = self._scalar(value)
        return self._scalars[value]

    def is_constant(self, value: str) -> bool:
        """Whether the value is stored, of whatever size and wherever it lies, or can be computed from what is."""
        value = self._overlay.resolve(value)
        return self._stored.has(value) or self.constant(value) is not None

    def notice(self, node: MadeNode) -> None:
        """Says that a view-only node makes its output from now on."""
        if self._candidates is not None and all(self._may_be_constant(item) for item in node.inputs if item):
            self._candidates.add(node.outputs[0])

    def evaluate(self, node: Node, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a node makes of these arrays; nothing where onnx's evaluator cannot tell."""
        from onnx.reference import ReferenceEvaluator

        graph = helper.make_graph(
            [node.proto],
            "fold",
            [helper.make_tensor_value_info(name, _dtype_of(array), array.shape) for name, array in feeds.items()],
            [onnx.ValueInfoProto(name=name) for name in node.outputs if name],
        )
        opset = self._overlay.graph.opset() or onnx.defs.onnx_opset_version()
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        try:
            results = ReferenceEvaluator(model).run(None, feeds)
        except Exception:
            # Whatever the evaluator cannot do stays in the graph: folding is only ever a convenience.
            return {}
        names = [name for name in node.outputs if name]
        return {name: np.asarray(array) for name, array in zip(names, results, strict=False)}

    def _scalar(self, value: str) -> float | None:
        tensor = self._overlay.graph.tensor(value)
        if tensor is not None and any(dim != 1 for dim in tensor.dims):
            return None
        array = self.constant(value)
        if array is None or array.size != 1 or array.dtype.kind not in "fiubV":  # V: bfloat16
            return None
        return float(array.reshape(-1)[0])

    def _may_be_constant(self, value: str) -> bool:
        """A look that costs nothing: whether a value is stored, or made of what may be constant or of sizes."""
        graph = self._overlay.graph
        if self._candidates is None:
            self._candidates = set(graph.initializers)
            for node in graph.nodes:
                if node.op_type in ("Shape", "Size", "Constant") or all(
                    not item or item in self._candidates for item in node.inputs
                ):
                    self._candidates.update(node.outputs)
        if value in self._candidates:
            return True
        return value not in graph.producers and self._stored.has(value)

    def _fold(self, value: str, limit: int, depth: int) -> np.ndarray | None:
        own = self._overlay.array_of(value)
        if own is not None:
            return own
        if value in self._folded:
            found = self._folded[value]
            return found if found is None or found.size <= limit else None
        result = self._compute(value, limit, depth)
        if result is not None or limit >= CONSTANT_LIMIT:
            self._folded[value] = result
        return result

    def _compute(self, value: str, limit: int, depth: int) -> np.ndarray | None:
        tensor = self._overlay.graph.tensor(value)
        if tensor is not None:
            return self._stored.decoded(tensor, limit)
        node = self._overlay.producer(value)
        if node is None or node.key == ("", "Constant"):
            return None
        if not self._may_be_constant(value) or depth > _DEEPEST:
            return None
        info = self._info(value)
        if info.content is not None and info.shape is not None and all(isinstance(item, int) for item in info.content):
            dtype = helper.tensor_dtype_to_np_dtype(info.dtype) if info.dtype else np.dtype(np.int64)
            return np.array(info.content, dtype=dtype).reshape([int(str(dim)) for dim in info.shape])
        if node.domain != "" or node.op_type in _NOT_FOLDED or any(item.HasField("g") for item in node.proto.attribute):
            return None
        size = 1
        for dim in info.shape or ():
            size *= dim if isinstance(dim, int) else limit + 1
        if size > limit:
            return None
        feeds = {}
        for item in node.inputs:
            if item:
                array = self._fold(self._overlay.resolve(item), limit, depth + 1)
                if array is None:
                    return None
                feeds[item] = array
        return self.evaluate(node, feeds).get(value)


def _dtype_of(array: np.ndarray) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
