"""Calls of model-local functions replaced by the functions' bodies: of operators, of chosen nodes, or of every call.

All of it goes through onnx's own inliner, which knows functions by name: where that is too coarse, a call gets a body of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from google.protobuf.message import EncodeError
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, defs, inliner

from onnx_fuse.errors import ModelError

MOST_INLINED = 1 << 20
"""Nodes that a model may have once its functions are inlined: a few that call each other twice are more than any machine holds."""


def inline_bodies(model: ModelProto, operators: Iterable[tuple[str, str]]) -> ModelProto:
    """The model with the bodies of these (domain, name) operators in place of their nodes.

    What has been inlined may be fused again; inlined again, it is what it was.
    """
    wanted = sorted(set(operators))
    if not wanted:
        return model
    before = {name for node in model.graph.node for name in node.output}
    made = {name for node in model.graph.node if (node.domain, node.op_type) in wanted for name in node.output}
    try:
        inlined = inliner.inline_selected_functions(model, wanted)
    except RuntimeError as error:
        cause = f"The bodies of the fused operators cannot be inlined: {str(error).rstrip('.')}."
        raise ModelError(cause, "Keep them as functions (--functions keep).") from error
    _drop_idle_casts(inlined, before, made)
    return inlined


def _drop_idle_casts(model: ModelProto, before: Collection[str], made: Collection[str]) -> None:
    """Drops the casts that change nothing, of the bodies just inlined. A body serves every type, and casts to and fro.

    Args:
        model: it is changed.
        before: names of values that were there before the bodies were.
        made: those of them that the bodies make.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    types = _Types(model, producers)
    used = Counter(name for node in nodes_of(model.graph.node) for name in node.input)
    used.update(value.name for value in model.graph.output)
    instead: dict[str, str] = {}
    idle = []
    for place, node in enumerate(model.graph.node):
        if node.op_type not in ("Cast", "CastLike") or node.domain not in ("", "ai.onnx"):
            continue
        source, result = instead.get(node.input[0], node.input[0]), node.output[0]
        if (
            (result in before and result not in made)
            or types.of(source) != types.of(result)
            or types.of(result) is None
        ):
            continue
        if result not in before:
            instead[result] = source
        elif source not in before and used[source] == 1 and source == node.input[0]:
            producer = producers[source]
            producer.output[list(producer.output).index(source)] = result
        else:
            continue  # the value needs both names
        idle.append(place)
    for place in reversed(idle):
        del model.graph.node[place]
    for node in nodes_of(model.graph.node) if instead else ():
        for position, name in enumerate(node.input):
            if name in instead:
                node.input[position] = instead[name]


class _Types:
    """Element types of values, as far as declarations, casts and the schemas of operators tell them."""

    def __init__(self, model: ModelProto, producers: Mapping[str, NodeProto]) -> None:
        graph = model.graph
        self._producers = producers
        self._opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=1)
        self._known = {
            value.name: value.type.tensor_type.elem_type or None
            for value in (*graph.value_info, *graph.input, *graph.output)
        }
        self._known |= {tensor.name: tensor.data_type for tensor in graph.initializer}

    def of(self, name: str) -> int | None:
        """The element type of a value; None where it is not known."""
        way: list[str] = []
        found: int | None = None
        while name not in self._known:
            way.append(name)
            self._known[name] = None  # while it is looked for: a circle ends here
            node = self._producers.get(name)
            given = None if node is None else self._given(node)
            if given is None or not isinstance(given, str):
                self._known[name] = given
                break
            name = given
        found = self._known[name]
        self._known.update(dict.fromkeys(way, found))
        return found

    def _given(self, node: NodeProto) -> int | str | None:
        """The type of a node's first output, or the input whose type it has."""
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Cast":
            return next((int(item.i) for item in node.attribute if item.name == "to"), None)
        if node.op_type == "CastLike":
            return str(node.input[1])
        if node.op_type == "Constant":
            kinds = {"value_float": TensorProto.FLOAT, "value_floats": TensorProto.FLOAT}
            kinds |= {"value_int": TensorProto.INT64, "value_ints": TensorProto.INT64}
            return next((kinds.get(item.name, item.t.data_type or None) for item in node.attribute), None)
        try:
            schema = defs.get_schema(node.op_type, self._opset, "")
        except defs.SchemaError:
            return None
        wanted = schema.outputs[0].type_str if len(node.output) == 1 and schema.outputs else ""
        for parameter, name in zip(schema.inputs, node.input, strict=False):
            if parameter.type_str == wanted and name:
                return str(name)
        return None


def inline_nodes(model: ModelProto, wanted: Callable[[NodeProto], bool]) -> ModelProto:
    """The model with the bodies of some of its main graph's nodes in their places, named after the node: `NODE/...`.

    The other nodes keep their bodies; nodes that have none stay as they are. The model itself is not changed.
    """
    bodies = {(item.domain, item.name, item.overload): item for item in model.functions}
    calls = [node for node in model.graph.node if (node.domain, node.op_type, node.overload) in bodies and wanted(node)]
    if not calls:
        return model
    _require_few(sum(len(bodies[node.domain, node.op_type, node.overload].node) for node in calls))
    copy = ModelProto()
    copy.CopyFrom(model)
    places = {node.output[0]: node for node in copy.graph.node if node.output}
    names = []
    for number, call in enumerate(calls):
        # The inliner goes by names: a body of its own for each call leaves the others alone.
        body = copy.functions.add()
        body.CopyFrom(bodies[call.domain, call.op_type, call.overload])
        body.name, body.overload = f"{call.op_type}__{number}", ""
        for position, inner in enumerate(body.node):
            inner.name = f"{call.name}/{inner.name or inner.op_type}_{position}"
        node = places[call.output[0]]
        node.op_type, node.overload = body.name, ""
        names.append((body.domain, body.name))
    try:
        return inliner.inline_selected_functions(copy, names)
    except RuntimeError as error:
        raise ModelError(f"Bodies cannot be inlined: {error}", "Check the model with onnx.checker.") from error


def inline_calls(model: ModelProto, keep: Callable[[NodeProto], bool]) -> tuple[ModelProto, Counter[str]]:
    """Replaces each call of a model-local function by the function's body, except where `keep` says to keep it; changes `model`.

    TensorRT cannot be given the functions: of several bodies with one name it takes the first, whatever the `overload`; it
    passes over a body whose name it knows as an operator; and attribute references in nested calls become 0. So every call
    gets a body of its own, under an overload of its own and with nodes named after the call, for onnx to inline.

    Returns:
        The model without functions and with every node named (`node_of_OUTPUT`, TensorRT's own way, where it had no name),
        and how often each function was inlined.

    Raises:
        ModelError: a function calls itself, or needs operator sets that the model does not have, or the nodes would be too many.
    """
    count = count_inlined(model)
    if count < math.inf:  # the call that closes a circle is named below
        _require_few(count)
    bodies = {(body.domain, body.name, body.overload): body for body in model.functions}
    own: list[FunctionProto] = []
    inlined: Counter[str] = Counter()

    def give_bodies(nodes: Iterable[NodeProto], prefix: str, callers: tuple[tuple[str, str, str], ...]) -> None:
        for node in nodes_of(nodes):
            node.name = prefix + (node.name or f"node_of_{next(iter(node.output), node.op_type)}")
            call = (node.domain, node.op_type, node.overload)
            if keep(node) or call not in bodies:
                node.ClearField("overload")  # or it might name the body made for another call
                continue
            if call in callers:
                raise ModelError(
                    f"The function {node.domain}::{node.op_type} calls itself (node {node.name}).",
                    "ONNX allows no recursion.",
                )
            body = FunctionProto()
            body.CopyFrom(bodies[call])
            body.overload = node.overload = str(len(own))
            own.append(body)
            inlined[f"{node.domain}::{node.op_type}"] += 1
            give_bodies(body.node, f"{node.name}/", (*callers, call))

    give_bodies(model.graph.node, "", ())
    del model.functions[:]
    if not own:
        return model, inlined
    model.functions.extend(own)
    imported = {opset.domain for opset in model.opset_import}
    for opset in (opset for body in own for opset in body.opset_import):
        if opset.domain not in imported:
            imported.add(opset.domain)
            model.opset_import.add().CopyFrom(opset)
    try:
        model = inliner.inline_local_functions(model, convert_version=True)
    except (RuntimeError, EncodeError) as error:
        raise ModelError(
            f"The functions of the model cannot be inlined: {error}", "Check the model with onnx.checker."
        ) from error
    if model.functions:
        left = model.functions[0]
        wanted = ", ".join(f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in left.opset_import)
        raise ModelError(
            f"The function {left.domain}::{left.name} needs operator sets ({wanted}) other than the model's.",
            "Export it with the operator sets of the model.",
        )
    return model, inlined


def _require_few(count: float) -> None:
    if count > MOST_INLINED:
        raise ModelError(
            f"With its functions inlined the model has {count:.2g} nodes.",
            f"More than {MOST_INLINED} cannot be run: let the functions call each other less often.",
        )


def count_inlined(model: ModelProto) -> float:
    """Number of nodes that the model has with each call replaced by the function's body; infinite where one calls itself."""
    graphs = {(body.domain, body.name, body.overload): body.node for body in model.functions}
    main = ("", "", "")
    graphs[main] = model.graph.node
    called: dict[tuple[str, str, str], Counter[tuple[str, str, str]]] = {}
    counts: dict[tuple[str, str, str], float] = {}
    pending = [main]
    while pending:
        name = pending[-1]
        if name not in called:
            called[name] = Counter((node.domain, node.op_type, node.overload) for node in nodes_of(graphs[name]))
            pending += [call for call in called[name] if call in graphs and call not in counts]
            continue
        pending.pop()
        if name not in counts:
            calls = called[name].items()
            counts[name] = sum(times * (counts.get(call, math.inf) if call in graphs else 1) for call, times in calls)
    return counts[main]


def nodes_of(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes, and those of their subgraphs, in order."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                for graph in (attribute.g, *attribute.graphs):
                    yield from nodes_of(graph.node)


def drop_bodies(model: ModelProto, operators: Iterable[tuple[str, str]]) -> None:
    """Removes the bodies of these (domain, name) operators: only a plugin can run the nodes then."""
    wanted = set(operators)
    keep = [function for function in model.functions if (function.domain, function.name) not in wanted]
    del model.functions[:]
    model.functions.extend(keep)
