"""What a fused operator is (`FusedOp`) and what finds it (`Fusion`)."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper

from onnx_fuse.errors import PatternError, did_you_mean
from onnx_fuse.patterns.language.body import Body, rename_outputs
from onnx_fuse.patterns.language.declaration import Declaration
from onnx_fuse.patterns.language.dsl import Pattern
from onnx_fuse.patterns.language.interface import Match, View

DOMAIN = "gr.ml.infra"
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
"""The element types that operators of `DOMAIN` are for."""
OPSET = 1


def type_name(dtype: int) -> str:
    """The name that ONNX has for an element type; a damaged model may declare a type that it has none for."""
    known = dtype in TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(dtype)) if known else f"type {dtype}"


@dataclass(frozen=True)
class FusedOp:
    """A fused operator: its signature and its body in standard ONNX operators.

    Args:
        name: operator type, which is also the plugin's name.
        inputs: input names in order; "ids_*" stands for any number of inputs ids_1, ids_2, ... Optional ones may be absent
            anywhere: the node names those present, in this order, in its attribute `inputs`.
        outputs: output names in order; the first is always there, unless `build` chooses among them.
        attributes: names of the attributes; a node always carries all of them.
        body: `body(op, **inputs, **attributes, **structure)` writes the operator with a `Body` and returns the output's name (a
            tuple for several). Absent inputs are None. Numeric attributes arrive as the name of a constant that refers to the
            node's attribute; string attributes arrive as str and make a body of their own.
        structure: further facts that shape the body, worked out from the attributes, for example {"grouped": True}.
        types: element types (TensorProto.DataType) of the first output that the operator is for; None for any.
        domain, plugin_version, plugin_namespace: what the node's attributes say to TensorRT; the namespace is the domain if None.
        float32_inputs: inputs that may be float32 in a float16 or bfloat16 node; "table_*" as in `inputs`.
        declaration: what each input and output may be; None where nothing is declared.
    """

    name: str
    inputs: tuple[str, ...]
    body: Callable[..., Any]
    attributes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("output",)
    structure: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    domain: str = DOMAIN
    plugin_version: str = "1"
    plugin_namespace: str | None = None
    types: frozenset[int] | None = None
    float32_inputs: tuple[str, ...] = ()
    declaration: Declaration | None = None

    @classmethod
    def declared(cls, name: str, declaration: Declaration, **settings: Any) -> FusedOp:
        """An operator for `FLOATS` whose inputs and outputs are those of a declaration."""
        return cls(
            name,
            inputs=tuple(tensor.name for tensor in declaration.inputs),
            outputs=tuple(tensor.name for tensor in declaration.outputs),
            float32_inputs=tuple(item.name for item in declaration.inputs if {"T", "float32"} <= {*item.types}),
            types=FLOATS,
            declaration=declaration,
            **settings,
        )

    def __post_init__(self) -> None:
        if self.domain in ("", "ai.onnx"):
            raise PatternError(
                f"FusedOp {self.name} is in ONNX's own domain", "Give it a domain of its own, such as domain='my.ops'."
            )
        self._require_that_body_fits()

    def _require_that_body_fits(self) -> None:
        """Raises PatternError where the body could not be called with the operator's inputs and attributes."""
        builder, *parameters = inspect.signature(self.body).parameters.values() or (None,)
        if builder is None:
            raise PatternError(
                f"the body of {self.name} has no parameter", "Its first one makes operators: def body(op, x, ...)."
            )
        kinds = {parameter.kind for parameter in (builder, *parameters)}
        if inspect.Parameter.VAR_POSITIONAL in kinds:
            return
        names = {parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
        given = [name for name in (*self.inputs, *self.attributes) if not name.endswith("*")]
        any_name = inspect.Parameter.VAR_KEYWORD in kinds
        lacking = [name for name in given if name not in names] if not any_name else []
        if lacking:
            raise PatternError(
                f"the body of {self.name} does not take {', '.join(lacking)}",
                "Give it a parameter for each input and attribute of the operator.",
            )
        required = [item.name for item in parameters if item.default is item.empty and item.name in names]
        prefixes = tuple(name.rstrip("*") for name in self.inputs if name.endswith("*"))
        more = [name for name in required if name not in given and not name.startswith(prefixes)]
        if more and self.structure is None:
            raise PatternError(
                f"the body of {self.name} takes {', '.join(more)}, and the operator has no such input or attribute",
                f"{did_you_mean(more[0], given)}Its inputs and attributes are: {', '.join(given)}.",
            )

    @property
    def plugin(self) -> str:
        """What TensorRT finds a plugin by, in words: "namespace::name version 1"."""
        namespace = self.domain if self.plugin_namespace is None else self.plugin_namespace
        return f"{namespace}::{self.name} version {self.plugin_version}"

    def present(self, inputs: Mapping[str, str | None]) -> list[str]:
        """Names of the inputs that are there, in the operator's order.

        Raises:
            PatternError: an input is not the operator's.
        """
        given = [name for name, value in inputs.items() if value]
        variadic = [name for name in given if name not in self.inputs]
        for name in variadic:
            if not any(fnmatch.fnmatchcase(name, item) for item in self.inputs if "*" in item):
                raise PatternError(f"{self.name} has no input {name!r}", f"Its inputs are {', '.join(self.inputs)}.")
        place = self._first_variadic()
        before = [name for name in self.inputs[:place] if inputs.get(name)]
        after = [name for name in self.inputs[place:] if "*" not in name and inputs.get(name)]
        return [*before, *variadic, *after]

    def may_be_float32(self, name: str) -> bool:
        """Whether an input may be float32 while the node's other inputs are of a narrower type."""
        return any(fnmatch.fnmatchcase(name, item) for item in self.float32_inputs)

    def _first_variadic(self) -> int:
        return next((index for index, name in enumerate(self.inputs) if "*" in name), len(self.inputs))

    def make_node(
        self,
        inputs: Mapping[str, str | None],
        outputs: Mapping[str, str | None],
        attributes: Mapping[str, Any],
        name: str,
        overload: str = "",
    ) -> NodeProto:
        """The node of the fused operator, with everything TensorRT and the body need written out."""
        self._check_attributes(attributes)
        present = self.present(inputs)
        made = [item for item in self.outputs if outputs.get(item)]
        node = NodeProto(op_type=self.name, domain=self.domain, name=name)
        node.input.extend(str(inputs[item]) for item in present)
        node.output.extend(str(outputs[item]) for item in made)
        written = {
            **{key: attributes[key] for key in self.attributes},
            "inputs": ",".join(present),
            "outputs": ",".join(made),
            "plugin_version": self.plugin_version,
            "plugin_namespace": self.domain if self.plugin_namespace is None else self.plugin_namespace,
        }
        for key, value in written.items():
            # helper.make_attribute takes a tenth of the time of a whole fusion.
            if isinstance(value, str):
                node.attribute.add(name=key, type=AttributeProto.STRING, s=value.encode())
            else:
                node.attribute.append(helper.make_attribute(key, value))
        if overload:
            node.overload = overload
        return node

    def make_function(
        self,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: Mapping[str, Any],
        opsets: Mapping[str, int],
        dtype: int,
    ) -> FunctionProto:
        """The body for these present inputs and outputs; numeric attributes stay references.

        Raises:
            PatternError: the body wrote something else than the outputs it owes.
        """
        self._check_attributes(attributes)
        opset = opsets.get("", 0)
        body = Body(opset, dtype, [*inputs, *outputs, *self.attributes])
        results = self.body(body, **self._arguments(body, inputs, attributes))
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(self.outputs):
            raise PatternError(
                f"the body of {self.name} returned {len(results)} values, it has {len(self.outputs)} outputs",
                "Return one value for each output, in order.",
            )
        wanted = dict(zip(self.outputs, results, strict=True))
        for name in outputs:
            if wanted[name] in inputs or list(wanted.values()).count(wanted[name]) > 1:
                wanted[name] = body.node("Identity", wanted[name])
        nodes = rename_outputs(body.nodes, {wanted[name]: name for name in outputs})
        numeric = [name for name in self.attributes if not isinstance(attributes[name], str)]
        return helper.make_function(
            self.domain,
            self.name,
            list(inputs),
            list(outputs),
            _reachable(nodes, outputs),
            [helper.make_opsetid("", opset)],
            attributes=numeric,
        )

    def variant(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """What of the attributes shapes the body: strings and `structure`."""
        shaping = {name: attributes[name] for name in self.attributes if isinstance(attributes[name], str)}
        if self.structure is not None:
            shaping.update(self.structure(attributes))
        return shaping

    def _arguments(self, body: Body, inputs: Sequence[str], attributes: Mapping[str, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = {name: None for name in self.inputs if "*" not in name}
        arguments.update({name: name for name in inputs})
        for name in self.attributes:
            value = attributes[name]
            arguments[name] = value if isinstance(value, str) else body.attribute(name, value)
        if self.structure is not None:
            arguments.update(self.structure(attributes))
        return arguments

    def _check_attributes(self, attributes: Mapping[str, Any]) -> None:
        missing = [name for name in self.attributes if attributes.get(name) is None]
        unknown = [name for name in attributes if name not in self.attributes]
        if missing or unknown:
            what = f"lacks its attribute {missing[0]!r}" if missing else f"has no attribute {unknown[0]!r}"
            raise PatternError(f"{self.name} {what}", f"Its attributes are {', '.join(self.attributes) or 'none'}.")


def _reachable(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    """The nodes that the outputs need: constants of attributes that this variant does not read are left out."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


@dataclass(frozen=True, slots=True)
class Fused:
    """What a match becomes: the values and attributes of the fused node.

    Attributes:
        inputs: operator's input name -> value name (of the view); None where absent.
        outputs: operator's output name -> value it takes over.
        attributes: attribute name -> value.
        optional_outputs: outputs that are made only if something outside the match reads the value.
        parts: what of the optional parts was swallowed, for the report.
        may_stay: values inside the match that may stay in the graph for an outside reader, cheap enough to be made twice.
    """

    inputs: Mapping[str, str | None]
    outputs: Mapping[str, str]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    optional_outputs: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    may_stay: tuple[str, ...] = ()


Build = Callable[[Match, View], "Fused | str"]


@dataclass(frozen=True)
class Fusion:
    """A fusion: patterns, and the operator that replaces what they match.

    Args:
        name: how users call it; the operator's name by convention.
        pattern: one pattern, or several tried in order.
        operator: the fused operator.
        build: match -> `Fused`, or the sentence that refuses it. Left out: every operator input is the variable of that name, every
            attribute the number in the variable of that name, and the outputs are the pattern's results in order.
        default: False for an opt-in fusion.
        summary: one line for `onnx-fuse list`.
        anchor: operator type without which an attempt is not worth a near miss; None for any two nodes.
        explain_every_anchor: whether each node of that type that was not fused is worth a sentence.
        rim: the optional parts; where a match lacks some, the report says what stands in their place.
    """

    name: str
    pattern: Pattern | tuple[Pattern, ...]
    operator: FusedOp
    build: Build | None = None
    default: bool = True
    summary: str = ""
    anchor: str | None = None
    explain_every_anchor: bool = False
    rim: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            if not isinstance(pattern, Pattern):
                raise PatternError(
                    f"fusion {self.name} has {pattern!r} for a pattern", "Decorate the function with @pattern."
                )
            if self.build is None:
                self._check_names(pattern)

    def _check_names(self, pattern: Pattern) -> None:
        for name in (*self.operator.inputs, *self.operator.attributes):
            if name not in pattern.variables:
                raise PatternError(
                    f"fusion {self.name}: {self.operator.name} wants {name!r}, which is no variable of pattern {pattern.name}",
                    "Name the pattern's variable so, or give the fusion a build function.",
                )

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The patterns, in order."""
        return self.pattern if isinstance(self.pattern, tuple) else (self.pattern,)

    def fused(self, match: Match, view: View) -> Fused | str:
        """What a match becomes, or the sentence that refuses it.

        Raises:
            PatternError: `build` returns something else.
        """
        if self.build is None:
            return self._by_name(match, view)
        made: Any = self.build(match, view)
        if isinstance(made, Fused) or (isinstance(made, str) and made.strip()):
            return made
        raise PatternError(
            f"the build function of {self.name} returned {made!r} at {match.root.name}",
            "It returns a Fused, or the sentence that says why the match does not fuse.",
        )

    def _by_name(self, match: Match, view: View) -> Fused | str:
        inputs = {name: match.get(name) for name in self.operator.inputs}
        attributes: dict[str, Any] = {}
        for name in self.operator.attributes:
            bound = match.get(name)
            literal = any(item.variables[name].kind == "attribute" for item in self.patterns)
            value = bound if literal or not isinstance(bound, str) else view.scalar(bound)
            if value is None:
                return f"{name} is not bound to a number"
            attributes[name] = value
        values = getattr(match, "values", (match.root.outputs[0],))
        return Fused(inputs, dict(zip(self.operator.outputs, values, strict=False)), attributes)
