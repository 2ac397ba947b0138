"""Reads a form off an exported example: its canonical view as data, with what is a parameter told apart from what is fixed.

The example is read twice, with two sets of random parameters. A constant that differs between the two follows from the
parameters, however the exporter folded it, and becomes an input; one that does not is part of the maths. Random parameters
also keep a bias that happens to be zero, or a scale of one, from being simplified away.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_fuse.errors import LearnError
from onnx_fuse.passes.fuse.constant_origins import ConstantOrigins
from onnx_fuse.passes.fuse.learnable import NORMS, attributes_of, require_learnable
from onnx_fuse.passes.graph.dims import Dim
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.onnx_inference import inferred_types
from onnx_fuse.passes.normalize.sweep import normalize
from onnx_fuse.passes.view.facts import ATTRIBUTE_INPUTS
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.learned import SHAPED, Form, Reference, Step, Tensor, part_bounds
from onnx_fuse.patterns.language.operator import type_name

_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class Example:
    """What was read off one export.

    Attributes:
        inputs: operator input -> type and shape: what the example takes, then what follows from its parameters.
        scalars: the inputs that are one number.
        weights: input -> the constant of the example that it stands for.
        fixed: constant of the form -> what it is: these are part of the maths.
        attributes: attribute -> value, for the epsilon of norms.
        unused: inputs of the example that its outputs do not depend on.
    """

    form: Form
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    scalars: frozenset[str]
    weights: Mapping[str, Leaf]
    fixed: Mapping[str, Leaf]
    attributes: Mapping[str, float]
    unused: tuple[str, ...]


def read(model: ModelProto, parameters: Collection[str]) -> Example:
    """Reads the example off a model.

    Args:
        model: the exported example, in which the parameters are initializers; their values do not matter.
        parameters: names of initializers that other models will hold other values of.

    Raises:
        LearnError: something in it cannot be learned; the sentence names the node.
    """
    first = _Reading(_weighted(model, parameters, 1), parameters)
    second = _Reading(_weighted(model, parameters, 2), parameters)
    first.read()
    second.read()
    if first.steps != second.steps:
        raise LearnError(
            "The example has another form with other parameters.",
            "A parameter decides what is computed: make it fixed.",
        )
    return first.example({name for name, leaf in first.leaves.items() if not leaf.equals(second.leaves[name])})


def identifier(name: str) -> str:
    """The name as one that Python, and an operator's input, can have."""
    made = re.sub(r"\W+", "_", name).strip("_") or "value"
    return f"_{made}" if made[0].isdigit() else made


def _weighted(model: ModelProto, parameters: Collection[str], seed: int) -> ModelProto:
    """A copy whose parameters are random, and positive so that roots and logarithms of them exist."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in parameters:
            random = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            array = random.uniform(0.5, 1.5, tuple(tensor.dims)).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


@dataclass(frozen=True)
class Leaf:
    """A constant that steps read.

    Attributes:
        parameters: the parameters it was computed from, as far as that can be told from the graph.
        array: its value, for one set of random parameters.
        reader: the node that reads it.
        direct: it is a parameter itself.
    """

    tensor: Tensor
    parameters: tuple[str, ...]
    array: np.ndarray
    reader: str
    direct: bool

    def equals(self, other: Leaf, tolerance: float = 0.0) -> bool:
        """Whether both hold the same numbers."""
        if self.array.shape != other.array.shape or self.array.dtype != other.array.dtype:
            return False
        if self.array.dtype.kind != "f":
            return np.array_equal(self.array, other.array)
        return np.allclose(self.array, other.array, rtol=tolerance, atol=0.0, equal_nan=True)


class _Reading:
    """One walk through the canonical view of an example, from its outputs to its inputs."""

    def __init__(self, model: ModelProto, parameters: Collection[str]) -> None:
        self.graph = Graph(model.graph, model)
        self.view = View(self.graph, inferred_types(self.graph))
        normalize(self.view)
        self.parameters = frozenset(parameters)
        self.origins = ConstantOrigins(self.view, parameters)
        self.names: dict[str, str] = {}
        self.inputs: dict[str, Tensor] = {}
        self.steps: list[Step] = []
        self.tensors: dict[str, Tensor] = {}
        self.leaves: dict[str, Leaf] = {}
        self.sizes: dict[str, Any] = {}
        self.epsilons: dict[float, str] = {}
        self.results: list[str] = []

    def read(self) -> None:
        initializers = set(self.graph.initializers)
        names = [name for name in self.graph.inputs if name not in initializers]
        for name in names:
            tensor = self._tensor(name, name)
            if identifier(name) in self.inputs:
                raise LearnError(f"Two inputs are called {identifier(name)}.", "Give the inputs different names.")
            self.inputs[identifier(name)] = tensor
            self.names[name] = identifier(name)
        self.dims = {dim for tensor in self.inputs.values() for dim in tensor.dims if isinstance(dim, str)}
        if clash := self.dims & set(self.inputs):
            raise LearnError(f"{min(clash)} is both an input and a dimension.", "Rename one of the two.")
        for output in self.graph.outputs:
            self.results.append(self._value(output, "the result"))
            if self.view.shape(output) is None:
                raise LearnError(f"The shape of the result {output} is not known.", "Export with shapes.")
        made = {name for step in self.steps for name in step.outputs}
        for output, value in zip(self.graph.outputs, self.results, strict=True):
            if value not in made or self.results.count(value) > 1:
                raise LearnError(
                    f"The result {output} is an input, a constant, or another result as well.",
                    "Return only what the example computes, each once.",
                )

    def example(self, varying: set[str]) -> Example:
        """The example, with those of the leaves that follow from the parameters as inputs."""
        inputs, renames = dict(self.inputs), {}
        weights: dict[str, Leaf] = {}
        fixed: dict[str, Leaf] = {}
        taken = {*inputs, *self.dims}
        order = {name: number for number, name in enumerate(self.graph.initializers)}
        last = len(order)

        def place(item: tuple[str, Leaf]) -> tuple[list[int], bool]:
            return [order.get(origin, last) for origin in item[1].parameters], not item[1].direct

        for name, leaf in sorted(self.leaves.items(), key=place):
            if name in varying:
                wanted = identifier(leaf.parameters[0]) if len(leaf.parameters) == 1 else "weight"
                renames[name] = _unique(wanted, taken)
                weights[renames[name]] = leaf
            else:
                renames[name] = _unique(f"constant_{len(fixed) + 1}", taken)
                fixed[renames[name]] = leaf
        inputs.update((name, leaf.tensor) for name, leaf in weights.items())
        steps = tuple(
            replace(step, inputs=tuple(renames.get(name, name) for name in step.inputs)) for step in self.steps
        )
        unused = self._unused({name for step in steps for name in step.inputs})
        outputs = {}
        for index, value in enumerate(self.results):
            outputs["output" if len(self.results) == 1 else f"output_{index + 1}"] = self.tensors[value]
        constants = {name: leaf.array for name, leaf in fixed.items()}
        form = Form(steps, tuple(self.results), self.tensors, constants, {}, self.sizes)
        return Example(
            form=form,
            inputs={name: tensor for name, tensor in inputs.items() if name not in unused},
            outputs=outputs,
            scalars=frozenset(name for name, leaf in weights.items() if leaf.array.size == 1),
            weights=weights,
            fixed=fixed,
            attributes={name: value for value, name in self.epsilons.items()},
            unused=unused,
        )

    def _unused(self, read: set[str]) -> tuple[str, ...]:
        """The inputs that no step reads; a size that only one of these has could not be known."""
        unused = tuple(name for name in self.inputs if name not in read)
        known = {dim for name, tensor in self.inputs.items() if name in read for dim in tensor.dims}
        shapes = [self.tensors[step.outputs[0]].dims for step in self.steps if step.op_type in SHAPED]
        wanted = {dim for dims in shapes for dim in dims}
        wanted |= {dim for size in self.sizes.values() for dim in (size if isinstance(size, tuple) else (size,))}
        if missing := (wanted & self.dims) - known:
            raise LearnError(
                f"The size {min(map(str, missing))} is that of an input of which nothing else is used.",
                "Take an example that reads its inputs.",
            )
        return unused

    # -- values --------------------------------------------------------------------------------------------------------

    def _value(self, value: str, reader: str) -> str:
        """The name of a value in the form; what makes it is read first."""
        wanted = self.view.resolve(value)
        pending, entered = [(wanted, reader)], set()
        while pending:
            value, reader = pending[-1]
            if not value or value in self.names:
                pending.pop()
            elif (origin := self.origins.of(value)) is not None:
                name = f"leaf_{len(self.leaves)}"
                self.leaves[name] = self._leaf(value, origin, reader)
                self.names[value] = name
            elif (size := self._known_size(value)) is not None:
                name = f"size_{len(self.sizes) + 1}"
                self.sizes[name] = size
                self.names[value] = name
            else:
                node = self.view.producer(value)
                if node is None:
                    raise LearnError(f"{value} is made outside of the example.", "Make it an input of the example.")
                if value in entered:
                    self._step(node, value)
                    continue
                entered.add(value)
                pending.extend(reversed(self._reads(node, value)))
        return self.names.get(wanted, "")

    def _leaf(self, value: str, origin: frozenset[str], reader: str) -> Leaf:
        tensor = self._tensor(value, reader)
        order = [name for name in self.graph.initializers if name in origin]
        array = self.origins.array(value)
        if array is None or array.dtype.kind == "O":
            raise LearnError(f"The constant {value} (for {reader}) cannot be read.", "Make it an input of the example.")
        return Leaf(tensor, tuple(order), array, reader, value in self.parameters)

    def _known_size(self, value: str) -> Any:
        """The elements of an integer tensor that is known from the shapes of the inputs."""
        info = self.view.info(value)
        if info.content is None or info.dtype != TensorProto.INT64:
            return None
        items = [_dim(item) for item in info.content if item is not None]
        if len(items) < len(info.content) or any(isinstance(item, str) and item not in self.dims for item in items):
            return None
        return tuple(items) if info.shape else items[0]

    def _tensor(self, value: str, reader: str) -> Tensor:
        info = self.view.info(value)
        if info.shape is None or not info.dtype:
            raise LearnError(
                f"Type or shape of {value} (for {reader}) is not known.", "Export the example with typed inputs."
            )
        if info.dtype in _NARROW:
            kind = type_name(info.dtype)
            raise LearnError(
                f"{value} is {kind}: a form is learned in float32.",
                "Give the module and its inputs in float32; what is learned also fires in float16 models.",
            )
        return Tensor(info.dtype, tuple(map(_dim, info.shape)))

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _reads(self, node: Node, value: str) -> list[tuple[str, str]]:
        """What the step that makes a value reads, each with what to call the reader."""
        require_learnable(node)
        if self._part(node, value) is not None:
            return [(self.view.resolve(node.inputs[0]), node.name)]
        data = node.inputs[:1] if node.op_type in SHAPED else node.inputs
        if node.op_type in ATTRIBUTE_INPUTS:
            data = data[: min(ATTRIBUTE_INPUTS[node.op_type].values())]
        return [(self.view.resolve(name), f"{node.op_type} {node.name}") for name in data]

    def _step(self, node: Node, value: str) -> None:
        """The step that makes a value, once those are read that it reads."""
        inputs = tuple(self.names.get(name, "") for name, _ in self._reads(node, value))
        part = self._part(node, value)
        if part is not None:
            attributes: dict[str, Any] = dict(zip(("axis", "start", "end"), part, strict=True))
            self._add("Part", inputs, [value], attributes)
            return
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        attributes = {} if node.op_type in SHAPED else attributes_of(node, self.view)
        if node.op_type in NORMS:
            attributes["epsilon"] = Reference(self._epsilon(float(attributes["epsilon"])))
        if node.op_type == "ConstantOfShape" and inputs[0] not in self.sizes:
            raise LearnError(f"The shape that {node.name} fills is not known.", "Fill the shape of an input.")
        self._add(node.op_type, inputs, list(node.outputs), attributes)
        if node.op_type in SHAPED:
            self._require_determined(node, self.tensors[self.names[value]])

    def _add(self, op_type: str, inputs: tuple[str, ...], outputs: Sequence[str], attributes: dict[str, Any]) -> None:
        names = []
        for output in outputs:
            if not output or (len(outputs) > 1 and not self.view.readers(output) and output not in self.graph.outputs):
                names.append("")
                continue
            name = f"v{len(self.tensors) + 1}"
            self.tensors[name] = self._tensor(output, op_type)
            self.names[self.view.resolve(output)] = name
            names.append(name)
        self.steps.append(Step(op_type, inputs, tuple(names), attributes))

    def _part(self, node: Node, value: str) -> tuple[int, int, int] | None:
        if node.op_type not in ("Slice", "Split"):
            return None
        shape = self.view.shape(node.inputs[0])
        part = None if shape is None else part_bounds(node, value, self.view, shape)
        if part is None and node.op_type == "Split":
            raise LearnError(f"{node.name} splits an axis of unknown size.", "Split an axis of fixed size.")
        return part

    def _require_determined(self, node: Node, tensor: Tensor) -> None:
        """A Reshape leads where the dimensions of the inputs say, but for one that follows from the rest."""
        unknown = [dim for dim in tensor.dims if isinstance(dim, str) and dim not in self.dims]
        if len(unknown) > (node.op_type == "Reshape"):
            raise LearnError(
                f"{node.op_type} {node.name} makes the sizes {', '.join(unknown)}, which are no dimensions of the inputs.",
                "Take an example whose shapes follow from those of its inputs.",
            )

    def _epsilon(self, value: float) -> str:
        """The attribute for the epsilon of a norm: equal ones are one attribute."""
        number = len(self.epsilons) + 1
        return self.epsilons.setdefault(value, "epsilon" if number == 1 else f"epsilon_{number}")


def _dim(dim: Dim) -> int | str:
    return dim if isinstance(dim, int) else str(dim)


def _unique(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
