"""Calls of model-local functions replaced by the functions' bodies: of operators, of chosen nodes, or of every call.

All of it goes through onnx's own inliner, which knows functions by name: where that is too coarse, a call gets a body of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from google.protobuf.message import EncodeError
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, inliner

from onnx_fuse.errors import ModelError


def inline_bodies(model: ModelProto, operators: Iterable[tuple[str, str]]) -> ModelProto:
    """The model with the bodies of these (domain, name) operators in place of their nodes."""
    wanted = sorted(set(operators))
    if not wanted:
        return model
    try:
        return inliner.inline_selected_functions(model, wanted)
    except RuntimeError as error:
        cause = f"The bodies of the fused operators cannot be inlined: {str(error).rstrip('.')}."
        raise ModelError(cause, "Keep them as functions (--functions keep).") from error


def inline_nodes(model: ModelProto, wanted: Callable[[NodeProto], bool]) -> ModelProto:
    """The model with the bodies of some of its main graph's nodes in their places, named after the node: `NODE/...`.

    The other nodes keep their bodies; nodes that have none stay as they are. The model itself is not changed.
    """
    bodies = {(item.domain, item.name, item.overload): item for item in model.functions}
    calls = [node for node in model.graph.node if (node.domain, node.op_type, node.overload) in bodies and wanted(node)]
    if not calls:
        return model
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
        ModelError: a function calls itself, or needs operator sets that the model does not have.
    """
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
