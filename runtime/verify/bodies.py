"""The bodies that the attributes of fused nodes call for, for nodes whose body in the file is another or is left out.

A plugin goes by a node's attributes, ONNX Runtime by its body: that both say the same is what makes a comparison in ONNX Runtime
worth anything for TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper

from onnx_fuse.errors import PatternError
from onnx_fuse.passes.graph.function_bodies import add_bodies
from onnx_fuse.passes.graph.inlining import nodes_of
from onnx_fuse.patterns import fusions
from onnx_fuse.patterns.language.body import CAST_LIKE_SINCE
from onnx_fuse.patterns.language.operator import FLOATS, FusedOp
from onnx_fuse.runtime.verify import body_attributes

_OVERLOAD = "by_attributes_"


@dataclass(frozen=True)
class Contradiction:
    """A fused node whose attributes and body say different things, as in a file that was edited.

    Attributes:
        node, op_type: its name (or its first output) and operator.
        attributes: those that the body does not go by; all of the operator's where that is not clear.
    """

    node: str
    op_type: str
    attributes: Mapping[str, Any]

    @property
    def sentence(self) -> str:
        """What is wrong, as a sentence."""
        told = ", ".join(f"{name} = {value!r}" for name, value in self.attributes.items())
        one = len(self.attributes) == 1
        return (
            f"node {self.node} ({self.op_type}): attribute{'' if one else 's'} {told} {'says' if one else 'say'} "
            "something else than the body; TensorRT goes by the attributes, ONNX Runtime by the body"
        )


@dataclass(frozen=True)
class Bodies:
    """The model with bodies by attributes, where that makes a difference.

    Attributes:
        model: a copy with such bodies for the nodes below; None where there are no such nodes.
        missing: operators of nodes without any body.
        other: nodes with another body, as "OPERATOR NODE".
        contradicted: those of them whose body computes something else than the attributes say.
    """

    model: ModelProto | None
    missing: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    contradicted: tuple[Contradiction, ...] = ()


def by_attributes(model: ModelProto) -> Bodies:
    """Looks at every node of an operator that comes with onnx-fuse; operators of the user's own are not known here."""
    operators = {(item.operator.domain, item.operator.name): item.operator for item in fusions()}
    bodies = {(item.domain, item.name, item.overload): item for item in model.functions}
    types = _types(model)
    known: dict[bytes, FunctionProto | None] = {}
    judged: dict[bytes, tuple[str, ...]] = {}
    contradicted: list[Contradiction] = []
    missing: dict[str, None] = {}
    other: list[str] = []
    wanted: dict[str, FunctionProto] = {}  # first output -> the body to give to its node
    for node in _all_nodes(model):
        operator = operators.get((node.domain, node.op_type))
        if operator is None or not node.output:
            continue
        body = bodies.get((node.domain, node.op_type, node.overload))
        opset = _opset(model if body is None else body)
        # Without CastLike the element type is written into the body, where nothing else may tell it.
        told = TensorProto.FLOAT if opset >= CAST_LIKE_SINCE else types.get(node.output[0]) or _written(body)
        made = _made(operator, node, opset, told, known)
        if made is None or (body is not None and _same(body, made)):
            continue
        wanted[node.output[0]] = made
        if body is None:
            missing[node.op_type] = None
        else:
            name = node.name or node.output[0]
            other.append(f"{node.op_type} {name}")
            key = body.SerializeToString() + made.SerializeToString() + _by_attributes(node).SerializeToString()
            if key not in judged:
                remake = partial(_made, operator, opset=opset, dtype=told, known=known)
                judged[key] = body_attributes.contradicted(operator, node, body, made, told, remake)
            if judged[key]:
                values = _values(node)
                contradicted.append(
                    Contradiction(name, node.op_type, {each: values[each] for each in judged[key] if each in values})
                )
    return Bodies(_with(model, wanted) if wanted else None, tuple(missing), tuple(other), tuple(contradicted))


def _with(model: ModelProto, wanted: dict[str, FunctionProto]) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    overloads: dict[int, FunctionProto] = {}
    names: dict[int, str] = {}
    for node in _all_nodes(copy):
        made = wanted.get(node.output[0]) if node.output else None
        if made is None or (made.domain, made.name) != (node.domain, node.op_type):
            continue
        if id(made) not in overloads:
            body = FunctionProto()
            body.CopyFrom(made)
            names[id(made)] = body.overload = f"{_OVERLOAD}{len(overloads)}"
            overloads[id(made)] = body
        node.overload = names[id(made)]
    add_bodies(copy, overloads.values())
    return copy


def _made(
    operator: FusedOp, node: NodeProto, opset: int, dtype: int, known: dict[bytes, FunctionProto | None]
) -> FunctionProto | None:
    """The body that the attributes call for; None where they are not those of the operator, which running the model will tell."""
    values = _values(node)
    key = _by_attributes(node, f"{opset} {dtype}").SerializeToString(deterministic=True)
    if key not in known:
        try:
            attributes = {name: values[name] for name in operator.attributes}
            inputs, outputs = (values[side].split(",") for side in ("inputs", "outputs"))
            known[key] = operator.make_function(inputs, outputs, attributes, {"": opset}, dtype)
        except (PatternError, KeyError, AttributeError, TypeError, ValueError):
            known[key] = None
    return known[key]


def _values(node: NodeProto) -> dict[str, Any]:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in values.items()}


def _by_attributes(node: NodeProto, overload: str = "") -> NodeProto:
    """What of a node says which body it is to have."""
    return NodeProto(op_type=node.op_type, domain=node.domain, attribute=node.attribute, overload=overload)


def _same(body: FunctionProto, made: FunctionProto) -> bool:
    copy = FunctionProto()
    copy.CopyFrom(made)
    copy.overload = body.overload
    return copy == body


def _written(body: FunctionProto | None) -> int:
    """The type that a body casts to: float32 if it casts to no other."""
    types = [item.i for node in (body.node if body else ()) for item in node.attribute if item.name == "to"]
    return next((kind for kind in types if kind in FLOATS and kind != TensorProto.FLOAT), TensorProto.FLOAT)


def _opset(held: ModelProto | FunctionProto) -> int:
    return max((item.version for item in held.opset_import if item.domain in ("", "ai.onnx")), default=0)


def _types(model: ModelProto) -> dict[str, int]:
    values = (*model.graph.value_info, *model.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from nodes_of(model.graph.node)
    for function in model.functions:
        yield from nodes_of(function.node)
