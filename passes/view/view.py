"""The canonical view: an overlay on a `Graph` in which the same maths looks the same, whoever exported it.

The view never touches the model. It remembers which values are mere aliases of others, which values a canonical node makes
instead of the exporter's nodes, and which are constants. **A name that exists in the original always means the same value**;
nodes and values that exist only here have new names. Matching reads the view; the rewriter brings view-only nodes that a fused
node needs into the original (`onnx_fuse.passes.fuse.commit`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from onnx_fuse.passes.files.external_data import read_small
from onnx_fuse.passes.graph.attributes import Reference, attribute_default
from onnx_fuse.passes.graph.constants import CONSTANT_LIMIT, decode
from onnx_fuse.passes.graph.dims import Dim, Shape, broadcast
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import MadeNode, Node
from onnx_fuse.passes.graph.shapes.inference import UNKNOWN, Inference, Info, array_info, type_info
from onnx_fuse.passes.graph.shapes.rules import RULES
from onnx_fuse.patterns.language.dsl import VIEW_DOMAIN

# What later opsets take as an input and earlier ones as an attribute; rules and patterns always see an attribute.
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

_NOT_FOLDED = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Optional",
}
_FOLD_DEPTH = 400
_position = attrgetter("position")
# What rules recognise in any opset, and with inputs that only the view allows.
_RECOGNISED = frozenset({"LayerNormalization", "RMSNormalization", "Gelu", "Swish"})


class View:
    """A canonical view of one graph.

    Args:
        graph: the index of the original graph.
        fallback_types: a function that runs ONNX's shape inference on the model and gives name -> type for this graph.
        folder: where the model's external data lies, from which small constants are read; None: they stay unknown.
    """

    def __init__(
        self,
        graph: Graph,
        fallback_types: Callable[[], dict[str, onnx.TypeProto]] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.graph = graph
        self._folder = folder
        self._aliases: dict[str, str] = {}
        self._canonical: dict[str, Node] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._folded: dict[str, np.ndarray | None] = {}
        self._scalars: dict[str, float | None] = {}
        self._by_key: dict[tuple[str, str], list[Node]] = {}
        for node in graph.nodes:
            self._by_key.setdefault((node.domain, node.op_type), []).append(node)
        self._fallback_types = fallback_types
        self._inferred: dict[str, onnx.TypeProto] | None = None
        self._constness: set[str] | None = None
        self._readers: dict[str, list[Node]] | None = None
        self._new_nodes: list[Node] = []
        self._unwritable: set[str | int] = set()
        self.near_misses: list[Any] = []
        self.errors: list[str] = []
        self.refusals: list[tuple[Node, str]] = []
        self.agreed: set[Hashable] = set()
        self.shared: dict[Any, str] = {}
        self.looked_at: set[str] = set()
        self.inferred: set[str] = set()
        self._superseded: set[int] = set()
        self._inference = Inference(
            RULES, self._definition, self._leaf, self._fallback, self.attribute, self._known_array
        )

    def release(self) -> None:
        """Says that no more facts are asked for: what works them out holds the view, and the view would wait for the collector."""
        del self._inference
        self._constness = None

    # -- structure -----------------------------------------------------------------------------------------------------

    def resolve(self, value: str) -> str:
        """The canonical name of a value: itself unless it is an alias."""
        aliases = self._aliases
        if value not in aliases:
            return value
        target = value
        while target in aliases:
            target = aliases[target]
        while aliases.get(value, target) != target:
            aliases[value], value = target, aliases[value]
        return target

    def producer(self, value: str) -> Node | None:
        """The canonical node that makes a value; None for graph inputs, initializers and values from outside."""
        if value in self._aliases:
            value = self.resolve(value)
        return self._canonical.get(value) or self.graph.producers.get(value)

    def maker_keys(self, node: Node) -> list[tuple[str, str] | None]:
        """For each input of a node the key of what makes it; None where no node does."""
        aliases, canonical, producers = self._aliases, self._canonical, self.graph.producers
        keys: list[tuple[str, str] | None] = []
        for name in node.inputs:
            if name in aliases:
                name = self.resolve(name)
            maker = canonical.get(name) or producers.get(name)
            keys.append(None if maker is None else maker.key)
        return keys

    def inputs(self, node: Node) -> tuple[str, ...]:
        """Canonical names of a node's inputs."""
        aliases = self._aliases
        return tuple([self.resolve(name) if name in aliases else name for name in node.inputs])

    def nodes(self, keys: Iterable[tuple[str, str]]) -> list[Node]:
        """Canonical nodes of these (domain, operator type) keys, in graph order."""
        found = [node for key in keys for node in self._by_key.get(key, ()) if self.is_canonical(node)]
        found.sort(key=_position)
        return found

    def all_nodes(self) -> list[Node]:
        """All canonical nodes, in graph order."""
        return self.nodes(list(self._by_key))

    def operators(self) -> list[tuple[str, str]]:
        """(domain, operator type) of what was ever in the view, in order of first appearance."""
        return list(self._by_key)

    def is_canonical(self, node: Node) -> bool:
        """Whether the node makes at least one of its outputs in the view, for a reader that is still there."""
        if id(node) in self._superseded:
            return False
        aliases, canonical = self._aliases, self._canonical
        for output in node.outputs:  # noqa: SIM110  (asked of every node, several times)
            if output and output not in aliases and canonical.get(output, node) is node:
                return True
        return False

    def supersede(self, node: Node, by: Node) -> None:
        """Takes a recognised node off the lists where the one that grew out of it is all that reads it."""
        value = node.outputs[0]
        if value not in self.graph.outputs and [reader.position for reader in self.graph.readers.get(value, ())] == [
            by.position
        ]:
            self._superseded.add(id(node))

    def readers(self, value: str) -> list[Node]:
        """Canonical nodes that read a value, in graph order."""
        if self._readers is None:
            self._readers = {}
            for node in self.all_nodes():
                for name in dict.fromkeys(self.inputs(node)):
                    if name:
                        self._readers.setdefault(name, []).append(node)
        return self._readers.get(self.resolve(value), [])

    def readers_before(self, node: Node) -> list[Node]:
        """Original nodes before `node` that read its first input, under whatever name."""
        value = node.inputs[0]
        names = {value, self.resolve(value)}
        return [
            reader
            for name in sorted(names)
            for reader in self.graph.readers.get(name, ())
            if reader.position < node.position
        ]

    def is_read(self, value: str) -> bool:
        """Whether anybody needs an original value: a node, a subgraph, or who calls the graph."""
        return bool(value) and (value in self.graph.readers or value in self.graph.outputs)

    def covers(self, node: Node) -> frozenset[int]:
        """Positions of the original nodes that a canonical node stands for."""
        return frozenset(node.covers) if isinstance(node, MadeNode) else frozenset((node.position,))

    def is_array(self, value: str) -> bool:
        """Whether a value is a constant that only the view has."""
        return value in self._arrays

    def array_of(self, value: str) -> np.ndarray | None:
        """The array of a constant that only the view has."""
        return self._arrays.get(value)

    def recognised(self, node: Node) -> bool:
        """Whether a canonical node that stands for several stands for this one too."""
        groups = (self.covers(made) for made in self._canonical.values() if self.is_canonical(made))
        return any(node.position in group for group in groups if len(group) > 2)

    def exists_in_original(self, value: str) -> bool:
        """Whether a value is one of the original graph (or visible in it)."""
        return value not in self._arrays and (value not in self._canonical or value in self.graph.producers)

    def is_valid(self, node: Node) -> bool:
        """Whether a canonical node may stand in the model as it is, with all that it needs."""
        return id(node) not in self._unwritable

    def can_write(self, value: str) -> bool:
        """Whether a value can be had in the model: it is there, or what makes it in the view may stand there."""
        return self.resolve(value) not in self._unwritable

    # -- changes -------------------------------------------------------------------------------------------------------

    def alias(self, value: str, to: str) -> None:
        """Declares that `value` is the same as `to`."""
        to = self.resolve(to)
        if to != value:
            self._aliases[value] = to
            self._readers = None

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
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.proto.attribute}
        self._make(node.op_type, node.inputs, value, attributes, node, [node], node.domain)
        self.alias(node.outputs[0], value)

    def declare(self, value: str, info: Info) -> None:
        """Tells what is known of a view-only value whose operator ONNX does not have."""
        self._inference.declare(value, info)

    def take_new_nodes(self) -> list[Node]:
        """Nodes made since the last call, for rules that look at what other rules made."""
        new, self._new_nodes = self._new_nodes, []
        return new

    def array(self, array: np.ndarray, like: str = "constant") -> str:
        """A view-only constant; returns its name."""
        name = self.graph.fresh_name(f"{like}/constant")
        self._arrays[name] = array
        return name

    def _make(
        self,
        op_type: str,
        inputs: Sequence[str],
        output: str,
        attributes: dict[str, Any] | None,
        like: Node,
        covers: Iterable[Node],
        domain: str,
    ) -> Node:
        covered = frozenset().union(*[self.covers(item) for item in covers]) or self.covers(like)
        node = MadeNode(op_type, inputs, output, attributes or {}, like.label, domain, like.position, tuple(covered))
        self._canonical[output] = node
        self._readers = None
        self._by_key.setdefault(node.key, []).append(node)
        self._new_nodes.append(node)
        if not self._is_valid(node) or any(not self.can_write(name) for name in node.inputs):
            self._unwritable.add(id(node))
            if output not in self.graph.producers:
                self._unwritable.add(output)
        if self._constness is not None and all(self._maybe_constant(item) for item in node.inputs if item):
            self._constness.add(output)
        return node

    def _is_valid(self, node: Node) -> bool:
        if node.domain == VIEW_DOMAIN:
            return False
        if node.domain != "" or node.op_type not in _RECOGNISED:
            return True
        if node.op_type in ("LayerNormalization", "RMSNormalization") and len(node.inputs) < 2:
            return False
        opset = self.graph.opset() or 1
        return onnx.defs.has(node.op_type, opset, "") and len({self.dtype(name) for name in node.inputs if name}) == 1

    # -- facts ---------------------------------------------------------------------------------------------------------

    def attribute(self, node: Node, name: str) -> Any:
        """An attribute with the schema's default; what later opsets take as an input is read from there.

        None where it is absent or not known before run time; elements of a list that are symbolic stay symbolic.
        """
        found = node.attribute(name)
        if found is not None:
            return found
        place = ATTRIBUTE_INPUTS.get(node.op_type, {}).get(name) if node.domain == "" else None
        if place is not None and place < len(node.inputs) and node.inputs[place]:
            value = node.inputs[place]
            content = self._inference.content(value)
            if content is not None:
                if None in content:
                    return Reference(value)
                return list(content) if self._inference.shape(value) else content[0]
            array = self.constant(value)
            if array is None:
                return Reference(value)
            return array.item() if array.ndim == 0 else array.tolist()
        return attribute_default(node.op_type, node.domain, self.graph.opset(node.domain) or 1, name)

    def info(self, value: str) -> Info:
        """Type, shape and content of a value."""
        return self._inference.info(value)

    def shape(self, value: str) -> Shape | None:
        """Symbolic shape, or None where the rank is unknown."""
        return self._inference.info(value).shape

    def rank(self, value: str) -> int | None:
        """Number of axes, or None where unknown."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

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
        return self._inference.info(value).dtype

    @property
    def equalities(self) -> dict[str, int]:
        """Dimension names that can only have one size, because a Reshape in the graph is hard-coded to it."""
        return dict(self._inference.equalities)

    def equate(self, dim: Dim, size: int) -> None:
        """See `Inference.equate`."""
        self._inference.equate(dim, size)

    def constant(self, value: str, limit: int = CONSTANT_LIMIT) -> np.ndarray | None:
        """The value as an array if it is a constant, or is computed from constants and known sizes alone.

        None where it is not, is larger than `limit` elements, or lies in external data and is not small.
        """
        return self._fold(self.resolve(value), limit, 0)

    def scalar(self, value: str) -> float | None:
        """The number in a constant with one element, or None."""
        value = self.resolve(value)
        if not value or not self._maybe_constant(value):
            return None
        if value not in self._scalars:
            self._scalars[value] = self._scalar(value)
        return self._scalars[value]

    def _scalar(self, value: str) -> float | None:
        shape = self._known_shape(value)
        if shape is not None and any(dim != 1 for dim in shape):
            return None
        array = self.constant(value)
        if array is None or array.size != 1 or array.dtype.kind not in "fiubV":  # V: bfloat16
            return None
        return float(array.reshape(-1)[0])

    def is_constant(self, value: str) -> bool:
        """Whether the value is an initializer or Constant, of whatever size and wherever it lies, or folds to one."""
        value = self.resolve(value)
        return value in self._arrays or self.graph.tensor(value) is not None or self.constant(value) is not None

    # -- how facts are found -------------------------------------------------------------------------------------------

    def _definition(self, value: str) -> Node | None:
        # Original nodes define original values, so that facts do not depend on which rules have run.
        node = self.graph.producers.get(value)
        if node is None:
            alias = self._aliases.get(value)
            node = self._canonical.get(value)
            if node is None and alias is not None:
                return self._definition(self.resolve(value))
        if node is not None and node.key == ("", "Constant"):
            return None
        return node

    def _known_shape(self, value: str) -> Sequence[int] | None:
        tensor = self.graph.tensor(value)
        return None if tensor is None else list(tensor.dims)

    def _known_array(self, value: str) -> np.ndarray | None:
        if value in self._arrays:
            return self._arrays[value]
        tensor = self.graph.tensor(value)
        return None if tensor is None else self._decoded(tensor)

    def _leaf(self, value: str) -> Info:
        if value in self._arrays:
            array = self._arrays[value]
            return array_info(array, onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor = self.graph.tensor(value)
        if tensor is not None:
            small = len(tensor.dims) <= 1 and tensor.data_type in (
                TensorProto.INT64,
                TensorProto.INT32,
                TensorProto.BOOL,
            )
            array_or_none = self._decoded(tensor, 64) if small else None
            if array_or_none is not None:
                return array_info(array_or_none, tensor.data_type)
            return Info(tensor.data_type, tuple(tensor.dims))
        if self.graph.outer is not None and value not in self.graph.inputs and value not in self.graph.producers:
            return _plain_view(self.graph.outer).info(value)
        return self._fallback(value)

    def _fallback(self, value: str) -> Info:
        declared = self.graph.value_types.get(value)
        if declared is not None and (declared.tensor_type.HasField("shape") or self._fallback_types is None):
            return type_info(declared, value)
        if self._inferred is None:
            self._inferred = self._fallback_types() if self._fallback_types is not None else {}
        self.inferred.add(value)
        inferred = self._inferred.get(value)
        if inferred is not None:
            return type_info(inferred, value)
        return type_info(declared, value) if declared is not None else UNKNOWN

    def inferred_type(self, value: str) -> onnx.TypeProto | None:
        """What ONNX's shape inference found, if it was asked for anything."""
        return (self._inferred or {}).get(value)

    def content(self, value: str) -> tuple[Any, ...] | None:
        """What a constant holds, to be compared with that of another; None where it cannot be read."""
        array = self._known_array(value)
        return None if array is None else (array.dtype, array.shape, array.tobytes())

    def _decoded(self, tensor: TensorProto, limit: int = CONSTANT_LIMIT) -> np.ndarray | None:
        self.looked_at.add(tensor.name)
        if self._folder is not None and tensor.data_location == TensorProto.EXTERNAL:
            return read_small(tensor, self._folder, limit)
        return decode(tensor, limit)

    def _maybe_constant(self, value: str) -> bool:
        if self._constness is None:
            self._constness = set(self.graph.initializers)
            for node in self.graph.nodes:
                if node.op_type in ("Shape", "Size", "Constant") or all(
                    not item or item in self._constness for item in node.inputs
                ):
                    self._constness.update(node.outputs)
        if value in self._constness or value in self._arrays:
            return True
        return value not in self.graph.producers and self.graph.tensor(value) is not None

    def _fold(self, value: str, limit: int, depth: int) -> np.ndarray | None:
        if value in self._arrays:
            return self._arrays[value]
        if value in self._folded:
            found = self._folded[value]
            return found if found is None or found.size <= limit else None
        result = self._fold_uncached(value, limit, depth)
        if result is not None or limit >= CONSTANT_LIMIT:
            self._folded[value] = result
        return result

    def _fold_uncached(self, value: str, limit: int, depth: int) -> np.ndarray | None:
        tensor = self.graph.tensor(value)
        if tensor is not None:
            return self._decoded(tensor, limit)
        node = self._canonical.get(value) or self.graph.producers.get(value)
        if node is None or node.key == ("", "Constant"):
            return None
        if not self._maybe_constant(value) or depth > _FOLD_DEPTH:
            return None
        info = self.info(value)
        if info.content is not None and info.shape is not None and all(isinstance(item, int) for item in info.content):
            dtype = onnx.helper.tensor_dtype_to_np_dtype(info.dtype) if info.dtype else np.dtype(np.int64)
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
                array = self._fold(self.resolve(item), limit, depth + 1)
                if array is None:
                    return None
                feeds[item] = array
        return self.evaluate(node, feeds).get(value)

    def evaluate(self, node: Node, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a node makes of these arrays; nothing where onnx's evaluator cannot tell."""
        from onnx.reference import ReferenceEvaluator

        graph = onnx.helper.make_graph(
            [node.proto],
            "fold",
            [onnx.helper.make_tensor_value_info(name, _dtype_of(array), array.shape) for name, array in feeds.items()],
            [onnx.ValueInfoProto(name=name) for name in node.outputs if name],
        )
        imports = [onnx.helper.make_opsetid("", self.graph.opset() or onnx.defs.onnx_opset_version())]
        model = onnx.helper.make_model(graph, opset_imports=imports)
        try:
            results = ReferenceEvaluator(model).run(None, feeds)
        except Exception:
            # Whatever the evaluator cannot do stays in the graph: folding is only ever a convenience.
            return {}
        names = [name for name in node.outputs if name]
        return {name: np.asarray(array) for name, array in zip(names, results, strict=False)}


def _plain_view(graph: Graph) -> View:
    """A view of an outer graph, shared by the subgraphs that capture its values."""
    if graph.plain_view is None:
        graph.plain_view = View(graph)
    view: View = graph.plain_view
    return view


def _dtype_of(array: np.ndarray) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
