"""PyTorch models that call a custom operator already: torch.onnx.export writes the fused node, with its body, straight away.

table = onnx_fuse.custom_op(torch.ops.mylib.sigmoid_attention, reference, (q, k, v), op="SigmoidAttention")
torch.onnx.export(model, args, "model.onnx", dynamo=True, custom_translation_table=table)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from onnx import ModelProto, TensorProto

from onnx_fuse import torch_export
from onnx_fuse.errors import UsageError
from onnx_fuse.learning import LearnedFusion, from_torch
from onnx_fuse.passes.files import io
from onnx_fuse.passes.graph.function_bodies import add_bodies, import_domain
from onnx_fuse.passes.graph.index import graphs
from onnx_fuse.patterns.language.operator import DOMAIN, OPSET

_ANY_TYPE = "T"


class CustomOps(dict[Any, Callable[..., Any]]):
    """A `custom_translation_table` (torch operator -> translation) that knows the bodies of what it writes.

    Tables are joined with `|`.
    """

    def __init__(self, table: Mapping[Any, Callable[..., Any]], fusions: Sequence[LearnedFusion]) -> None:
        super().__init__(table)
        self.fusions = tuple(fusions)

    def __or__(self, other: Any) -> CustomOps:  # type: ignore[override]
        return CustomOps({**self, **other}, (*self.fusions, *getattr(other, "fusions", ())))

    def attach(self, model: ModelProto | str | os.PathLike[str]) -> ModelProto:
        """Adds the bodies of the operators to a model that was exported with this table; a file is written again.

        Raises:
            ModelError, OutputError: the file cannot be read or written.
        """
        proto = model if isinstance(model, ModelProto) else io.load(model)
        called = {node.key for graph in graphs(proto) for node in graph.nodes}
        there = {(function.domain, function.name) for function in proto.functions}
        bodies = []
        for fusion in self.fusions:
            operator, definition = fusion.operator, fusion.definition
            if (operator.domain, operator.name) in called - there:
                opsets = {entry.domain: entry.version for entry in proto.opset_import}
                names = list(definition.inputs), list(definition.outputs)
                bodies.append(operator.make_function(*names, definition.attributes, opsets, TensorProto.FLOAT))
                import_domain(proto.opset_import, operator.domain)
        add_bodies(proto, bodies)
        if bodies and not isinstance(model, ModelProto):
            io.save(proto, model, source=model)
        return proto


def custom_op(
    torch_op: Any,
    reference: Any,
    example_inputs: Sequence[Any],
    *,
    op: str | None = None,
    dynamic_shapes: Any = None,
    attributes: Mapping[str, float | str] | None = None,
    domain: str = DOMAIN,
    plugin_version: str = "1",
    plugin_namespace: str | None = None,
) -> CustomOps:
    """The `custom_translation_table` that maps a torch operator to a node with a body.

    Args:
        torch_op: `torch.ops.namespace.name`, one of its overloads, or what `torch.library.custom_op` returned.
        reference: the same maths in plain torch: a function or module that takes the operator's arguments.
        example_inputs: arguments in order. Numbers are fixed, unless `attributes` names them.
        op: name of the ONNX operator; None for that of the torch operator.
        attributes: argument of the operator that is a number -> the constant of the body that it is, by value or name; its
            value is then taken from each call.
        dynamic_shapes, domain, plugin_version, plugin_namespace: as for `onnx_fuse.learning.from_torch`.

    Raises:
        LearnError: no body can be made of the reference.
        UsageError: an argument is wrong, or torch is missing.
    """
    torch = torch_export.require_torch()
    overload = _overload(torch, torch_op)
    names = [argument.name for argument in overload._schema.arguments]
    values = dict(zip(names, example_inputs, strict=False))
    if len(example_inputs) > len(names):
        raise UsageError(f"{overload} takes {len(names)} arguments.", "Give example_inputs for these.")
    numbers = {name: value for name, value in values.items() if not torch.is_tensor(value)}
    tensors = {name: value for name, value in values.items() if torch.is_tensor(value)}
    fusion = from_torch(
        torch_export.with_numbers(torch, reference, list(values), numbers),
        tuple(tensors.values()),
        op or overload._schema.name.split("::")[-1],
        dynamic_shapes=dynamic_shapes,
        input_names=list(tensors),
        attributes=attributes,
        exporters=("dynamo",),
        domain=domain,
        plugin_version=plugin_version,
        plugin_namespace=plugin_namespace,
    )
    if attributes and not set(attributes) <= set(numbers):
        odd = min(set(attributes) - set(numbers))
        raise UsageError(f"{odd} is no number among the arguments of {overload}.", f"They are {', '.join(names)}.")
    for name, value in fusion.definition.attributes.items():
        if name in numbers and not math.isclose(value, numbers[name], rel_tol=1e-5):
            raise UsageError(
                f"The body has {value:g} where the operator is given {name}={numbers[name]}.",
                "An attribute must go into the maths as it is.",
            )
    return CustomOps({overload: _translation(fusion, names, numbers)}, [fusion])


def _overload(torch: Any, torch_op: Any) -> Any:
    found = getattr(torch_op, "_opoverload", torch_op)
    if not isinstance(found, torch._ops.OpOverload):
        found = getattr(found, "default", None)
    if not isinstance(found, torch._ops.OpOverload):
        raise UsageError(
            f"{torch_op!r} is no torch operator.", "Give torch.ops.NAMESPACE.NAME, registered with torch.library."
        )
    return found


def _translation(fusion: LearnedFusion, names: Sequence[str], numbers: Mapping[str, Any]) -> Callable[..., Any]:
    from onnxscript import evaluator

    operator, definition = fusion.operator, fusion.definition
    inputs, outputs = list(definition.inputs), list(definition.outputs)
    node = operator.make_node(
        {name: name for name in inputs}, {name: name for name in outputs}, definition.attributes, operator.name
    )
    schema = _schema(node)
    fixed = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    fixed = {name: value.decode() if isinstance(value, bytes) else value for name, value in fixed.items()}

    def translate(*args: Any, **kwargs: Any) -> Any:
        given = {**numbers, **dict(zip(names, args, strict=False)), **kwargs}
        for name, value in numbers.items():
            if name not in definition.attributes and given[name] != value:
                raise UsageError(
                    f"{operator.name} has a body for {name}={value}, the model calls it with {given[name]}.",
                    f"Make it an attribute: custom_op(..., attributes={{{name!r}: {value}}}).",
                )
        chosen = {name: float(given[name]) for name in definition.attributes if name in numbers}
        return evaluator.default().eval(schema, [given[name] for name in inputs], {**fixed, **chosen})

    return translate


def _schema(node: onnx.NodeProto) -> onnx.defs.OpSchema:
    """An ONNX schema for the node, from which the exporter knows what is an input and what an attribute."""
    Parameter, Attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
    kinds = {
        onnx.AttributeProto.STRING: onnx.defs.OpSchema.AttrType.STRING,
        onnx.AttributeProto.FLOAT: onnx.defs.OpSchema.AttrType.FLOAT,
    }
    return onnx.defs.OpSchema(
        node.op_type,
        node.domain,
        OPSET,
        inputs=[Parameter(name, f"{_ANY_TYPE}{number}") for number, name in enumerate(node.input)],
        outputs=[Parameter(name, f"{_ANY_TYPE}_{name}") for name in node.output],
        type_constraints=[
            (name, _TENSORS, "")
            for name in (
                *(f"{_ANY_TYPE}{number}" for number in range(len(node.input))),
                *(f"{_ANY_TYPE}_{name}" for name in node.output),
            )
        ],
        attributes=[Attribute(item.name, kinds[item.type], required=False) for item in node.attribute],
    )


_TENSORS = [f"tensor({name})" for name in ("float", "float16", "bfloat16", "double", "int64", "int32", "bool")]
