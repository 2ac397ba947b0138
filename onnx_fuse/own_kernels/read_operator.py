"""The operator that an `OwnKernel` is for: its inputs, attributes and outputs, as a plugin can have them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import TensorProto
from onnx.inliner import inline_local_functions

from onnx_fuse import learning, torch_export
from onnx_fuse.errors import OnnxFuseError
from onnx_fuse.learning import learned_file
from onnx_fuse.own_kernels.declaration import OwnKernel
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.onnx_inference import inferred_types
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.learned import Tensor
from onnx_fuse.patterns.language.learned_body import operator_of
from onnx_fuse.patterns.language.operator import FusedOp, type_name
from onnx_fuse.runtime.plugins.expressions import Expression, parse
from onnx_fuse.runtime.plugins.own_operator import Input

_INPUTS: dict[int, str] = {
    TensorProto.FLOAT: "float",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}


@dataclass(frozen=True)
class DeclaredOperator:
    """An operator for which a kernel is declared.

    Attributes:
        description: the operator, which makes bodies.
        tensors: its inputs, with their types and shapes.
        attributes: attribute -> example value.
        inputs: the inputs as a plugin has them.
        kinds: attribute -> "int", "float", or the strings it may be.
        sizes: names that expressions of sizes may use: the named dimensions of the inputs, and integer attributes.
        outputs: output -> its shape.
    """

    description: FusedOp
    tensors: Mapping[str, Tensor]
    attributes: Mapping[str, Any]
    inputs: tuple[Input, ...]
    kinds: dict[str, str | tuple[str, ...]]
    sizes: tuple[str, ...]
    outputs: dict[str, tuple[Expression, ...]]


def read_operator(kernel: OwnKernel, folder: Path) -> DeclaredOperator:
    """The operator of a kernel that is declared in a file of the folder.

    Raises:
        UsageError: what is said of it is wrong, with file and line.
    """
    description, tensors, attributes = _described(kernel, folder)
    inputs = tuple(_inputs(kernel, tensors))
    kinds = dict(_kinds(kernel, description, attributes))
    sizes = [*dict.fromkeys(dim for item in inputs for dim in item.dims if isinstance(dim, str))]
    sizes += [name for name, kind in kinds.items() if kind == "int"]
    outputs = _outputs(kernel, description, tensors, attributes, sizes)
    return DeclaredOperator(description, tensors, attributes, inputs, kinds, tuple(sizes), outputs)


def expression(
    kernel: OwnKernel, argument: str, text: Any, names: Collection[str], *, condition: bool = False
) -> Expression:
    """The expression that an argument of the declaration holds.

    Raises:
        UsageError: it is none, or uses other names, with file and line.
    """
    try:
        return parse(str(text), names, condition=condition)
    except ValueError as error:
        raise kernel.wrong(argument, str(error)) from error


def _described(kernel: OwnKernel, folder: Path) -> tuple[FusedOp, Mapping[str, Tensor], Mapping[str, Any]]:
    if isinstance(kernel.operator, FusedOp):
        description, tensors = kernel.operator, _typed(kernel, kernel.operator)
        try:
            for space in (description.domain, description.plugin_namespace or description.domain):
                learning.require_name(description.name, space)
            learned_file.of_operator(description, tensors, kernel.attributes)
        except OnnxFuseError as error:
            raise kernel.wrong("operator", error.cause, error.remedy) from error
        except Exception as error:  # the body is the user's own code
            told = f"the body of {description.name} fails: {type(error).__name__}: {error}"
            raise kernel.wrong("operator", told, "Correct it.") from error
        return description, tensors, kernel.attributes
    if not isinstance(kernel.operator, str):
        raise kernel.wrong("operator", f"{kernel.operator!r} is neither the path of a learned fusion nor a FusedOp")
    for name in ("inputs", "attributes"):
        if getattr(kernel, name):
            raise kernel.wrong(name, f"{kernel.operator} says what they are", "Leave them out.")
    try:
        learned = learning.load(folder / kernel.operator)
    except OnnxFuseError as error:
        raise kernel.wrong("operator", error.cause, error.remedy) from error
    definition = learned.definition
    return operator_of(definition, widen=False), definition.inputs, definition.example_attributes


def _typed(kernel: OwnKernel, description: FusedOp) -> dict[str, Tensor]:
    example = 'For example: inputs="float[B, S, 64] x, int64[B] lengths".'
    if kernel.inputs is None:
        raise kernel.wrong("operator", f"the types of the inputs of {description.name} are not given", example)
    try:
        values = torch_export.typed(kernel.inputs)
        present = description.present({value.name: value.name for value in values})
    except OnnxFuseError as error:
        raise kernel.wrong("inputs", error.cause, error.remedy) from error
    tensors = {}
    for value in values:
        kind = value.type.tensor_type
        dims = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
        if not kind.HasField("shape") or 0 in dims:
            raise kernel.wrong("inputs", f"the shape of {value.name} is not given in full", example)
        tensors[value.name] = Tensor(kind.elem_type, tuple(dims))
    if present != list(tensors):
        raise kernel.wrong("inputs", f"the order of {description.name} is {', '.join(present)}")
    return tensors


def _inputs(kernel: OwnKernel, tensors: Mapping[str, Tensor]) -> Iterator[Input]:
    for name, tensor in tensors.items():
        kind = _INPUTS.get(tensor.dtype)
        if kind is None:
            raise kernel.wrong(
                "operator",
                f"input {name} is {tensor}, and plugins here take float, int32, int64 and bool",
                "Cast it outside of the operator.",
            )
        for text in (name, *(dim for dim in tensor.dims if isinstance(dim, str))):
            if not (text.isidentifier() and text.isascii()):
                raise kernel.wrong("operator", f"{text!r} of {tensor} {name} is no identifier", "Rename it.")
        yield Input(name, kind, tensor.dims)
    if not any(tensor.dtype == TensorProto.FLOAT for tensor in tensors.values()):
        raise kernel.wrong("operator", "no input is float, whose type the outputs have", "Give it one.")


def _kinds(
    kernel: OwnKernel, description: FusedOp, attributes: Mapping[str, Any]
) -> Iterator[tuple[str, str | tuple[str, ...]]]:
    for name, value in attributes.items():
        choices = tuple(kernel.choices.get(name, ()))
        if isinstance(value, str):
            if value not in choices:
                raise kernel.wrong(
                    "choices",
                    f"the attribute {name} is a string, and {value!r} is none of its choices",
                    f'For example: choices={{"{name}": ("{value}", ...)}}.',
                )
            yield name, choices
        elif isinstance(value, (bool, int)):
            yield name, "int"
        elif isinstance(value, float):
            yield name, "float"
        else:
            raise kernel.wrong("operator", f"the attribute {name} is {value!r}, no number or string")
    for name in kernel.choices:
        if not isinstance(attributes.get(name), str):
            raise kernel.wrong("choices", f"{description.name} has no string attribute {name}")


def _outputs(
    kernel: OwnKernel,
    description: FusedOp,
    tensors: Mapping[str, Tensor],
    attributes: Mapping[str, Any],
    sizes: Sequence[str],
) -> dict[str, tuple[Expression, ...]]:
    outputs = description.outputs
    for name in kernel.outputs:
        if name not in outputs:
            raise kernel.wrong("outputs", f"{name} is none of {', '.join(outputs)}")
    model = inline_local_functions(learned_file.of_operator(description, tensors, attributes))
    graph = Graph(model.graph, model)
    view = View(graph, inferred_types(graph))
    return {name: _output(kernel, name, view, sizes) for name in outputs}


def _output(kernel: OwnKernel, name: str, view: View, sizes: Sequence[str]) -> tuple[Expression, ...]:
    if (found := view.dtype(name)) not in (0, TensorProto.FLOAT):
        kind = type_name(found).lower()
        raise kernel.wrong("operator", f"output {name} is {kind}, and outputs here have the type of the data")
    given = kernel.outputs.get(name)
    if given is not None:
        return tuple(expression(kernel, "outputs", dim, sizes) for dim in given)
    remedy = f'Say it: outputs={{"{name}": ("B", "2 * S")}}, one expression an axis.'
    shape = view.shape(name)
    if shape is None:
        raise kernel.wrong("outputs", f"the rank of {name} does not follow from the body", remedy)
    try:
        return tuple(parse(str(dim), sizes) for dim in shape)
    except ValueError as error:
        raise kernel.wrong("outputs", f"the shape of {name} does not follow from the body: {error}", remedy) from error
