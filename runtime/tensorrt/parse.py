"""NVIDIA's ONNX parser on the CPU: does TensorRT take a model, what becomes a plugin, and what is wrong with the rest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, NodeProto
from onnx.helper import get_attribute_value

from onnx_fuse.errors import ModelError, reason
from onnx_fuse.passes.graph.inlining import inline_calls, nodes_of
from onnx_fuse.runtime.plugins import harness, plugin_library
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.plugin_nodes import fused_nodes, is_plugin, operators_without_plugin
from onnx_fuse.runtime.verify.bodies import by_attributes

_INLINED = re.compile(r"__\d+$")  # what onnx's inliner adds to the names of a body's nodes
_NO_WORKSPACE = "needs workspace, which TensorRT does not have inside If, Loop and Scan"


@dataclass(frozen=True)
class ParseIssue:
    """One complaint of the parser.

    Attributes:
        node: name of the node, "" when the complaint is not about one. A node of an inlined body is called `CALL/NODE__k`.
        op_type: operator of that node.
        code: TensorRT's error code, for example "INVALID_NODE"; or, for what it leaves unsaid, our "NO_LAYERS", "NO_WORKSPACE",
            "CONTRADICTED" or "REFUSED".
        message: TensorRT's text.
        stack: the nodes around it from the outside in, when it stands in a subgraph: ("if_node (If)", "branch_node (then_branch)").
    """

    node: str
    op_type: str
    code: str
    message: str
    stack: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of the network. A dynamic dimension is its name, or -1; the shape is None when TensorRT cannot tell."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class ParseResult:
    """What the parser said of a model.

    Attributes:
        accepted: the model became a network of at least one layer, without an error.
        layers: layers of the network (of what could be parsed, if not accepted).
        plugins: names of the nodes that became plugin layers.
        inlined: `domain::operator` -> number of calls replaced by the function body of the model, since no plugin takes them.
        errors: the complaints; empty if and only if accepted.
        inputs, outputs: as TensorRT sees them.
        module, version: the Python module that parsed.
        log: warnings and errors it logged, each `SEVERITY: text`, and our warnings of nodes it takes for others and of nodes
            that cannot be plugins where they stand.
        mistaken: names of nodes meant for a plugin that TensorRT took for operators of its own, as no plugin is registered.
        missing: `domain::operator` of the nodes meant for a plugin for which none is registered.
    """

    accepted: bool
    layers: int
    plugins: tuple[str, ...]
    inlined: dict[str, int]
    errors: tuple[ParseIssue, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    module: str
    version: str
    log: tuple[str, ...]
    mistaken: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def lacking(self) -> tuple[str, ...]:
        """Those of `missing` of which the model has no body either."""
        return tuple(name for name in self.missing if name not in self.inlined)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready data."""
        return asdict(self)


@dataclass(frozen=True)
class ParsedNetwork:
    """TensorRT's network of a model, with the builder and the parser (which owns the weights) that must live as long."""

    result: ParseResult
    network: Any
    parser: Any
    builder: Any


def parse(
    model: ModelProto | str | Path, *, base_dir: str | Path | None = None, plugins: Sequence[str | Path] | None = None
) -> ParseResult:
    """Parses a model with TensorRT.

    Args:
        model: the model, or its path (the only way for one over 2 GB, whose weights are then external and stay on disk).
        base_dir: folder of the external data of a ModelProto; for a path it is the folder of the model.
        plugins: plugin libraries to load first; those that `plugin_library.find` finds if None. They stay loaded in this process.

    Raises:
        UsageError: no TensorRT module, or a plugin library that cannot be loaded.
        ModelError: the model cannot be read, or its functions cannot be inlined.
    """
    return parse_network(model, base_dir=base_dir, plugins=plugins).result


def parse_network(
    model: ModelProto | str | Path, *, base_dir: str | Path | None = None, plugins: Sequence[str | Path] | None = None
) -> ParsedNetwork:
    """As `parse`, and keeps the network, for building an engine of it."""
    trt = binding.module()
    binding.load_plugins(plugin_library.find() if plugins is None else plugins)
    builder = trt.Builder(binding.logger())
    # The parser only looks at the folder of this path; the file need not exist.
    path = model if isinstance(model, (str, Path)) else Path(base_dir or ".") / "model.onnx"
    refused: set[str] = set()
    bodiless: dict[str, str] = {}

    def parsed() -> tuple[Any, Any, bool, list[str], ModelProto, Counter[str], tuple[str, ...]]:
        network = builder.create_network(binding.network_flags())
        parser = trt.OnnxParser(network, binding.logger())
        source = _own_copy(model)
        missing = operators_without_plugin(source)
        prepared, inlined = inline_calls(source, lambda node: is_plugin(node) and node.name not in refused)
        with binding.logged() as log:
            taken = parser.parse(serialized(prepared), str(Path(path).absolute()))
        return network, parser, taken, log, prepared, inlined, missing

    network, parser, taken, log, prepared, inlined, missing = parsed()
    if greedy := _without_workspace(network, prepared):
        refused = {*greedy, *(_INLINED.sub("", name) for name in greedy)}
        network, parser, taken, log, prepared, inlined, missing = parsed()
        bodiless = _without_workspace(network, prepared)
        log += [
            f"WARNING: node {name} {_NO_WORKSPACE}: its body is inlined." for name in greedy if name not in bodiless
        ]
    mistaken = [
        node for node in fused_nodes(prepared) if parser.supports_operator(node.op_type) and not is_plugin(node)
    ]
    log += [
        f"WARNING: no plugin is registered for node {node.name}; TensorRT read it as its own operator {node.op_type}."
        for node in mistaken
    ]
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    _let_attention_decompose(layers, trt)
    errors = tuple(_issue(parser.get_error(index)) for index in range(parser.num_errors))
    if not errors and not taken:
        errors = (ParseIssue("", "", "REFUSED", "TensorRT refused the model without giving an error."),)
    elif not errors and not layers:
        # The parser is content with an empty model, and with bytes that happen to decode as one.
        errors = (ParseIssue("", "", "NO_LAYERS", "The model has nothing in it that becomes a layer."),)
    unbuildable = f"It {_NO_WORKSPACE}, and the model has no body of it."
    errors += tuple(ParseIssue(name, op_type, "NO_WORKSPACE", unbuildable) for name, op_type in bodiless.items())
    plugins_made = tuple(layer.name for layer in layers if layer.type.name.startswith("PLUGIN"))
    # Nodes without a plugin are what their body says.
    errors += tuple(
        ParseIssue(item.node, item.op_type, "CONTRADICTED", f"{item.sentence}.")
        for item in by_attributes(model if isinstance(model, ModelProto) else _own_copy(model)).contradicted
        if any(re.fullmatch(rf"(.*/)?(node_of_)?{re.escape(item.node)}", name) for name in plugins_made)
    )
    result = ParseResult(
        accepted=not errors,
        layers=len(layers),
        plugins=plugins_made,
        inlined=dict(sorted(inlined.items())),
        errors=errors,
        inputs=tuple(_tensor(network.get_input(index)) for index in range(network.num_inputs)),
        outputs=tuple(_tensor(network.get_output(index)) for index in range(network.num_outputs)),
        module=trt.__name__,
        version=trt.__version__,
        log=tuple(log),
        mistaken=tuple(node.name for node in mistaken),
        missing=missing,
    )
    return ParsedNetwork(result, network, parser, builder)


def _let_attention_decompose(layers: Iterable[Any], trt: Any) -> None:
    """Attention layers for which there is no kernel (in float32) fail to build, unless TensorRT may take them apart."""
    for layer in layers:
        if layer.type.name == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def prepare(model: ModelProto | str | Path) -> tuple[ModelProto, Counter[str]]:
    """A copy of a model as TensorRT is to be given it, and how often each body was inlined: those that no loaded plugin takes."""
    return inline_calls(_own_copy(model), is_plugin)


def _without_workspace(network: Any, model: ModelProto) -> dict[str, str]:
    """Name -> operator of the plugin layers of subgraphs that need workspace: the builder fails on them without saying why."""
    inside = {node.name: node for outer in model.graph.node for node in islice(nodes_of([outer]), 1, None)}
    layers = [network.get_layer(index) for index in range(network.num_layers)] if inside else []
    plugins = [layer for layer in layers if layer.type.name.startswith("PLUGIN") and layer.name in inside]
    return {layer.name: inside[layer.name].op_type for layer in plugins if _workspace(layer, inside[layer.name])}


def _workspace(layer: Any, node: NodeProto) -> int:
    """Bytes of workspace that a plugin layer needs if its sizes that are not known are 1; 0 if its library does not tell."""
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    if any(int(tensor.dtype) not in harness.NAMES for tensor in inputs):
        return 0
    tensors = [
        harness.Tensor(harness.NAMES[int(tensor.dtype)], tuple(max(size, 1) for size in tensor.shape))
        for tensor in inputs
    ]
    values = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
    attributes = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
    told = (harness.workspace(path, node.op_type, attributes, tensors) for path in binding.loaded_plugins())
    return next((needed for needed in told if needed is not None), 0)


def _own_copy(model: ModelProto | str | Path) -> ModelProto:
    if isinstance(model, ModelProto):
        copy = ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return onnx.load(model, format="protobuf", load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ModelError(
            f"The model {model} cannot be read: {reason(error)}.", "Give the path of an ONNX file."
        ) from error


def serialized(model: ModelProto) -> bytes:
    """The bytes of a model.

    Raises:
        ModelError: they are more than protobuf allows.
    """
    try:
        data: bytes = model.SerializeToString()
        return data
    except EncodeError as error:
        raise ModelError(
            "The model is larger than 2 GB in memory, more than one ONNX file can hold.",
            "Save it with external data (onnx.save_model(..., save_as_external_data=True)) and pass the path.",
        ) from error


def _issue(error: Any) -> ParseIssue:
    return ParseIssue(
        error.node_name(), error.node_operator(), error.code().name, error.desc(), tuple(error.local_function_stack())
    )


def _tensor(tensor: Any) -> TensorInfo:
    try:
        dims: tuple[int, ...] | None = tuple(tensor.shape)
    except ValueError:  # a rank of -1: the network contradicts itself
        dims = None
    names = [tensor.get_dimension_name(axis) for axis in range(len(dims or ()))]
    shape = (
        None
        if dims is None
        else tuple(name if dim < 0 and name else dim for dim, name in zip(dims, names, strict=True))
    )
    return TensorInfo(tensor.name, tensor.dtype.name, shape)
