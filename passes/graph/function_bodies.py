"""Puts the bodies of fused operators into a model: one FunctionProto for each operator and set of inputs that occurs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import onnx
from onnx import FunctionProto, ModelProto, NodeProto

from onnx_fuse.errors import PatternError
from onnx_fuse.patterns.language.body import CAST_LIKE_SINCE, attribute_kind
from onnx_fuse.patterns.language.operator import OPSET, FusedOp

Functions = Literal["keep", "inline", "none"]

_FUNCTION_IR = 8
_OVERLOAD_IR = 10


class Bodies:
    """Chooses and collects the bodies for the fused nodes of one model.

    Args:
        model: the model the nodes go into; its functions of the same name are reused where they are equal.
    """

    def __init__(self, model: ModelProto) -> None:
        self._existing = {(item.domain, item.name, item.overload): item for item in model.functions}
        self._overloads: dict[str, str] = {}
        self._nodes: dict[Any, tuple[NodeProto, list[str], tuple[str, ...]]] = {}
        self._written: tuple[Mapping[str, Any] | None, str] = None, ""
        self.new: dict[tuple[str, str, str], FunctionProto] = {}

    def node(
        self,
        operator: FusedOp,
        inputs: Mapping[str, str | None],
        outputs: Mapping[str, str],
        attributes: Mapping[str, Any],
        opsets: Mapping[str, int],
        dtype: int,
        name: str,
    ) -> NodeProto:
        """A fused node that has a body. Those that differ in nothing but names are copies of one."""
        if self._written[0] is not attributes:  # those of repeated blocks share theirs
            self._written = attributes, repr(attributes)
        given = tuple([item for item, value in inputs.items() if value])
        made = tuple([item for item, value in outputs.items() if value])
        alike = operator.domain, operator.name, given, made, self._written[1], opsets.get(""), dtype
        if alike not in self._nodes:
            present = operator.present(inputs)
            made = tuple([item for item in operator.outputs if outputs.get(item)])
            overload = self.overload(operator, present, made, attributes, opsets, dtype)
            self._nodes[alike] = operator.make_node(inputs, outputs, attributes, name, overload), present, made
        model, present, made = self._nodes[alike]
        node = NodeProto()
        node.CopyFrom(model)
        node.name = name
        node.input[:] = [str(inputs[item]) for item in present]
        node.output[:] = [outputs[item] for item in made]
        return node

    def overload(
        self,
        operator: FusedOp,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: Mapping[str, Any],
        opsets: Mapping[str, int],
        dtype: int,
    ) -> str:
        """The overload name of the body for such a node; the body is made when it is first asked for."""
        # Without CastLike the element type is written into the body.
        kind = dtype if opsets.get("", 0) < CAST_LIKE_SINCE else 0
        kinds = [attribute_kind(attributes[name]) for name in operator.attributes]
        key = json.dumps(
            [operator.domain, operator.name, inputs, outputs, operator.variant(attributes), kinds, kind, opsets.get("")]
        )
        if key not in self._overloads:
            function = operator.make_function(inputs, outputs, attributes, opsets, dtype)
            _require_valid(function)
            self._overloads[key] = self._place(function)
        return self._overloads[key]

    def _place(self, function: FunctionProto) -> str:
        number = 0
        while True:
            function.overload = "" if number == 0 else f"v{number}"
            place = (function.domain, function.name, function.overload)
            present = self._existing.get(place) or self.new.get(place)
            if present is None:
                self.new[place] = function
                return str(function.overload)
            if present == function:
                return str(function.overload)
            number += 1


def _require_valid(function: FunctionProto) -> None:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = _OVERLOAD_IR
    context.opset_imports = {entry.domain: entry.version for entry in function.opset_import}
    try:
        onnx.checker.check_function(function, context)
    except onnx.checker.ValidationError as error:
        sentence = " ".join(str(error).partition("==> Context:")[0].split()).rstrip(".")
        raise PatternError(
            f"The body of {function.name} is not valid ONNX: {sentence}.",
            "Write it with ONNX operators of the model's opset.",
        ) from error


def add_bodies(model: ModelProto, bodies: Iterable[FunctionProto]) -> None:
    """Appends bodies to the model and raises its IR version to what they need."""
    functions = list(bodies)
    model.functions.extend(functions)
    if functions:
        overloads = any(function.overload for function in functions)
        model.ir_version = max(model.ir_version, _OVERLOAD_IR if overloads else _FUNCTION_IR)


def import_domain(imports: Any, domain: str, version: int = OPSET) -> None:
    """Adds an opset import unless it is there."""
    if not any(entry.domain == domain for entry in imports):
        imports.append(onnx.helper.make_opsetid(domain, version))


def several_bodies(model: ModelProto, domains: Iterable[str]) -> list[str]:
    """Warnings for operators with several bodies of one name, which TensorRT cannot tell apart."""
    wanted = set(domains)
    counts: dict[tuple[str, str], int] = {}
    for function in model.functions:
        if function.domain in wanted:
            counts[(function.domain, function.name)] = counts.get((function.domain, function.name), 0) + 1
    return [
        f"{domain}::{name} has {count} bodies; TensorRT ignores `overload` and takes the first for all: "
        "load the plugin, or inline the bodies (--functions inline)"
        for (domain, name), count in sorted(counts.items())
        if count > 1
    ]


def merge_metadata(target: NodeProto, replaced: Sequence[NodeProto], *, record: bool) -> None:
    """Moves the metadata of replaced nodes to the node that stands for them.

    Where several carry the same key, the last one wins: it made the output. `record` adds their names under
    `onnx_fuse.replaced`.
    """
    entries = {entry.key: entry.value for node in replaced for entry in node.metadata_props}
    if record:
        entries["onnx_fuse.replaced"] = json.dumps(
            [node.name or (node.output[0] if node.output else "") for node in replaced]
        )
    for key, value in sorted(entries.items()):
        target.metadata_props.add(key=key, value=value)
