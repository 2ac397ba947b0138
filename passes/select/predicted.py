"""Decides which fused nodes are worth a plugin: what the cost model (cost.py) predicts with the plugin against without it.

Without the plugin counts what the node's body adds to the kernels next to it, some of which it may be chained with: a plugin
takes that from TensorRT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from onnx import ModelProto, NodeProto, TensorProto, helper

from onnx_fuse.errors import UsageError
from onnx_fuse.passes.graph import inlining
from onnx_fuse.passes.graph.dims import Product
from onnx_fuse.passes.graph.index import Graph, Node
from onnx_fuse.passes.graph.onnx_inference import inferred_types, without_weights
from onnx_fuse.passes.select import cost_model
from onnx_fuse.passes.select.measured import Verdict
from onnx_fuse.passes.select.plugin_facts import PluginFacts, plugin_facts
from onnx_fuse.passes.view.view import View

MARGIN = 0.05
"""A fusion is kept if it is predicted to save at least this part of the time."""
BATCH, LENGTH = 8, 128
"""Sizes assumed for a first axis and for any other, where none is given."""

Alternative = Literal["original", "body"]

METHODS = ("all", "auto", "measured")
"""How to choose: every fusion, those predicted to pay, those that make the model faster when it is timed."""
_STEPS = 8
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FLOATS = (TensorProto.FLOAT, *_HALF)
_BYTES: dict[int, int] = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2, TensorProto.DOUBLE: 8}
_PRECISIONS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Decision:
    """What was decided for one fused node.

    Attributes:
        node, operator: the fused node.
        keep: whether it stays a fused node.
        before_us: microseconds that TensorRT without the plugin is predicted to need beyond those for the kernels next to it
            (less than 0 where the node lets it join them); None where nothing was predicted.
        after_us: microseconds predicted for the plugin, or None.
        launches_before, launches_after: kernels in these times.
        megabytes_before, megabytes_after: what these move.
        reason: the sentence that a person reads.
        ratio: where it was measured: time of the model with the operator by that without.
    """

    node: str
    operator: str
    keep: bool
    before_us: float | None
    after_us: float | None
    launches_before: int
    launches_after: int
    megabytes_before: float
    megabytes_after: float
    reason: str
    ratio: float | None = None


@dataclass(frozen=True)
class Selection:
    """The decisions for a model, and what they were made for.

    Attributes:
        method: "auto" (predicted) or "measured".
        device: the GPU.
        precision: of the floating-point values.
        sizes: dimension -> size.
        assumed: the dimensions among them that nobody gave.
        decisions: one for each fused node of the main graph.
        notes: what a reader should know.
    """

    method: str
    device: str
    precision: str
    sizes: Mapping[str, int]
    assumed: tuple[str, ...]
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...] = ()

    @property
    def left_out(self) -> set[str]:
        """Names of the fused nodes that are not worth it."""
        return {item.node for item in self.decisions if not item.keep}

    def keeping(self, names: Set[str]) -> Selection:
        """The same, with these fused nodes kept though they do not pay."""
        decisions = [
            replace(item, keep=True, reason=f"kept because it is required; {item.reason}")
            if item.node in names and not item.keep
            else item
            for item in self.decisions
        ]
        return replace(self, decisions=tuple(decisions))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


def select_fused(
    model: ModelProto,
    *,
    sizes: Mapping[str, int | Sequence[int]] | None = None,
    device: str | None = None,
    precision: str | None = None,
    alternative: Alternative = "body",
) -> Selection:
    """Predicts for each fused node of the main graph whether its plugin is faster than what TensorRT does without.

    Args:
        model: a fused model with the bodies in it (not changed).
        sizes: name of a dimension -> size, or name of an input -> shape; what is missing is assumed, and named in the result.
        device: name of a GPU (`cost.DEVICES`), as a driver gives it or as in the table; `cost.DEFAULT_DEVICE` if None.
        precision: "float32", "float16" or "bfloat16" where the model will be converted to it; None: as it is.
        alternative: what TensorRT gets instead of a plugin: the "body" of the node, which computes in float32, or the "original"
            nodes, which compute in the type of the model.

    Raises:
        UsageError: the device or precision is not known, or a size is given for something that the inputs do not have.
    """
    if precision is not None and precision not in _PRECISIONS:
        raise UsageError(f"The precision {precision!r} is not known.", f"Choose among {', '.join(_PRECISIONS)}.")
    found = cost_model.device_of(device or cost_model.DEFAULT_DEVICE)
    sized = without_weights(model)
    known, assumed = _with_sizes(sized, sizes or {})
    neighbourhood = _Neighbourhood(sized, precision, alternative)
    decisions = tuple(_decide(node, neighbourhood, found) for node in neighbourhood.fused)
    notes = [] if device else [f"no device was named: {found.name} is assumed."]
    if neighbourhood.unknown:
        notes.append(
            f"sizes that depend on data are taken to be {LENGTH}: {', '.join(sorted(neighbourhood.unknown)[:5])}."
        )
    return Selection(
        "auto", found.name, precision or neighbourhood.precision(), known, tuple(assumed), decisions, tuple(notes)
    )


def measured(predicted: Selection, verdicts: Mapping[str, Verdict], timer: str) -> Selection:
    """The selection by what was measured for each operator, in place of what was predicted."""

    def decision(item: Decision) -> Decision:
        verdict = verdicts[item.operator]
        share = f"{verdict.ratio:.3f} of the time ({verdict.low:.3f} to {verdict.high:.3f}) with {item.operator}"
        reason = f"{share}, in {verdict.runs} pairs of runs"
        return replace(item, keep=verdict.wins, before_us=None, after_us=None, reason=reason, ratio=verdict.ratio)

    decisions = tuple(decision(item) for item in predicted.decisions)
    notes = tuple(note for note in predicted.notes if "assumed" not in note)
    return replace(predicted, method="measured", device=timer, decisions=decisions, notes=notes)


def without(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """The model with the bodies of these fused nodes in their places; the rest as it is."""
    unwanted = set(names)
    return inlining.inline_nodes(model, lambda node: (node.name or node.output[0]) in unwanted)


def _with_sizes(model: ModelProto, given: Mapping[str, int | Sequence[int]]) -> tuple[dict[str, int], list[str]]:
    """Writes sizes into the inputs; gives all of them, and those that were assumed."""
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    shapes = {name: list(size) for name, size in given.items() if not isinstance(size, int)}
    sizes = {name: size for name, size in given.items() if isinstance(size, int)}
    known: dict[str, int] = {}
    assumed: list[str] = []
    used: set[str] = set()
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        shape = shapes.get(value.name)
        if shape is not None and len(shape) != len(dims):
            raise UsageError(f"The shape given for {value.name} has {len(shape)} axes.", f"Give it {len(dims)}.")
        used.add(value.name)
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value"):
                continue
            name = dim.dim_param or f"{value.name}_{axis}"
            used.add(name)
            if shape is not None:
                known[name] = shape[axis]
            elif name in sizes:
                known[name] = sizes[name]
            elif name not in known:
                known[name] = LENGTH if axis else BATCH
                assumed.append(name)
            dim.dim_value = known[name]
    for name in given:
        if name not in used:
            raise UsageError(
                f"A size is given for {name!r}, which is no dimension or input of the model.",
                f"They are: {', '.join(sorted({*known, *(value.name for value in inputs)})) or 'none'}.",
            )
    # What the exporter declared in symbols is worked out again from these.
    del model.graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.Clear()
    return known, assumed


class _Neighbourhood:
    """The fused model with all bodies written out, sizes known, and which of its nodes came from which fused node."""

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
        self._precision = None if precision is None else _PRECISIONS[precision]
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
        self._chains = dict(_attention_chains(self))

    # -- facts ---------------------------------------------------------------------------------------------------------

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
        names: dict[int, str] = {number: name for name, number in _PRECISIONS.items()}
        return names.get(max(set(types), key=types.count), "float32") if types else "float32"

    def size(self, value: str) -> int:
        """Bytes of a value."""
        dtype = self.dtype(value)
        width = _BYTES.get(dtype) or (helper.tensor_dtype_to_np_dtype(dtype).itemsize if dtype else 4)
        return int(width) * math.prod(self.shape(value))

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

    # -- what is compared ----------------------------------------------------------------------------------------------

    def body(self, name: str) -> list[Node]:
        """The nodes of its body."""
        return self._bodies[name]

    def around(self, name: str) -> list[Node]:
        """Nodes next to a fused node that TensorRT might run together with it, without those of other fused nodes."""
        fused = self._calls[name]
        before = self._walk(
            fused.input, self.makers, lambda node: node.inputs, cost_model.MATRIX | cost_model.REDUCTION
        )
        after = self._walk(fused.output, self.readers, lambda node: node.outputs, cost_model.REDUCTION)
        return list({**before, **after}.values())

    def makers(self, value: str) -> list[Node]:
        """The node that makes a value, if any."""
        node = self.graph.producers.get(value)
        return [] if node is None else [node]

    def readers(self, value: str) -> Sequence[Node]:
        """The nodes that read a value."""
        return self.graph.readers.get(value, ())

    def _walk(
        self,
        values: Iterable[str],
        follow: Callable[[str], Sequence[Node]],
        onwards: Callable[[Node], Sequence[str]],
        ends: frozenset[str],
    ) -> dict[int, Node]:
        """Position -> node, over what TensorRT chains and up to the first node of another kind, which is in it if in `ends`."""
        found: dict[int, Node] = {}
        frontier = list(values)
        for _ in range(_STEPS):
            met = {node.position: node for value in frontier for node in follow(value)}
            met = {position: node for position, node in met.items() if position not in found | self._owner}
            chained = [
                node
                for node in met.values()
                if self.is_free(node) or node.op_type in cost_model.POINTWISE | cost_model.GATHER
            ]
            found.update((node.position, node) for node in met.values() if node in chained or node.op_type in ends)
            frontier = [value for node in chained for value in onwards(node) if value]
        return found

    def steps(self, nodes: Iterable[Node]) -> Iterator[cost_model.Step]:
        """The nodes that need a kernel, in graph order."""
        for node in sorted(nodes, key=lambda item: item.position):
            if not self.is_free(node):
                yield self._step(node)

    def _step(self, node: Node) -> cost_model.Step:
        kind = next((name for name, group in _KINDS.items() if node.op_type in group and node.domain == ""), "plugin")
        chain = self._chains.get(node.position, -1)
        if chain >= 0 or (node.domain == "" and node.op_type == "Attention"):
            kind, chain = "attention", chain if chain >= 0 else node.position
        makes = {value: self.size(value) for value in node.outputs if value}
        reads = {source: self.size(source) for value in _data(node) for source in [self.source(value)]}
        if node.op_type in cost_model.GATHER:
            reads[self.source(node.inputs[0])] = sum(makes.values())  # the rows that are asked for
        products, half = self._products(node)
        return cost_model.Step(kind, reads, makes, products, half, chain)

    def _products(self, node: Node) -> tuple[float, bool]:
        if node.op_type == "Attention":
            shapes = [self.shape(value) for value in node.inputs[:3]]
            return 4.0 * math.prod(shapes[0]) * shapes[1][-2], self.dtype(node.outputs[0]) in _HALF
        if node.op_type not in cost_model.MATRIX or not node.outputs:
            return 0.0, False
        left, right = (self.shape(value) for value in node.inputs[:2])
        if node.op_type == "Einsum":
            inner = max(left[-1:], default=1)
        elif node.op_type.startswith("Conv"):
            inner = math.prod(right[1:])
        else:
            inner = left[0] if node.op_type == "Gemm" and self.view.attribute(node, "transA") else left[-1]
        return 2.0 * inner * math.prod(self.shape(node.outputs[0])), self.dtype(node.inputs[0]) in _HALF

    def products(self, name: str) -> float:
        """Multiplications and additions in the matrix products of a body."""
        return sum(self._products(node)[0] for node in self._bodies[name])

    def is_read_outside(self, nodes: Iterable[Node]) -> Callable[[str], bool]:
        """Whether somebody other than these nodes needs a value (or one that only looks at it)."""
        inside = {node.position for node in nodes}

        def asked(value: str) -> bool:
            if value in self.graph.outputs:
                return True
            return any(
                reader.position not in inside or (self.is_free(reader) and any(map(asked, reader.outputs)))
                for reader in self.readers(value)
                if value in _data(reader)
            )

        return asked


_FIRST_ONLY = cost_model.FREE | {"CastLike", "Slice", "Split", "Expand", "Tile", "Pad"}
_KINDS = {
    "pointwise": cost_model.POINTWISE,
    "gather": cost_model.GATHER,
    "reduction": cost_model.REDUCTION,
    "matrix": cost_model.MATRIX,
}


def _data(node: Node) -> list[str]:
    """The inputs whose elements a node needs; of the others it looks at the type or, as the host does, at a size."""
    return [value for value in node.inputs[: 1 if node.op_type in _FIRST_ONLY else None] if value]


def _owner(name: str, calls: Mapping[str, Any]) -> str | None:
    """The fused node from whose body a node of this name came: the longest of their names that it begins with."""
    end = name.rfind("/")
    while end > 0:
        if name[:end] in calls:
            return name[:end]
        end = name.rfind("/", 0, end)
    return None


def _attention_chains(found: _Neighbourhood) -> Iterator[tuple[int, int]]:
    """Position of a node -> which chain of product, Softmax and product it is in, where TensorRT fuses that: in 16 bits."""
    for softmax in found.view.nodes([("", "Softmax")]):
        before = _until_product(
            found, softmax, lambda node: [m for v in node.inputs for m in found.makers(v)], every=False
        )
        after = _until_product(
            found, softmax, lambda node: [r for v in node.outputs for r in found.readers(v)], every=True
        )
        products = [node for node in (*before, *after) if node.op_type == "MatMul"]
        if before and after and all(found.dtype(node.inputs[0]) in _HALF for node in products):
            yield from ((node.position, softmax.position) for node in (*before, softmax, *after))


def _until_product(
    found: _Neighbourhood, start: Node, follow: Callable[[Node], list[Node]], *, every: bool
) -> list[Node]:
    """The nodes on the way to a MatMul, on all ways if `every`; none where a way ends elsewhere (or no way leads to one)."""
    ways: dict[int, list[Node]] = {}

    def search(node: Node, left: int) -> list[Node]:
        if node.position in ways:
            return ways[node.position]
        parts = []
        for other in follow(node):
            chained = left > 0 and (other.op_type in cost_model.POINTWISE or found.is_free(other))
            rest = search(other, left - 1) if chained else []
            parts.append([other, *rest] if rest or other.op_type == "MatMul" else [])
        complete = all(parts) if every else any(parts)
        ways[node.position] = [item for part in parts for item in part] if complete else []
        return ways[node.position]

    return search(start, 2 * _STEPS)


def _decide(node: NodeProto, found: _Neighbourhood, device: cost_model.Device) -> Decision:
    name, operator = node.name, node.op_type
    body, around = found.body(name), found.around(name)
    rest = cost_model.cost(found.steps(around), device, found.is_read_outside(around))
    whole = [*body, *around]
    before = cost_model.cost(found.steps(whole), device, found.is_read_outside(whole)).beside(rest)
    facts = plugin_facts(node, found.shape, found.operator_type(name) in _HALF, device)
    if facts is None:
        return Decision(name, operator, True, None, None, 0, 0, 0.0, 0.0, "kept: nothing is known of its plugin")
    after = cost_model.cost([_plugin(node, found, facts)], device, lambda value: True)
    keep = facts.refusal is None and after.seconds <= before.seconds * (1 - MARGIN)
    return Decision(
        name,
        operator,
        keep,
        round(1e6 * before.seconds, 2),
        round(1e6 * after.seconds, 2),
        before.launches,
        after.launches,
        round(before.bytes / 1e6, 3),
        round(after.bytes / 1e6, 3),
        _reason(facts, before, after, keep, found.products(name) > 0),
    )


def _plugin(node: NodeProto, found: _Neighbourhood, facts: PluginFacts) -> cost_model.Step:
    makes = {value: found.size(value) for value in node.output if value}
    reads = {source: found.size(source) for value in node.input if value for source in [found.source(value)]}
    for table in facts.tables:
        reads[found.source(table)] = min(found.size(found.source(table)), max(makes.values(), default=0))
    half = found.operator_type(node.name) in _HALF
    return cost_model.Step(
        "plugin", reads, makes, found.products(node.name), half, launches=facts.launches, scratch=facts.scratch
    )


def _reason(facts: PluginFacts, before: cost_model.Cost, after: cost_model.Cost, keep: bool, has_products: bool) -> str:
    if facts.refusal is not None:
        return f"the plugin has no kernel for it: {facts.refusal}"
    figures = f"{_added(before)}; the plugin takes {_kernels(after.launches)} and {after.bytes / 1e6:.1f} MB"
    if keep:
        return figures
    if after.seconds < before.seconds:
        return f"it saves less than {MARGIN:.0%}: {figures}"
    is_less = after.bytes <= before.bytes and after.launches <= before.launches
    why = (
        "its products are slower than TensorRT's"
        if is_less and has_products
        else "TensorRT chains it with its neighbours"
    )
    return f"{why}: {figures}"


def _added(before: cost_model.Cost) -> str:
    if before.launches >= 0:
        return f"TensorRT adds {_kernels(before.launches)} and {before.bytes / 1e6:.1f} MB"
    return f"with it TensorRT joins its neighbours and needs {_kernels(-before.launches)} less"


def _kernels(count: int) -> str:
    return f"{count} {'kernel' if count == 1 else 'kernels'}"
