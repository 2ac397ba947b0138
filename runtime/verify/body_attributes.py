"""Whether a body computes what the attributes of its node say: it is run beside the body that this version writes for them.

How a body is written does not count, so that what an older version wrote is right as long as it computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper

from onnx_fuse.patterns.language.declaration import Declaration
from onnx_fuse.patterns.language.operator import FusedOp
from onnx_fuse.runtime.onnxruntime import sessions

_MAGNITUDES = (1.0, 1e-3)
# Numbers around 1, and numbers beside which an epsilon counts.
_TOLERANCES: dict[int, float] = {TensorProto.FLOAT: 1e-4, TensorProto.FLOAT16: 2e-2}
_WORDS = (
    *("none", "layer", "rms", "group", "upper_left", "lower_right", "nan", "zero", "uniform", "BSH", "BHSD", "silu"),
    *("outside_alpha", "inside_alpha", "sigmoid", "level_softmax", "lower", "upper", "first", "last", "truncate"),
)
# What string attributes of the operators may say.
_SEED = 2026
_SMALLEST = 4
# Of the sizes that are free; ids and lengths are less.

Remake = Callable[[NodeProto], "FunctionProto | None"]
Inputs = Mapping[str, np.ndarray]


def contradicted(
    operator: FusedOp, node: NodeProto, body: FunctionProto, made: FunctionProto, dtype: int, remake: Remake
) -> tuple[str, ...]:
    """The attributes that a body does not go by; none where it computes what they say, or where that cannot be told.

    Args:
        body: the body in the file.
        made: the body that this version writes for the node's attributes.
        dtype: element type of the node, a TensorProto.DataType.
        remake: writes it for another node.
    """
    if operator.declaration is None or dtype not in _TOLERANCES:
        return ()
    names = list(made.input)
    try:
        draws = [_drawn(operator.declaration, node, names, dtype, magnitude) for magnitude in _MAGNITUDES]
    except (LookupError, StopIteration, ValueError):  # inputs that a node of this kind does not have
        return ()
    wanted = [_run(node, made, draw) for draw in draws]
    found = [_run(node, body, draw) for draw in draws]
    if any(item is None for item in wanted) or _agree(found, wanted, dtype):
        return ()
    for name, other in _others(operator, node):
        alike = remake(other)
        if alike is not None and _agree([_run(other, alike, draw) for draw in draws], found, dtype):
            return (name,)
    read = _references(body)
    unread = _references(made) - read or {*operator.attributes} - read
    return tuple(name for name in operator.attributes if name in unread)


def _others(operator: FusedOp, node: NodeProto) -> Iterator[tuple[str, NodeProto]]:
    """The node with another value of an attribute that bodies are written for, and the attribute's name."""
    numbers = sorted({0, 1, 2, *(item.i for item in node.attribute if item.type == AttributeProto.INT)})
    for place, attribute in enumerate(node.attribute):
        if attribute.name not in operator.attributes:
            continue
        values: Iterable[int | str] = ()
        if attribute.type in (AttributeProto.STRING, AttributeProto.INT):
            values = _WORDS if attribute.type == AttributeProto.STRING else numbers
        for value in values:
            other = NodeProto()
            other.CopyFrom(node)
            other.attribute[place].CopyFrom(helper.make_attribute(attribute.name, value))
            if other.attribute[place] != attribute:
                yield attribute.name, other


def _references(body: FunctionProto) -> set[str]:
    """Attributes of the node that a body reads."""
    return {item.ref_attr_name for node in body.node for item in node.attribute if item.ref_attr_name}


def _agree(found: Sequence[Any], wanted: Sequence[Any], dtype: int) -> bool:
    return all(_close(*pair, _TOLERANCES[dtype]) for pair in zip(found, wanted, strict=True))


def _close(found: list[np.ndarray] | None, wanted: list[np.ndarray] | None, tolerance: float) -> bool:
    """Whether outputs are the same within a share of their greatest number; None is of a body that does not run."""
    if found is None or wanted is None or [item.shape for item in found] != [item.shape for item in wanted]:
        return False
    for left, right in zip(found, wanted, strict=True):
        finite = np.isfinite(right)
        scale = float(np.abs(right, where=finite, out=np.zeros(right.shape)).max(initial=0.0))
        if not np.allclose(left, right, rtol=0, atol=tolerance * scale, equal_nan=True):
            return False
    return True


def _drawn(declaration: Declaration, node: NodeProto, names: Sequence[str], dtype: int, magnitude: float) -> Inputs:
    """Inputs of sizes that the attributes allow."""
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    attributes = {key: value.decode() if isinstance(value, bytes) else value for key, value in attributes.items()}
    given = declaration.given(attributes, names)
    sizes = {size: int(attributes[name]) for size, name in declaration.sizes.items()}
    shapes = {name: declaration.tensor(name).shapes_of(given, name)[0] for name in names}
    random = np.random.default_rng(_SEED)
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    drawn: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        for factor in (factor for axis in shape.axes for factor in axis.factors):
            sizes.setdefault(factor, max(declaration.least.get(factor, 0), _SMALLEST + len(sizes) % 4))
        dims = [*(2, 3) * shape.rest, *(axis.size(sizes) or 0 for axis in shape.axes)]
        types = declaration.tensor(name).types
        if "T" in types and "bool" not in types:
            drawn[name] = (random.standard_normal(dims) * magnitude).astype(kind)
        elif "bool" in types:
            drawn[name] = random.random(dims) < 0.5
        elif "float32" in types:
            drawn[name] = (random.standard_normal(dims) * magnitude).astype(np.float32)
        else:
            drawn[name] = random.integers(0, _SMALLEST, dims).astype(np.int64 if "int64" in types else np.int32)
    return drawn


def _run(node: NodeProto, body: FunctionProto, inputs: Inputs) -> list[np.ndarray] | None:
    """The outputs of a node with a body; None where ONNX Runtime does not run it."""
    call = NodeProto()
    call.CopyFrom(node)
    call.input[:], call.output[:] = list(body.input), list(body.output)
    function = FunctionProto()
    function.CopyFrom(body)
    call.overload = function.overload = ""
    opset = max(item.version for item in body.opset_import if item.domain in ("", "ai.onnx"))
    taken = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(item.dtype), item.shape)
        for name, item in inputs.items()
    ]
    made = [helper.make_empty_tensor_value_info(name) for name in body.output]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(node.domain, 1)]
    graph = helper.make_graph([call], "one", taken, made)
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    for value in model.graph.output:
        value.type.tensor_type.elem_type = next(
            (helper.np_dtype_to_tensor_dtype(item.dtype) for item in inputs.values() if item.dtype.kind == "f"),
            TensorProto.FLOAT,
        )
    try:
        return [np.asarray(item) for item in sessions.session(model, threads=1).run(None, dict(inputs))]
    except Exception:  # ONNX Runtime raises a dozen unrelated types, none of them public
        return None
