"""Constants that are computed: what follows from stored constants and known sizes alone, as an array.

This is the one place that says which operators are folded, how far, and by what. ONNX Runtime computes them, so that a folded
model and the original agree to the last bit. Whatever cannot be folded stays a node of the graph: nothing depends on folding but
convenience.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_fuse.passes.graph.constants import CONSTANT_LIMIT
from onnx_fuse.passes.graph.node import MadeNode, Node
from onnx_fuse.passes.graph.shapes.inference import UNKNOWN, Inference, Info, array_info
from onnx_fuse.passes.graph.shapes.rules import RULES
from onnx_fuse.passes.view.overlay import Overlay
from onnx_fuse.passes.view.stored_constants import StoredConstants

if TYPE_CHECKING:
    import onnxruntime as ort

_OPERATORS = (
    "Identity Reshape Transpose Squeeze Unsqueeze Flatten Concat Split Slice Expand Tile Pad Where Trilu "
    "Gather GatherElements GatherND ScatterElements ScatterND Shape Size ConstantOfShape Range "
    "Cast CastLike Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor Not IsNaN IsInf "
    "Add Sub Mul Div Mod Neg Abs Sign Min Max Sum Mean Clip Floor Ceil Round CumSum "
    "Pow Sqrt Reciprocal Exp Log Sin Cos Erf Tanh Sigmoid Softplus Relu Softmax MatMul Gemm "
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL2 ReduceSumSquare ArgMax ArgMin"
)
FOLDED = frozenset(_OPERATORS.split())
"""ONNX's operators that are folded: they give the same each time, and their rule tells how much before they run."""

_MOVES = frozenset({"Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
"""What they make of a constant is one, whatever it holds."""
_MOST_SESSIONS = 256
_LARGEST_EXACT = 1 << 53
"""Up to here every whole number is a Python float."""


class Folding:
    """The constants of a view, stored or computed.

    Args:
        overlay: the view's structure.
        stored: its stored constants.
        info: value -> what is known of its type, shape and content.
        attribute: (node, name) -> attribute value, with the schema's defaults.
    """

    def __init__(
        self,
        overlay: Overlay,
        stored: StoredConstants,
        info: Callable[[str], Info],
        attribute: Callable[[Node, str], Any],
    ) -> None:
        self._overlay = overlay
        self._stored = stored
        self._info = info
        self._attribute = attribute
        self._folded: dict[str, np.ndarray] = {}
        self._given_up: dict[str, int] = {}
        self._scalars: dict[str, float | None] = {}
        self._candidates: set[str] | None = None

    def constant(self, value: str, limit: int = CONSTANT_LIMIT) -> np.ndarray | None:
        """The value as an array if it is a constant, or is computed from constants and known sizes alone.

        None where it is not, is larger than `limit` elements, or lies in external data and is not small.
        """
        value = self._overlay.resolve(value)
        pending, entered = [value], set()
        while pending:
            name = pending[-1]
            if not self._is_settled(name, limit):
                needed = [item for item in self._needed(name, limit) if not self._is_settled(item, limit)]
                if needed and name not in entered:
                    entered.add(name)
                    pending.extend(reversed(needed))
                    continue
                result = self._compute(name, limit)
                if result is None:
                    self._given_up[name] = limit
                else:
                    self._folded[name] = result
            pending.pop()
        return self._found(value, limit)

    def scalar(self, value: str) -> float | None:
        """The number in a constant with one element, or None; None too for an integer that no float is."""
        value = self._overlay.resolve(value)
        if not value or not self._may_be_constant(value):
            return None
        if value not in self._scalars:
            self._scalars[value] = self._scalar(value)
        return self._scalars[value]

    def is_constant(self, value: str) -> bool:
        """Whether the value is stored, of whatever size and wherever it lies, or can be computed from what is."""
        value = self._overlay.resolve(value)
        while not self._stored.has(value) and self.constant(value) is None:
            # What is too large to be computed here, such as the weight of a Gemm that was turned, is constant all the same.
            node = self._overlay.producer(value)
            if node is None or node.domain or node.op_type not in _MOVES or not self._may_be_constant(value):
                return False
            if not all(self.is_constant(item) for item in node.inputs[1:] if item):
                return False
            value = self._overlay.resolve(node.inputs[0])
        return True

    def notice(self, node: MadeNode) -> None:
        """Says that a view-only node makes its output from now on."""
        if self._candidates is not None and all(self._may_be_constant(item) for item in node.inputs if item):
            self._candidates.add(node.outputs[0])

    def evaluate(self, node: Node, feeds: Mapping[str, np.ndarray], limit: int) -> dict[str, np.ndarray]:
        """What ONNX Runtime makes of an array for each input of a node, by output name.

        Nothing where it cannot tell, where the standard leaves the result open, or where an output has more than `limit`
        elements: their number is worked out from the arrays before anything runs.
        """
        if any(item.ref_attr_name or item.HasField("g") for item in node.proto.attribute):
            return {}
        names = [name for name in node.outputs if name]
        sizes = Inference(
            RULES,
            lambda value: node if value in names else None,
            lambda value: array_info(feeds[value], _kind(feeds[value])),
            lambda value: UNKNOWN,
            self._attribute,
            feeds.get,
        )
        infos = [sizes.info(name) for name in names]
        if not all(info.dtype and _is_within(info, limit) for info in infos) or not _is_defined(node, feeds, infos[0]):
            return {}
        opset = self._overlay.graph.opset() or onnx.defs.onnx_opset_version()
        session = _session(
            _numbered(node, list(feeds)), tuple(map(_kind, feeds.values())), tuple(info.dtype for info in infos), opset
        )
        if session is None:
            return {}
        try:
            arrays = session.run(None, {f"i{number}": _widened(array) for number, array in enumerate(feeds.values())})
        except Exception:
            return {}  # a node that fails when the model runs
        if any(array.shape != info.shape for array, info in zip(arrays, infos, strict=True)):
            return {}  # the standard has more than one reading
        kinds = [helper.tensor_dtype_to_np_dtype(info.dtype) for info in infos]
        return {name: array.astype(kind, copy=False) for name, array, kind in zip(names, arrays, kinds, strict=True)}

    def _scalar(self, value: str) -> float | None:
        tensor = self._overlay.graph.tensor(value)
        if tensor is not None and any(dim != 1 for dim in tensor.dims):
            return None
        array = self.constant(value)
        if array is None or array.size != 1 or array.dtype.kind not in "fiubV":  # V: bfloat16
            return None
        element = array.reshape(-1)[0]
        if array.dtype.kind in "iu" and abs(int(element)) > _LARGEST_EXACT:
            return None
        return float(element)

    def _may_be_constant(self, value: str) -> bool:
        """A look that costs nothing: whether a value is stored, or made of what may be constant or of sizes."""
        graph = self._overlay.graph
        if self._candidates is None:
            self._candidates = {"", *graph.initializers}  # an input that is absent keeps nothing from being constant
            for node in graph.nodes:
                if node.op_type in ("Shape", "Size", "Constant") or self._candidates.issuperset(node.inputs):
                    self._candidates.update(node.outputs)
            for made in self._overlay.made_nodes():
                self.notice(made)
        if value in self._candidates:
            return True
        return value not in graph.producers and self._stored.has(value)

    def _is_settled(self, value: str, limit: int) -> bool:
        """Whether nothing is left to be computed to say what a value is."""
        return (
            value in self._folded or self._given_up.get(value, -1) >= limit or self._overlay.array_of(value) is not None
        )

    def _found(self, value: str, limit: int) -> np.ndarray | None:
        own = self._overlay.array_of(value)
        if own is not None:
            return own
        found = self._folded.get(value)
        return found if found is None or found.size <= limit else None

    def _foldable(self, value: str, limit: int) -> Node | None:
        """The node that a value can be folded from, as far as sizes tell; None where it cannot."""
        node = self._overlay.producer(value)
        if node is None or node.domain or node.op_type not in FOLDED or not self._may_be_constant(value):
            return None
        size = 1
        for dim in self._info(value).shape or ():
            size *= dim if isinstance(dim, int) else limit + 1
        return node if size <= limit else None

    def _needed(self, value: str, limit: int) -> list[str]:
        """What has to be folded before a value."""
        if self._overlay.graph.tensor(value) is not None or self._known_content(value) is not None:
            return []
        node = self._foldable(value, limit)
        return [] if node is None else [self._overlay.resolve(item) for item in node.inputs if item]

    def _known_content(self, value: str) -> np.ndarray | None:
        """A small integer tensor whose elements follow from shapes."""
        if self._overlay.producer(value) is None or not self._may_be_constant(value):
            return None
        info = self._info(value)
        if info.content is None or info.shape is None or not all(isinstance(item, int) for item in info.content):
            return None
        dtype = helper.tensor_dtype_to_np_dtype(info.dtype) if info.dtype else np.dtype(np.int64)
        return np.array(info.content, dtype=dtype).reshape([int(str(dim)) for dim in info.shape])

    def _compute(self, value: str, limit: int) -> np.ndarray | None:
        tensor = self._overlay.graph.tensor(value)
        if tensor is not None:
            return self._stored.decoded(tensor, limit)
        content = self._known_content(value)
        if content is not None:
            return content
        node = self._foldable(value, limit)
        if node is None:
            return None
        feeds: dict[str, np.ndarray] = {}
        for item in node.inputs:
            if item:
                array = self._found(self._overlay.resolve(item), limit)
                if array is None:
                    return None
                feeds[item] = array
        return self.evaluate(node, feeds, limit).get(value)


def _numbered(node: Node, inputs: Sequence[str]) -> bytes:
    """The node with inputs i0, i1, ... and outputs o0, o1, ..., so that one session serves all that are alike."""
    outputs = [name for name in node.outputs if name]
    made = onnx.NodeProto(op_type=node.op_type, attribute=node.proto.attribute)
    made.input.extend(f"i{inputs.index(name)}" if name else "" for name in node.inputs)
    made.output.extend(f"o{outputs.index(name)}" if name else "" for name in node.outputs)
    return made.SerializeToString(deterministic=True)


def _kind(array: np.ndarray) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def _is_within(info: Info, limit: int) -> bool:
    size = 1
    for dim in (-1,) if info.shape is None else info.shape:
        if not isinstance(dim, int) or dim < 0:
            return False
        size *= dim
    return size <= limit


def _is_defined(node: Node, feeds: Mapping[str, np.ndarray], made: Info) -> bool:
    """Whether the result is the same on every machine: C++ leaves some casts and divisions of integers open, or traps them."""
    arrays = [feeds[name] for name in node.inputs if name]
    first = arrays[0] if arrays else None
    if first is None:
        return True
    if node.op_type in ("Cast", "CastLike") and first.dtype.kind in "fV":
        target = helper.tensor_dtype_to_np_dtype(made.dtype)
        if target.kind in "iu":
            limits = np.iinfo(target)
            wide = first.astype(np.float64)
            return bool(np.all((wide > float(limits.min) - 1) & (wide < float(limits.max))))
        return target.kind in "fVb"
    if node.op_type in ("Div", "Mod") and first.dtype.kind in "iu":
        lowest = bool(np.any(first == np.iinfo(first.dtype).min))
        return bool(np.all(arrays[1] != 0)) and not (lowest and bool(np.any(arrays[1] == -1)))
    if node.op_type == "Pow":
        return first.dtype.kind == "f"
    if node.op_type.startswith(("Reduce", "Arg")):
        return first.size > 0
    return True


def _widened(array: np.ndarray) -> np.ndarray:
    """The array, bfloat16 as float32: numpy and ONNX Runtime share no bfloat16."""
    return array.astype(np.float32) if array.dtype.kind == "V" else array


@lru_cache(maxsize=_MOST_SESSIONS)
def _session(node: bytes, kinds: tuple[int, ...], made: tuple[int, ...], opset: int) -> ort.InferenceSession | None:
    """A session of one node, with inputs i0, i1, ... and outputs o0, o1, ...; None where ONNX Runtime does not have it."""
    import onnxruntime as ort  # only where something is folded: it takes time

    proto = onnx.NodeProto.FromString(node)
    before, after, inputs, outputs = [], [], [], []
    for number, kind in enumerate(kinds):
        name = f"i{number}"
        if kind == TensorProto.BFLOAT16:
            before.append(helper.make_node("Cast", [name], [f"{name}n"], to=kind))
            proto.input[:] = [f"{name}n" if item == name else item for item in proto.input]
        inputs.append(helper.make_tensor_value_info(name, _wide(kind), None))
    for number, kind in enumerate(made):
        name = f"o{number}"
        if kind == TensorProto.BFLOAT16:
            after.append(helper.make_node("Cast", [f"{name}n"], [name], to=TensorProto.FLOAT))
            proto.output[:] = [f"{name}n" if item == name else item for item in proto.output]
        outputs.append(helper.make_tensor_value_info(name, _wide(kind), None))
    graph = helper.make_graph([*before, proto, *after], "fold", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime raises a dozen unrelated types, none of them public
        return None


def _wide(kind: int) -> int:
    return TensorProto.FLOAT if kind == TensorProto.BFLOAT16 else kind
