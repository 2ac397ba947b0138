"""Holds a fused node against its operator's declaration, and what ONNX's shape inference says it makes against the graph."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from onnx import FunctionProto, ModelProto, TensorProto, TypeProto, ValueInfoProto, helper

from onnx_fuse.passes.graph.confined import Exceeded
from onnx_fuse.passes.graph.function_bodies import import_domain
from onnx_fuse.passes.graph.onnx_inference import infer_shapes
from onnx_fuse.passes.graph.shapes.inference import Info
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.body import CAST_LIKE_SINCE
from onnx_fuse.patterns.language.declaration import Misfit
from onnx_fuse.patterns.language.operator import Fused, FusedOp, type_name

_LONGEST = 1 << 16
_TYPES = {
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}
_FUNCTION_IR = 8


def disagreement(operator: FusedOp, fused: Fused, outputs: Mapping[str, str], view: View) -> str | None:
    """Why the operator does not take these inputs, or its body does not give the types and shapes its outputs have in the graph;
    None where it does.

    A dimension that either side does not know is not held against the match.
    """
    dtype = view.dtype(next(iter(outputs.values())))
    if operator.types is not None and dtype and dtype not in operator.types:
        allowed = ", ".join(sorted(type_name(item) for item in operator.types))
        return f"its type is {type_name(dtype)}, {operator.name} is for {allowed}"
    infos = {name: view.info(value) for name, value in fused.inputs.items() if value}
    made = [name for name in operator.outputs if name in outputs]
    if not dtype and view.graph.opset() < CAST_LIKE_SINCE:
        return f"the type of {outputs[made[0]]} is not known, and opset {view.graph.opset()} has no CastLike"
    wanted = {name: view.info(outputs[name]) for name in made}
    case = _case(operator, fused, infos, wanted)
    if case in view.agreed:
        return None  # another layer of the same make was found to agree
    undeclared = _undeclared(operator, fused, infos, dtype)
    if undeclared is not None:
        return f"{operator.name} does not take its inputs: {undeclared}"
    function = operator.make_function(operator.present(fused.inputs), made, fused.attributes, view.graph.opsets, dtype)
    empty = next((fused.inputs[name] for name, info in infos.items() if info.shape and 0 in info.shape), None)
    if empty is not None:
        return f"{empty} has no elements"
    if any(not info.dtype for info in infos.values()):
        return None
    try:
        inferred = _infer(operator, fused, infos, made, function, view.graph.opsets)
    except Exceeded as error:
        return f"the shapes in the body of {operator.name} cannot be worked out: {error}"
    for name in made:
        value = outputs[name]
        want, have = wanted[name], inferred.get(name)
        if have is None:
            continue
        if want.dtype and have.tensor_type.elem_type and want.dtype != have.tensor_type.elem_type:
            return f"{value} is {type_name(want.dtype)}, {operator.name} makes {type_name(have.tensor_type.elem_type)}"
        if want.shape is None or not have.tensor_type.HasField("shape"):
            continue
        dims = have.tensor_type.shape.dim
        found = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]
        if len(found) != len(want.shape) or any(
            isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(found, want.shape, strict=False)
        ):
            expected = ", ".join(map(str, want.shape))
            return f"{value} has shape [{expected}], {operator.name} makes [{', '.join(map(str, found))}]"
    view.agreed.add(case)
    return None


def _undeclared(operator: FusedOp, fused: Fused, infos: Mapping[str, Info], dtype: int) -> str | None:
    """What of the inputs' types and shapes the operator's declaration does not allow."""
    declaration = operator.declaration
    if declaration is None:
        return None
    for name, info in infos.items():
        types = declaration.tensor(name).types
        allowed = {dtype if item == "T" else _TYPES[item] for item in types}
        if info.dtype and dtype and info.dtype not in allowed:
            return f"{name} is {type_name(info.dtype)}, allowed is {' or '.join(types)} with T = {type_name(dtype)}"
    shapes = {
        name: [dim if isinstance(dim, int) else None for dim in info.shape]
        for name, info in infos.items()
        if info.shape is not None
    }
    try:
        declaration.bound(shapes, fused.attributes, infos)
    except Misfit as error:
        return str(error)
    return None


def _case(operator: FusedOp, fused: Fused, infos: Mapping[str, Info], wanted: Mapping[str, Info]) -> Hashable:
    """Everything the answer depends on."""
    shapes = [(name, info.dtype, info.shape) for group in (infos, wanted) for name, info in group.items()]
    return operator.domain, operator.name, repr(sorted(fused.attributes.items())), *shapes


def _infer(
    operator: FusedOp,
    fused: Fused,
    infos: Mapping[str, Info],
    made: list[str],
    function: FunctionProto,
    opsets: Mapping[str, int],
) -> dict[str, TypeProto]:
    present = operator.present(fused.inputs)
    node = operator.make_node(
        {name: name for name in present}, {name: name for name in made}, fused.attributes, "fused"
    )
    graph = helper.make_graph(
        [node],
        "fused",
        [_value_info(name, infos[name]) for name in present],
        [ValueInfoProto(name=name) for name in made],
    )
    model = ModelProto(ir_version=_FUNCTION_IR, graph=graph)
    for domain, version in opsets.items():
        import_domain(model.opset_import, domain, version)
    import_domain(model.opset_import, operator.domain)
    model.functions.append(function)
    # ONNX follows the elements of vectors one by one, and those of a body are as long as its inputs.
    sizes = [dim for info in infos.values() for dim in info.shape or () if isinstance(dim, int)]
    inferred = infer_shapes(model, data_prop=max(sizes, default=0) <= _LONGEST)
    return {value.name: value.type for value in inferred.graph.output}


def _value_info(name: str, info: Info) -> ValueInfoProto:
    shape = None if info.shape is None else [dim if isinstance(dim, int) else str(dim) for dim in info.shape]
    return helper.make_tensor_value_info(name, info.dtype, shape)
