"""What a view knows of values and nodes: types, symbolic shapes, the content of small tensors, and attributes.

Shapes come from the project's own inference; where that has no rule, from ONNX's, which is run only when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx

from onnx_fuse.passes.graph.attributes import Reference, attribute_default
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.shapes.inference import UNKNOWN, Inference, Info, type_info
from onnx_fuse.passes.graph.shapes.rules import RULES
from onnx_fuse.passes.view.folding import Folding
from onnx_fuse.passes.view.overlay import Overlay
from onnx_fuse.passes.view.stored_constants import StoredConstants

ATTRIBUTE_INPUTS: dict[str, dict[str, int]] = {
    "Squeeze": {"axes": 1},
    "Unsqueeze": {"axes": 1},
    "Split": {"split": 1},
    "Slice": {"starts": 1, "ends": 2, "axes": 3, "steps": 4},
    "Clip": {"min": 1, "max": 2},
    "Dropout": {"ratio": 1, "training_mode": 2},
    "Pad": {"pads": 1, "constant_value": 2},
    "TopK": {"k": 1},
    **{
        f"Reduce{name}": {"axes": 1}
        for name in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    },
}
"""What later opsets take as an input and earlier ones as an attribute; rules and patterns always see an attribute."""

_WHOLE_NUMBERS = frozenset({"axes", "split", "starts", "ends", "steps", "pads", "k"})
"""Those of them that are whole numbers by ONNX's rules."""


class Facts:
    """What is known of the values and nodes of a view.

    Args:
        overlay: the view's structure.
        stored: its stored constants.
        folding: its computed constants.
        fallback_types: a function that runs ONNX's shape inference on the model and gives name -> type for this graph.
        outside: value -> what is known of a value of the graph around this one.

    Attributes:
        inferred: values for which ONNX's shape inference was asked.
    """

    def __init__(
        self,
        overlay: Overlay,
        stored: StoredConstants,
        folding: Folding,
        fallback_types: Callable[[], dict[str, onnx.TypeProto]] | None,
        outside: Callable[[str], Info],
    ) -> None:
        self._graph = overlay.graph
        self._stored = stored
        self._folding = folding
        self._fallback_types = fallback_types
        self._outside = outside
        self._inferred: dict[str, onnx.TypeProto] | None = None
        self.inferred: set[str] = set()
        self.inference = Inference(RULES, overlay.definition, self._leaf, self._fallback, self.attribute, stored.array)

    def release(self) -> None:
        """Says that no more is asked than what nodes carry: what works out the rest holds these facts, and they the view."""
        del self.inference, self._folding, self._stored, self._outside

    def attribute(self, node: Node, name: str) -> Any:
        """An attribute with the schema's default; what later opsets take as an input is read from there.

        None where it is absent or not known before run time; elements of a list that are symbolic stay symbolic.
        """
        found = node.attribute(name)
        if found is not None:
            return found
        place = ATTRIBUTE_INPUTS.get(node.op_type, {}).get(name) if node.domain == "" else None
        if place is not None and place < len(node.inputs) and node.inputs[place]:
            given = self._given_as_input(node.inputs[place])
            # In a damaged model they may be of any type.
            return Reference(node.inputs[place]) if name in _WHOLE_NUMBERS and not _is_whole(given) else given
        return attribute_default(node.op_type, node.domain, self._graph.opset(node.domain) or 1, name)

    def inferred_type(self, value: str) -> onnx.TypeProto | None:
        """What ONNX's shape inference found, if it was asked for anything."""
        return (self._inferred or {}).get(value)

    def _given_as_input(self, value: str) -> Any:
        content = self.inference.content(value)
        if content is not None:
            if None in content:
                return Reference(value)
            return list(content) if self.inference.shape(value) else content[0]
        array = self._folding.constant(value)
        if array is None:
            return Reference(value)
        return array.item() if array.ndim == 0 else array.tolist()

    def _leaf(self, value: str) -> Info:
        stored = self._stored.info(value)
        if stored is not None:
            return stored
        graph = self._graph
        if graph.outer is not None and value not in graph.inputs and value not in graph.producers:
            return self._outside(value)
        return self._fallback(value)

    def _fallback(self, value: str) -> Info:
        declared = self._graph.value_types.get(value)
        if declared is not None and (declared.tensor_type.HasField("shape") or self._fallback_types is None):
            return type_info(declared, value)
        if self._inferred is None:
            self._inferred = self._fallback_types() if self._fallback_types is not None else {}
        self.inferred.add(value)
        inferred = self._inferred.get(value)
        if inferred is not None:
            return type_info(inferred, value)
        return type_info(declared, value) if declared is not None else UNKNOWN


def _is_whole(given: Any) -> bool:
    """Whether what an input says in the place of an attribute holds no fractions; symbols and what is not known have none."""
    return not any(isinstance(item, float) for item in (given if isinstance(given, list) else [given]))
