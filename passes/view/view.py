"""The canonical view: an overlay on a `Graph` in which the same maths looks the same, whoever exported it.

The view never touches the model. It remembers which values are mere aliases of others, which values a canonical node makes
instead of the exporter's nodes, and which are constants. **A name that exists in the original always means the same value**;
nodes and values that exist only here have new names. Matching reads the view; the rewriter brings view-only nodes that a fused
node needs into the original (`onnx_fuse.passes.fuse.commit`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_fuse.passes.graph.constants import CONSTANT_LIMIT
from onnx_fuse.passes.graph.dims import Dim, Shape, broadcast
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import MadeNode, Node
from onnx_fuse.passes.graph.shapes.inference import Info
from onnx_fuse.passes.view.facts import Facts
from onnx_fuse.passes.view.folding import Folding
from onnx_fuse.passes.view.overlay import Overlay
from onnx_fuse.passes.view.stored_constants import StoredConstants
from onnx_fuse.patterns.language.dsl import VIEW_DOMAIN

# What rules recognise in any opset, and with inputs that only the view allows.
_RECOGNISED = frozenset({"LayerNormalization", "RMSNormalization", "Gelu", "Swish"})


class View(Overlay):
    """A canonical view of one graph: its structure, what is known of its values, and the changes that rules make.

    Args:
        graph: the index of the original graph.
        fallback_types: a function that runs ONNX's shape inference on the model and gives name -> type for this graph.
        folder: where the model's external data lies, from which small constants are read; None: they stay unknown.

    Attributes:
        near_misses: `NearMiss`es of rules that recognise something.
        errors: a sentence for each rule that raised.
        refusals: nodes that a rule left as they are, and why.
        agreed: what was checked already, for whoever checks.
        shared: what a rule made for one node and may use for another, by a key of its own.
        settled: moved values that have the form in which patterns look for them: no chain of moves goes on through them.
    """

    def __init__(
        self,
        graph: Graph,
        fallback_types: Callable[[], dict[str, onnx.TypeProto]] | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__(graph)
        self._unwritable: set[str | int] = set()
        self.near_misses: list[Any] = []
        self.errors: list[str] = []
        self.refusals: list[tuple[Node, str]] = []
        self.agreed: set[Hashable] = set()
        self.shared: dict[Any, str] = {}
        self.settled: set[str] = set()
        self._stored = StoredConstants(self, folder)
        self._folding = Folding(self, self._stored, self.info, self.attribute)
        self._facts = Facts(self, self._stored, self._folding, fallback_types, partial(_info_outside, graph))

    def release(self) -> None:
        """Says that no more facts are asked for: what works them out holds the view, and the view would wait for the collector."""
        self._facts.release()
        del self._folding, self._stored

    # -- changes -------------------------------------------------------------------------------------------------------

    def add(
        self,
        op_type: str,
        inputs: Sequence[str],
        attributes: dict[str, Any] | None = None,
        *,
        like: Node,
        covers: Iterable[Node] = (),
        domain: str = "",
    ) -> str:
        """Adds a view-only node with one output and returns the output's (new) name."""
        output = self.graph.fresh_name(f"{like.outputs[0] or like.op_type}/{op_type}")
        self._make(op_type, inputs, output, attributes, like, covers, domain)
        return output

    def replace(
        self,
        value: str,
        op_type: str,
        inputs: Sequence[str],
        attributes: dict[str, Any] | None = None,
        *,
        like: Node,
        covers: Iterable[Node] = (),
        domain: str = "",
    ) -> Node:
        """Declares that a canonical node makes `value` from now on."""
        return self._make(op_type, inputs, value, attributes, like, covers, domain)

    def adopt(self, value: str, node: Node) -> None:
        """Lets the view-only node (of one output) make `value`; its own output becomes an alias of `value`."""
        self._make(node.op_type, node.inputs, value, _attributes(node), node, [node], node.domain)
        written = node.to_write()
        if written is not node:
            self.write_as(value, written.op_type, written.inputs, _attributes(written))
        if node.outputs[0] in self.settled:
            self.settled.add(value)
        self.alias(node.outputs[0], value)

    def write_as(
        self, value: str, op_type: str, inputs: Sequence[str], attributes: dict[str, Any] | None = None
    ) -> None:
        """Says that the node that the view has make `value` is written into the model as another one, which gives the same."""
        node = self._canonical[value]
        node.written = MadeNode(op_type, inputs, value, attributes or {}, node.label, "", node.position, node.covers)

    def declare(self, value: str, info: Info) -> None:
        """Tells what is known of a view-only value whose operator ONNX does not have."""
        self._facts.inference.declare(value, info)

    def _make(
        self,
        op_type: str,
        inputs: Sequence[str],
        output: str,
        attributes: dict[str, Any] | None,
        like: Node,
        covers: Iterable[Node],
        domain: str,
    ) -> MadeNode:
        covered = self.covers_of(covers) or self.covers(like)
        node = MadeNode(op_type, inputs, output, attributes or {}, like.label, domain, like.position, tuple(covered))
        self.place(node)
        if not self.may_stand(node) or not self._unwritable.isdisjoint(self.inputs(node)):
            self._unwritable.add(id(node))
            if output not in self.graph.producers:
                self._unwritable.add(output)
        self._folding.notice(node)
        return node

    # -- what may stand in the model -----------------------------------------------------------------------------------

    def is_valid(self, node: Node) -> bool:
        """Whether a canonical node may stand in the model as it is, with all that it needs."""
        return id(node) not in self._unwritable

    def can_write(self, value: str) -> bool:
        """Whether a value can be had in the model: it is there, or what makes it in the view may stand there."""
        return self.resolve(value) not in self._unwritable

    def may_stand(self, node: Node) -> bool:
        """Whether a node may stand in the model if all that it needs can be had there."""
        if node.domain == VIEW_DOMAIN:
            return False
        if node.domain != "" or node.op_type not in _RECOGNISED:
            return True
        if node.op_type in ("LayerNormalization", "RMSNormalization") and len(node.inputs) < 2:
            return False
        opset = self.graph.opset() or 1
        return _is_known(node.op_type, opset) and len({self.dtype(name) for name in node.inputs if name}) == 1

    # -- facts ---------------------------------------------------------------------------------------------------------

    def attribute(self, node: Node, name: str) -> Any:
        """An attribute with the schema's default; what later opsets take as an input is read from there.

        None where it is absent or not known before run time; elements of a list that are symbolic stay symbolic.
        """
        return self._facts.attribute(node, name)

    def info(self, value: str) -> Info:
        """Type, shape and content of a value."""
        return self._facts.inference.info(value)

    def shape(self, value: str) -> Shape | None:
        """Symbolic shape, or None where the rank is unknown."""
        return self._facts.inference.info(value).shape

    def rank(self, value: str) -> int | None:
        """Number of axes, or None where unknown."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    @cached_property
    def input_sizes(self) -> Mapping[Dim, tuple[str, int]]:
        """Symbolic size -> an input of the graph, which every node can read, and the axis of it that has this size."""
        found: dict[Dim, tuple[str, int]] = {}
        for name in self.graph.inputs:
            for axis, dim in enumerate(self.shape(name) or ()):
                if not isinstance(dim, int):
                    found.setdefault(dim, (name, axis))
        return found

    def dimension(self, value: str) -> Dim | None:
        """The size of an axis that a tensor of one element holds, if need be as a float; None where it is not known to."""
        node = self.producer(value)
        while node is not None and node.key == ("", "Cast"):
            value = self.resolve(node.inputs[0])
            node = self.producer(value)
        content = self.info(value).content
        return content[0] if content is not None and len(content) == 1 else None

    def broadcasts_to(self, value: str, target: Sequence[Dim]) -> bool:
        """Whether a value broadcasts to a shape without enlarging it, in every run that does not fail."""
        shape = self.shape(value)
        if shape is None or len(shape) > len(target):
            return False
        return all(
            broadcast(have, want) == want for have, want in zip(shape, target[len(target) - len(shape) :], strict=True)
        )

    def dtype(self, value: str) -> int:
        """TensorProto.DataType of a value; 0 where unknown."""
        return self._facts.inference.info(value).dtype

    @property
    def equalities(self) -> dict[str, int]:
        """Dimension names that can only have one size, because a Reshape in the graph is hard-coded to it."""
        return dict(self._facts.inference.equalities)

    def equate(self, dim: Dim, size: int) -> None:
        """See `Inference.equate`."""
        self._facts.inference.equate(dim, size)

    def inferred_type(self, value: str) -> onnx.TypeProto | None:
        """What ONNX's shape inference found, if it was asked for anything."""
        return self._facts.inferred_type(value)

    @property
    def inferred(self) -> set[str]:
        """Values for which ONNX's shape inference was asked."""
        return self._facts.inferred

    # -- constants -----------------------------------------------------------------------------------------------------

    def constant(self, value: str, limit: int = CONSTANT_LIMIT) -> np.ndarray | None:
        """The value as an array if it is a constant, or is computed from constants and known sizes alone.

        None where it is not, is larger than `limit` elements, or lies in external data and is not small.
        """
        return self._folding.constant(value, limit)

    def scalar(self, value: str) -> float | None:
        """The number in a constant with one element, or None."""
        return self._folding.scalar(value)

    def is_constant(self, value: str) -> bool:
        """Whether the value is an initializer or Constant, of whatever size and wherever it lies, or folds to one."""
        return self._folding.is_constant(value)

    def computed(self, model: onnx.ModelProto, value: str) -> np.ndarray | None:
        """What another model, which takes no inputs, makes of its constants; None as for `constant`."""
        return View(Graph(model.graph, model)).constant(value)

    def evaluate(self, node: Node, feeds: Mapping[str, np.ndarray], limit: int) -> dict[str, np.ndarray]:
        """What a node makes of these arrays; nothing where ONNX Runtime cannot tell, or of more than `limit` elements."""
        return self._folding.evaluate(node, feeds, limit)

    def content(self, value: str) -> tuple[Any, ...] | None:
        """What a stored constant holds, to be compared with that of another; None where it cannot be read."""
        return self._stored.content(value)

    @property
    def looked_at(self) -> set[str]:
        """Names of the model's tensors whose content was asked for."""
        return self._stored.looked_at


def _attributes(node: Node) -> dict[str, Any]:
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.proto.attribute}


@lru_cache(maxsize=1024)
def _is_known(op_type: str, opset: int) -> bool:
    return bool(onnx.defs.has(op_type, opset, ""))


def _info_outside(graph: Graph, value: str) -> Info:
    """What is known of a value of the graph around this one, which all subgraphs that capture its values ask one view."""
    outer = graph.outer
    assert outer is not None
    if outer.plain_view is None:
        outer.plain_view = View(outer)
    view: View = outer.plain_view
    return view.info(value)
