"""The pass behind `--simplify`: writes the canonical form of every graph, as far as it is valid in the model's opset."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_fuse.passes.graph.index import Graph, graphs
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.onnx_inference import inferred_types
from onnx_fuse.passes.graph.subgraphs import captures, subgraphs
from onnx_fuse.passes.normalize.sweep import RULES, normalize, select_rules
from onnx_fuse.passes.report import Log
from onnx_fuse.passes.view.rule import Rules
from onnx_fuse.passes.view.view import View

FOLD_LIMIT = 1 << 16
"""Constants with more elements than this are left to be computed at run time rather than written into the file."""

# A Gemm taken apart would leave the Transpose of its weight to the run.
_RULES = {op_type: rules for op_type, rules in RULES.items() if op_type not in ("Attention", "Gemm")}


class Simplify:
    """Folds constants and shape arithmetic, drops what does nothing, and writes chains of moves and norms in one form.

    Args:
        bodies: domains whose functions are the bodies of fused operators, which stay as they are.
        only: names of the rules to apply; None for all.
    """

    name = "simplify"
    atomic = False

    def __init__(self, bodies: Iterable[str] = (), only: Iterable[str] | None = None) -> None:
        self.bodies = frozenset(bodies)
        self.rules = _RULES if only is None else select_rules(_RULES, only)

    def run(self, model: ModelProto, log: Log) -> ModelProto:
        for graph in graphs(model):
            if not (isinstance(graph.proto, FunctionProto) and graph.proto.domain in self.bodies):
                log.rewrites += _Writer(graph, self.rules).write()
        return model


class _Writer:
    """Rewrites one graph to what its view says."""

    def __init__(self, graph: Graph, rules: Rules) -> None:
        self.graph = graph
        self.view = View(graph, inferred_types(graph))
        self.constants: dict[str, TensorProto] = {}
        self.needed: dict[int, Node] = {}
        self._seen: set[str] = set()
        self.fired = normalize(self.view, rules)

    def write(self) -> int:
        """Edits the graph; returns how many nodes went."""
        roots = self._roots()
        sources = {root: self._source(root) for root in roots}
        for source in sources.values():
            self._collect(source)
        renamed = [(root, source) for root, source in sources.items() if source != root]
        keep, additions = self._additions()
        for root, source in renamed:
            producer = self.graph.producers[root]
            additions.append((producer.position, helper.make_node("Identity", [source], [root], name=producer.name)))
        remove = set(range(len(self.graph.nodes))) - keep
        if not remove:
            return 0
        before = len(self.graph.nodes)
        read = {name for position in remove for name in self.graph.nodes[position].inputs}
        gone = {name for position in remove for name in self.graph.nodes[position].outputs}
        additions.sort(key=lambda item: item[0])
        self.graph.edit(add=additions, remove=remove, initializers=list(self.constants.values()))
        self.graph.drop_unread_initializers(read)
        self.graph.drop_value_info(gone - set(self.graph.producers) - set(self.constants))
        return max(before - len(self.graph.nodes), 1)

    def _roots(self) -> list[str]:
        """Values that must keep their names: graph outputs, and what subgraphs capture."""
        names = set(self.graph.outputs)
        for node in self.graph.nodes:
            for _, inner in subgraphs(node.proto):
                names |= captures(inner)
        return sorted(name for name in names if name in self.graph.producers)

    def _source(self, value: str) -> str:
        """The name a value is written under: its canonical one, unless what makes that cannot be written."""
        return self.view.resolve(value) if self.view.can_write(value) else value

    def _producer(self, value: str) -> Node | None:
        node = self.view.producer(value)
        if node is None or (self.view.is_valid(node) and self.view.can_write(value)):
            return None if node is None else node.to_write()
        return self.graph.producers.get(value)

    def _collect(self, root: str) -> None:
        """Post-order over what a value needs, so that `needed` is in topological order."""
        stack: list[tuple[str, bool]] = [(root, False)]
        while stack:
            value, done = stack.pop()
            node = self._producer(value)
            if done:
                if node is not None:
                    self.needed.setdefault(id(node), node)
                continue
            if not value or value in self._seen:
                continue
            self._seen.add(value)
            tensor = self._constant(value)
            if tensor is not None:
                self.constants[value] = tensor
                continue
            if node is None:
                continue
            stack.append((value, True))
            stack.extend((self._source(name), False) for name in reversed(node.inputs) if name)

    def _constant(self, value: str) -> TensorProto | None:
        array = self.view.array_of(value)
        node = self.graph.producers.get(value)
        if array is None and node is not None and node.op_type != "Constant" and value not in self.graph.outputs:
            array = self.view.constant(value, FOLD_LIMIT)
        return None if array is None else numpy_helper.from_array(array, value)

    def _is_original(self, node: Node) -> bool:
        return node.position < len(self.graph.nodes) and self.graph.nodes[node.position] is node

    def _additions(self) -> tuple[set[int], list[tuple[int, NodeProto]]]:
        keep: set[int] = set()
        taken = {node.proto.name for node in self.needed.values() if self._is_original(node)}
        additions: list[tuple[int, NodeProto]] = []
        # A stable sort: nodes of one place stay in topological order.
        for node in sorted(self.needed.values(), key=lambda item: item.position):
            inputs = [self._source(name) if name else "" for name in node.inputs]
            if self._is_original(node) and tuple(inputs) == node.inputs:
                keep.add(node.position)
                continue
            proto = NodeProto()
            proto.CopyFrom(node.proto)
            proto.input[:] = inputs
            if not self._is_original(node):
                # Several nodes may stand for one of the exporter's, whose name they all carry.
                proto.name = node.outputs[0] if proto.name in taken else proto.name
                taken.add(proto.name)
            additions.append((node.position, proto))
        return keep, additions
