"""What TensorRT runs in place of a fused node without a plugin and next to it, as steps of the cost model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.select import cost_model
from onnx_fuse.passes.select.opened_model import HALF, OpenedModel

_STEPS = 8
"""How far from a fused node TensorRT is followed while it chains nodes."""

_FIRST_ONLY = cost_model.FREE | {"CastLike", "Slice", "Split", "Expand", "Tile", "Pad"}
_KINDS = {
    "pointwise": cost_model.POINTWISE,
    "gather": cost_model.GATHER,
    "reduction": cost_model.REDUCTION,
    "matrix": cost_model.MATRIX,
}


class Neighbourhood:
    """Looks around the fused nodes of one model.

    Args:
        model: the model, opened.
    """

    def __init__(self, model: OpenedModel) -> None:
        self._model = model
        self._chains = dict(_attention_chains(model))

    def around(self, name: str) -> list[Node]:
        """Nodes next to a fused node that TensorRT might run together with it, without those of other fused nodes."""
        model, fused = self._model, self._model.call(name)
        before = self._walk(
            fused.input, model.makers, lambda node: node.inputs, cost_model.MATRIX | cost_model.REDUCTION
        )
        after = self._walk(fused.output, model.readers, lambda node: node.outputs, cost_model.REDUCTION)
        return list({**before, **after}.values())

    def _walk(
        self,
        values: Iterable[str],
        follow: Callable[[str], Sequence[Node]],
        onwards: Callable[[Node], Sequence[str]],
        ends: frozenset[str],
    ) -> dict[int, Node]:
        """Position -> node, over what TensorRT chains and up to the first node of another kind, which is in it if in `ends`."""
        model = self._model
        found: dict[int, Node] = {}
        frontier = list(values)
        for _ in range(_STEPS):
            met = {node.position: node for value in frontier for node in follow(value)}
            met = {
                position: node for position, node in met.items() if position not in found and not model.is_in_body(node)
            }
            chained = [
                node
                for node in met.values()
                if model.is_free(node) or node.op_type in cost_model.POINTWISE | cost_model.GATHER
            ]
            found.update((node.position, node) for node in met.values() if node in chained or node.op_type in ends)
            frontier = [value for node in chained for value in onwards(node) if value]
        return found

    def is_read_outside(self, nodes: Iterable[Node]) -> Callable[[str], bool]:
        """Whether somebody other than these nodes needs a value (or one that only looks at it)."""
        model = self._model
        inside = {node.position for node in nodes}

        def asked(value: str) -> bool:
            pending, seen = [value], {value}
            while pending:
                name = pending.pop()
                if name in model.graph.outputs:
                    return True
                for reader in model.readers(name):
                    if name not in _data(reader):
                        continue
                    if reader.position not in inside:
                        return True
                    if model.is_free(reader):
                        pending += [output for output in reader.outputs if output not in seen]
                        seen.update(reader.outputs)
            return False

        return asked

    def steps(self, nodes: Iterable[Node]) -> Iterator[cost_model.Step]:
        """The nodes that need a kernel, in graph order."""
        for node in sorted(nodes, key=lambda item: item.position):
            if not self._model.is_free(node):
                yield self._step(node)

    def _step(self, node: Node) -> cost_model.Step:
        model = self._model
        kind = next((name for name, group in _KINDS.items() if node.op_type in group and node.domain == ""), "other")
        chain = self._chains.get(node.position, -1)
        if chain >= 0 or (node.domain == "" and node.op_type == "Attention"):
            kind, chain = "attention", chain if chain >= 0 else node.position
        makes = {value: model.size(value) for value in node.outputs if value}
        reads = {source: model.size(source) for value in _data(node) for source in [model.source(value)]}
        if node.op_type in cost_model.GATHER:
            reads[model.source(node.inputs[0])] = sum(makes.values())  # the rows that are asked for
        products, half = self._products(node)
        return cost_model.Step(kind, reads, makes, products, half, chain)

    def _products(self, node: Node) -> tuple[float, bool]:
        """Multiplications and additions in a node's products, and whether these are of 16 bits."""
        model = self._model
        if node.op_type == "Attention":
            shapes = [model.shape(value) for value in node.inputs[:3]]
            return 4.0 * math.prod(shapes[0]) * shapes[1][-2], model.dtype(node.outputs[0]) in HALF
        if node.op_type not in cost_model.MATRIX or not node.outputs:
            return 0.0, False
        left, right = (model.shape(value) for value in node.inputs[:2])
        if node.op_type == "Einsum":
            inner = max(left[-1:], default=1)
        elif node.op_type.startswith("Conv"):
            inner = math.prod(right[1:])
        else:
            inner = left[0] if node.op_type == "Gemm" and model.view.attribute(node, "transA") else left[-1]
        return 2.0 * inner * math.prod(model.shape(node.outputs[0])), model.dtype(node.inputs[0]) in HALF


def _data(node: Node) -> list[str]:
    """The inputs whose elements a node needs; of the others it looks at the type or, as the host does, at a size."""
    return [value for value in node.inputs[: 1 if node.op_type in _FIRST_ONLY else None] if value]


def _attention_chains(model: OpenedModel) -> Iterator[tuple[int, int]]:
    """Position of a node -> which chain of product, Softmax and product it is in, where TensorRT fuses that: in 16 bits."""

    def makers(node: Node) -> list[Node]:
        return [maker for value in node.inputs for maker in model.makers(value)]

    def readers(node: Node) -> list[Node]:
        return [reader for value in node.outputs for reader in model.readers(value)]

    for softmax in model.view.nodes([("", "Softmax")]):
        before = _until_product(model, softmax, makers, every=False)
        after = _until_product(model, softmax, readers, every=True)
        products = [node for node in (*before, *after) if node.op_type == "MatMul"]
        if before and after and all(model.dtype(node.inputs[0]) in HALF for node in products):
            yield from ((node.position, softmax.position) for node in (*before, softmax, *after))


def _until_product(model: OpenedModel, start: Node, follow: Callable[[Node], list[Node]], *, every: bool) -> list[Node]:
    """The nodes on the way to a MatMul, on all ways if `every`; none where a way ends elsewhere (or no way leads to one)."""
    ways: dict[int, list[Node]] = {}

    def search(node: Node, left: int) -> list[Node]:
        if node.position in ways:
            return ways[node.position]
        parts = []
        for other in follow(node):
            chained = left > 0 and (other.op_type in cost_model.POINTWISE or model.is_free(other))
            rest = search(other, left - 1) if chained else []
            parts.append([other, *rest] if rest or other.op_type == "MatMul" else [])
        complete = all(parts) if every else any(parts)
        ways[node.position] = [item for part in parts for item in part] if complete else []
        return ways[node.position]

    return search(start, 2 * _STEPS)
