"""Float32 models in float16 or bfloat16, for networks whose types are the model's (TensorRT 10 strongly typed, 11, RTX).

Types change, names do not: a value that a node now makes in the narrow type is called `VALUE__float16`, and where something
still needs the float32 value, a Cast makes it under its old name. Inputs, outputs, weights and subgraphs stay as they are;
weights are cast where they are read, and TensorRT folds those casts while it builds. So weights in external data are never
loaded here.

Which type a node computes in:

- products (`PRODUCTS`) and fused nodes: the narrow one; the plugins compute in float32 inside, and what they take in float32
  (`FusedOp.float32_inputs`) stays so where it is a vector or is float32 anyway;
- what loses digits or overflows (`SENSITIVE`: sums, exponentials, roots, norms, softmax), Q/DQ and what reads them, nodes with
  subgraphs, operators that ONNX does not have: float32;
- everything else: float32 where it continues a float32 computation, that is, reads what a float32 node made piece by piece (a
  norm or softmax that an exporter wrote out), or a constant beyond the narrow type's range (an epsilon, a mask's -3.4e38); else the
  narrow type. A complete norm or softmax (`COMPLETE`) begins nothing that must be continued.

ONNX must allow the type for the operator in the model's opset; where it does not, the node stays float32 and is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper, numpy_helper

from onnx_fuse.errors import ModelError, UsageError
from onnx_fuse.passes.files.checker import one_sentence
from onnx_fuse.passes.files.external_data import read_small, tensors
from onnx_fuse.passes.graph.confined import Exceeded
from onnx_fuse.passes.graph.function_bodies import import_domain
from onnx_fuse.passes.graph.node import ONNX_DOMAINS
from onnx_fuse.passes.graph.onnx_inference import infer_shapes, without_weights
from onnx_fuse.passes.graph.subgraphs import captures, subgraphs
from onnx_fuse.patterns import fusions

NARROW: dict[str, int] = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
"""Precision -> the type it converts to."""

PRODUCTS = frozenset({"Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
COMPLETE = frozenset(
    {
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization"),
        *("MeanVarianceNormalization", "RMSNormalization", "LogSoftmax", "Softmax", "GRU", "LSTM", "RNN"),
    }
)
SENSITIVE = COMPLETE | {
    *(
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
    ),
    *("CumSum", "Exp", "Log", "Pow", "Reciprocal", "Softplus", "Sqrt", "Range"),
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear", "If", "Loop", "Scan", "SequenceMap"),
}

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_CHECKED_ELEMENTS = 1 << 16
_TYPE_TEXT: dict[int, str] = {TensorProto.FLOAT16: "tensor(float16)", TensorProto.BFLOAT16: "tensor(bfloat16)"}


@dataclass(frozen=True)
class Converted:
    """A model in a narrower type.

    Attributes:
        model: the model.
        narrow, wide: nodes that compute in the narrow type, and nodes that still compute in float32.
        kept: reason -> number of nodes that stay float32 although their kind need not.
        values: names of the values that are in the narrow type.
    """

    model: ModelProto
    narrow: int
    wide: int
    kept: Mapping[str, int]
    values: frozenset[str]


def precision_of(model: ModelProto) -> str:
    """The float type that most weights have: "float32", "float16" or "bfloat16"."""
    names: dict[int, str] = {TensorProto.FLOAT: "float32", **{number: name for name, number in NARROW.items()}}
    count = dict.fromkeys(names.values(), 0)
    for tensor in model.graph.initializer:
        if tensor.data_type in names:
            count[names[tensor.data_type]] += int(np.prod(tensor.dims, dtype=np.int64))
    return max(count, key=lambda name: count[name])


def quantized_types(model: ModelProto) -> set[str]:
    """What the Q/DQ nodes of a model quantise to: "int8", "fp8"."""
    if not any(node.op_type in _QUANTIZERS for node in model.graph.node):
        return set()
    kinds: dict[int, str] = {TensorProto.INT8: "int8", TensorProto.FLOAT8E4M3FN: "fp8"}
    return {kinds[tensor.data_type] for tensor, _ in tensors(model) if tensor.data_type in kinds}


def convert(model: ModelProto, precision: str, *, base_dir: str | Path | None = None) -> Converted:
    """A copy of a float32 model that computes in `precision`; see the module.

    Args:
        model: functions in it must be bodies of fused nodes (`plugin_namespace`); those nodes are converted where their body is
            valid in the narrow type, others stay float32.
        precision: "float16" or "bfloat16".
        base_dir: folder of external data, of which small constants are read.

    Raises:
        UsageError: the model is in another narrow type already.
        ModelError: its types contradict each other.
    """
    held = precision_of(model)
    if held not in ("float32", precision):
        raise UsageError(f"The model is in {held}, which is not converted to {precision}.", "Export it in float32.")
    result = ModelProto()
    result.CopyFrom(model)
    return _Conversion(result, precision, Path(base_dir or ".")).run()


class _Conversion:
    """Walks the main graph once, in its order. `wide` are the float32 values that are continued in float32."""

    def __init__(self, model: ModelProto, precision: str, folder: Path) -> None:
        self.model, self.graph, self.folder = model, model.graph, folder
        self.type, self.suffix = NARROW[precision], f"__{precision}"
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), default=0)
        self.types = _types(model)
        self.functions = {(item.domain, item.name, item.overload): item for item in model.functions}
        self.operators = {(one.operator.domain, one.operator.name): one.operator for one in fusions()}
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.constants: dict[str, TensorProto | None] = dict(self.initializers)
        self.wide: set[str] = set()
        self.quantized: set[str] = set()
        self.made: dict[str, str] = {}  # value -> its narrow form
        self.nodes: list[NodeProto] = []
        self.kept: Counter[str] = Counter()
        self.names = {name for node in self.graph.node for name in (*node.input, *node.output)} | set(self.initializers)

    def run(self) -> Converted:
        wanted = {value.name for value in self.graph.output}
        for node in self.graph.node:
            wanted.update(name for _, inner in subgraphs(node) for name in captures(inner))
        nodes = list(self.graph.node)
        narrow = [self._decide(node) for node in nodes]
        computing = sum(bool(self._floats(node.output)) and not self._is_made_of_constants(node) for node in nodes)
        for node, is_narrow in zip(nodes, narrow, strict=True):
            if not is_narrow:
                wanted.update(node.input)
        for node, is_narrow in zip(nodes, narrow, strict=True):
            if is_narrow:
                self._convert(node, wanted)
            else:
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        values = frozenset(self.made.values())
        return Converted(self.model, sum(narrow), computing - sum(narrow), dict(self.kept), values)

    # --- which type ----------------------------------------------------------------------------------------------------

    def _decide(self, node: NodeProto) -> bool:
        """Whether a node computes in the narrow type; notes what its outputs are for the nodes after it."""
        if self._is_made_of_constants(node):
            return False
        narrow = bool(self._floats(node.output)) and self._may_be_narrow(node)
        if not narrow and node.op_type not in COMPLETE:
            self.wide.update(self._floats(node.output))
        if node.op_type == "DequantizeLinear" or (node.op_type in _MOVES and self.quantized.intersection(node.input)):
            self.quantized.update(node.output)
        return narrow

    def _may_be_narrow(self, node: NodeProto) -> bool:
        fused = _namespace(node) != ""
        if any(True for _ in subgraphs(node)) or any(name and name not in self.types for name in node.input):
            return False
        if not fused and (node.domain not in ONNX_DOMAINS or node.op_type in SENSITIVE):
            return False
        if node.op_type in ("Cast", "ConstantOfShape") and not self._floats(node.input):
            return False  # from integers: ids, masks and sizes are exact only in float32
        inputs = self._narrowed(node)
        if not fused and node.op_type not in PRODUCTS and self.wide.intersection(inputs):
            return False
        if self.quantized.intersection(inputs):
            return False
        if any(not self._fits(name) for name in inputs):
            return False
        if fused:
            return self._body_allows(node, set(inputs)) or self._keep(
                f"{node.op_type} is not known to take another type"
            )
        if not _allows(node.op_type, self.opset, self.type):
            kind = TensorProto.DataType.Name(self.type).lower()
            return self._keep(f"ONNX has no {node.op_type} in {kind} in opset {self.opset}")
        return True

    def _keep(self, reason: str) -> bool:
        self.kept[reason] += 1
        return False

    def _narrowed(self, node: NodeProto) -> list[str]:
        """Those of the inputs that a narrow node takes in the narrow type."""
        if _namespace(node):
            operator = self.operators.get((node.domain, node.op_type))
            names = _text(node, "inputs").split(",")
            either = [] if operator is None else [bool(operator.may_be_float32(name)) for name in names]
            keep = {name for name, free in zip(node.input, either, strict=False) if free and self._stays_float32(name)}
            return [name for name in self._floats(node.input) if name not in keep]
        fixed = _fixed_inputs(node.op_type, self.opset)
        return [name for index, name in enumerate(node.input) if self._floats([name]) and index not in fixed]

    def _stays_float32(self, name: str) -> bool:
        constant = self.constants.get(name)
        return name in self.wide or (constant is not None and len(constant.dims) < 2)

    def _fits(self, name: str) -> bool:
        """Whether a constant, if it is one, keeps its meaning in the narrow type: nothing overflows, and no number becomes 0."""
        tensor = self.constants.get(name)
        array = None if tensor is None else read_small(tensor, self.folder, _CHECKED_ELEMENTS)
        if array is None:
            return True
        limits = ml_dtypes.finfo(helper.tensor_dtype_to_np_dtype(self.type))
        size = np.abs(array[np.isfinite(array) & (array != 0)])
        if not size.size:
            return True
        return float(size.max()) <= float(limits.max) and (array.size > 1 or float(size.min()) >= float(limits.tiny))

    def _body_allows(self, node: NodeProto, narrowed: set[str]) -> bool:
        """Whether the fused node's body makes the narrow type of narrow inputs. Without a body the operator must be one of ours."""
        function = self.functions.get((node.domain, node.op_type, node.overload))
        if function is None:
            return (node.domain, node.op_type) in self.operators
        kinds = [self.type if name in narrowed else self.types[name].tensor_type.elem_type for name in node.input]
        made = _made_types(node, function, [self.types[name] for name in node.input], kinds, self.model)
        return all(kind == self.type for kind in made)

    # --- the change ----------------------------------------------------------------------------------------------------

    def _convert(self, node: NodeProto, wanted: set[str]) -> None:
        narrowed = set(self._narrowed(node))
        for index, name in enumerate(node.input):
            if name in narrowed:
                node.input[index] = self._narrow_form(name)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = self.type
        casts = []
        for index, name in enumerate(node.output):
            if self._floats([name]):
                node.output[index] = self._new_name(name)
                if name in wanted:
                    casts.append(_cast(node.output[index], name, TensorProto.FLOAT))
        self.nodes.append(node)
        self.nodes.extend(casts)

    def _narrow_form(self, name: str) -> str:
        if name not in self.made:
            self.nodes.append(_cast(name, self._new_name(name), self.type))
        return self.made[name]

    def _new_name(self, name: str) -> str:
        new = name + self.suffix
        while new in self.names:
            new += "_"
        self.names.add(new)
        self.made[name] = new
        return new

    # --- the values ----------------------------------------------------------------------------------------------------

    def _is_made_of_constants(self, node: NodeProto) -> bool:
        """Whether a node makes the same whatever the inputs are; what it makes has no type of its own."""
        if node.op_type == "Constant" and node.domain in ONNX_DOMAINS:
            value = next((attribute for attribute in node.attribute if attribute.name.startswith("value")), None)
            self.constants.setdefault(node.output[0], None if value is None else _constant(value))
            return True
        if not node.input or node.op_type in _QUANTIZERS or _namespace(node):
            return False
        constant = all(name in self.constants for name in node.input if name)
        if constant:
            for name in node.output:
                self.constants.setdefault(name, None)
        return constant

    def _floats(self, names: Iterable[str]) -> list[str]:
        """Those of the values that are float32 tensors."""
        return [name for name in names if name in self.types and _elem_type(self.types[name]) == TensorProto.FLOAT]


def rounded(converted: Converted, precision: str) -> ModelProto:
    """The float32 twin of a converted model: each narrow node computes in float32 and rounds what it makes to `precision`, as
    matrix products on a GPU do, which sum in float32."""
    kind = NARROW[precision]
    twin = ModelProto()
    twin.CopyFrom(converted.model)
    nodes: list[NodeProto] = []
    for node in twin.graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name not in converted.values:
                continue
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to":
                    attribute.i = TensorProto.FLOAT
            node.output[index] = f"{name}.wide"
            nodes.append(_cast(f"{name}.wide", f"{name}.narrow", kind))
            nodes.append(
                helper.make_node("Cast", [f"{name}.narrow"], [name], name=f"{name}.back", to=TensorProto.FLOAT)
            )
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    return twin


def _types(model: ModelProto) -> dict[str, TypeProto]:
    """Value of the main graph -> its type, as far as ONNX can tell."""
    try:
        inferred = infer_shapes(without_weights(model)).graph
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        cause = f"The types in the model cannot be told: {one_sentence(error)}"
        raise ModelError(cause, "Check the model with onnx.checker, or keep its precision.") from error
    found = {value.name: value.type for value in (*inferred.value_info, *inferred.output, *inferred.input)}
    for tensor in model.graph.initializer:
        found[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    return {name: kind for name, kind in found.items() if _elem_type(kind)}


def _elem_type(kind: TypeProto) -> int:
    return kind.tensor_type.elem_type if kind.HasField("tensor_type") else TensorProto.UNDEFINED


@lru_cache(maxsize=1024)
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _parameters(schema: onnx.defs.OpSchema) -> dict[str, set[str]]:
    """Type parameter -> the types it may be."""
    return {one.type_param_str: set(one.allowed_type_strs) for one in schema.type_constraints}


@lru_cache(maxsize=1024)
def _fixed_inputs(op_type: str, opset: int) -> frozenset[int]:
    """Positions of inputs that the operator takes in float32 only, such as the scales of Resize."""
    schema = _schema(op_type, opset)
    inputs = () if schema is None else schema.inputs
    return frozenset(index for index, one in enumerate(inputs) if one.type_str == "tensor(float)")


@lru_cache(maxsize=1024)
def _allows(op_type: str, opset: int, kind: int) -> bool:
    """Whether every input and output that may be float32 may be of this type instead."""
    schema = _schema(op_type, opset)
    if schema is None:
        return False
    used = {one.type_str for one in (*schema.inputs, *schema.outputs)}
    floats = [allowed for name, allowed in _parameters(schema).items() if name in used and "tensor(float)" in allowed]
    return all(_TYPE_TEXT[kind] in allowed for allowed in floats)


def _made_types(
    node: NodeProto, function: FunctionProto, given: Sequence[TypeProto], kinds: Sequence[int], model: ModelProto
) -> list[int]:
    """Element types that a fused node's body makes of inputs of these element types; 0 where the body is not valid for them."""
    inputs = []
    for name, kind, elem_type in zip(function.input, given, kinds, strict=True):
        value = ValueInfoProto(name=name, type=kind)
        value.type.tensor_type.elem_type = elem_type
        inputs.append(value)
    call = NodeProto()
    call.CopyFrom(node)
    call.input[:], call.output[:] = function.input, function.output
    graph = helper.make_graph([call], "body", inputs, [ValueInfoProto(name=name) for name in function.output])
    alone = ModelProto(ir_version=model.ir_version, graph=graph, functions=[function], opset_import=model.opset_import)
    import_domain(alone.opset_import, function.domain)
    try:
        inferred = infer_shapes(alone, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, Exceeded):
        return [TensorProto.UNDEFINED]
    return [value.type.tensor_type.elem_type for value in inferred.graph.output]


def _constant(attribute: onnx.AttributeProto) -> TensorProto | None:
    if attribute.name == "value":
        return attribute.t
    if attribute.name in ("value_float", "value_floats"):
        return numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), np.float32))
    return None


def _text(node: NodeProto, name: str) -> str:
    return next((attribute.s.decode() for attribute in node.attribute if attribute.name == name), "")


def _namespace(node: NodeProto) -> str:
    return _text(node, "plugin_namespace")


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=kind)
