"""The kernel library: kernels for the fused operators in ONNX Runtime. Finding it, checking it, and whether a model may run by it.

ONNX Runtime takes a registered operator instead of the body of that name, and does not come back to the body where the operator
refuses a node. So it is decided for each model before anything is registered.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto, OperatorSetIdProto, TensorProto, helper

from onnx_fuse.errors import ModelError, PatternError, UsageError
from onnx_fuse.passes.files import json_object
from onnx_fuse.passes.files.io import load_lazily
from onnx_fuse.passes.graph.inlining import nodes_of
from onnx_fuse.passes.graph.onnx_inference import bounded_inference, without_weights
from onnx_fuse.passes.graph.subgraphs import subgraphs
from onnx_fuse.patterns import fusions
from onnx_fuse.patterns.language.operator import DOMAIN, FLOATS, FusedOp
from onnx_fuse.runtime.device import library_file

LIBRARY = "libgr_ml_infra_onnxruntime.so"
VARIABLE = "ONNX_FUSE_KERNEL_LIBRARY"
"""Environment variable that names the kernel library; none is used where it is empty."""
KIND, BUILD = "kernel library", "onnx-fuse plugins build --for onnxruntime"

GAIN_LESS = {"FusedEmbedLayerNorm"}
"""Operators for whose kernels alone no library is taken: ONNX Runtime makes SkipLayerNormalization of the Add and
LayerNormalization behind such a node, which costs more than the kernel gains."""

Choice = bool | str | os.PathLike[str] | None
"""Which kernel library a model shall run by: None: the one that is found, as far as it can run the model; True: that one, or an
error that says why not; False: none; a path: that library, or an error."""

_FLOATING = FLOATS | {TensorProto.DOUBLE}


@dataclass(frozen=True)
class Library:
    """A kernel library that was built, as the record beside it tells.

    Attributes:
        path: the shared library.
        version: of onnx-fuse.
        sha256: of its bytes.
        size: bytes.
        seconds: how long building it took.
    """

    path: Path
    version: str
    sha256: str
    size: int
    seconds: float


@dataclass(frozen=True)
class Takes:
    """What the kernel of an operator takes: names of element types, and for string attributes their values."""

    types: frozenset[str]
    attributes: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Contents:
    """What a library says of itself on this machine.

    Attributes:
        version: of the operators' domain.
        api: the version of ONNX Runtime's C API that it asks for; 18 is that of ONNX Runtime 1.18.
        instructions: the instruction set that it uses here: "avx512", "avx2" or "plain".
        advised: whether its kernels are faster here than the bodies.
        operators: operator -> what its kernel takes.
    """

    version: str
    api: int
    instructions: str
    advised: bool
    operators: Mapping[str, Takes]


@dataclass(frozen=True)
class Kernels:
    """What runs the fused nodes of a model in ONNX Runtime.

    Attributes:
        library: the kernel library; None where bodies run.
        sha256: of its bytes.
        instructions: the instruction set that it uses.
        nodes: operator -> nodes that run by its kernel.
        bodies: operator -> nodes that run by their bodies.
        reason: why bodies run; "" where no node could run by a kernel.
    """

    library: Path | None = None
    sha256: str = ""
    instructions: str = ""
    nodes: Mapping[str, int] = field(default_factory=dict)
    bodies: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""

    def __str__(self) -> str:
        count, others = sum(self.nodes.values()), sum(self.bodies.values())
        if self.library is None:
            why = f": {self.reason}" if self.reason else ""
            return f"fused nodes by their bodies{why}"
        if not self.nodes:
            return f"fused nodes by the kernels ({self.instructions}) of {self.library}"
        which = f"{count} of {count + others} fused nodes" if others else "fused nodes"
        rest = ", the others by their bodies" if others else ""
        return f"{which} by the kernels ({self.instructions}) of {self.library}{rest}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {**asdict(self), "library": None if self.library is None else str(self.library)}


# --- the library on disk ---------------------------------------------------------------------------------------------


def find() -> Path | None:
    """The kernel library to use: the one that ONNX_FUSE_KERNEL_LIBRARY names (none where it is empty), else the one of the
    package onnx-fuse-plugins or in the user's cache, if its record is beside it; None where there is none."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named) if named else None
    return library_file.found(LIBRARY)


def described(path: Path) -> Library | None:
    """What the record of a library says of it; None where there is none.

    Raises:
        UsageError: there is no such library, or it is not the one that was built: cut short, damaged, or replaced.
    """

    def read(facts: dict[str, Any]) -> Library:
        json_object.require(facts, version=str, size=int, seconds=(int, float))
        return Library(path=path, **facts)

    return library_file.checked(path, KIND, BUILD, read)


def contents(path: Path) -> Contents:
    """Loads a library, whose hash must be the recorded one if it has a record, and asks it what it holds. The same holds for a
    plugin library beside it, which it opens itself.

    Raises:
        UsageError: it is not there, damaged, cannot be loaded, or is no kernel library.
    """
    described(path)
    plugins = path.with_name(library_file.PLUGINS)
    if plugins.is_file():
        library_file.checked(plugins, "plugin library", "onnx-fuse plugins build", dict)
    return _asked(Path(os.path.realpath(path)), library_file.sha256(path, KIND))


@functools.cache
def _asked(path: Path, sha256: str) -> Contents:
    try:
        describe = ctypes.CDLL(str(path)).gr_ml_infra_onnxruntime_describe
    except (OSError, AttributeError) as error:
        raise UsageError(f"{path} is no {KIND} that can be loaded: {error}.", f"Build it again: {BUILD}.") from error
    describe.restype = ctypes.c_char_p
    try:
        told = json_object.parse(describe())
        json_object.require(told, version=str, api=int, instructions=str, operators=dict)
        operators = {
            name: Takes(
                frozenset(item["types"]), {key: frozenset(of) for key, of in item.get("attributes", {}).items()}
            )
            for name, item in told["operators"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{path} does not say what it holds as this version of onnx-fuse reads it: {error}.",
            f"Build it again: {BUILD}.",
        ) from error
    return Contents(told["version"], told["api"], told["instructions"], bool(told.get("advised", True)), operators)


# --- what a model needs ----------------------------------------------------------------------------------------------


def choose(model: ModelProto | str | os.PathLike[str] | None, choice: Choice = None) -> Kernels:
    """What is to run the fused nodes of a model; registers nothing.

    Args:
        model: a file, or a model in memory; None: not known, and taken for one that the library can run.
        choice: see `Choice`.

    Raises:
        UsageError: a library that was asked for, or that ONNX_FUSE_KERNEL_LIBRARY names, is not there or damaged, or a library
            that was asked for lacks what the model needs.
    """
    path = None if choice is False else find() if choice is None or choice is True else Path(choice)
    if path is None and choice is True:
        raise UsageError("No kernel library is found.", f"Build one: {BUILD}.")
    fused: list[tuple[NodeProto, Mapping[str, int]]] = []
    if model is not None:
        try:
            proto, _file = (model, None) if isinstance(model, ModelProto) else load_lazily(model)
        except ModelError:  # ONNX Runtime will say what is wrong with it
            return Kernels()
        fused = list(_fused_nodes(proto))
        if not fused:
            return Kernels()
    every = dict(Counter(node.op_type for node, _ in fused))
    if path is None:
        why = "no kernel library was wanted" if choice is False else f"there is no kernel library, which {BUILD} makes"
        return Kernels(bodies=every, reason=why)
    try:
        held = contents(path)
    except UsageError as error:
        if choice is not None or os.environ.get(VARIABLE):
            raise
        return Kernels(bodies=every, reason=error.cause.rstrip("."))
    nodes = {name: count for name, count in every.items() if name in held.operators}
    if model is not None:
        if not nodes:
            return Kernels(bodies=every, reason=f"{path} has no kernels for {', '.join(every)}")
        lacking = next(_lacking(proto, fused, held), None)
        if lacking is not None and choice is not None:
            raise UsageError(f"The {KIND} {path} cannot run the model: {lacking}.", "Run it without the library.")
        if lacking is not None:
            return Kernels(bodies=every, reason=f"{lacking}, which {path} has no kernel for")
    if not held.advised and choice is None:
        return Kernels(bodies=every, reason=f"on this machine they are faster than the kernels of {path}")
    if set(nodes) <= GAIN_LESS and nodes and choice is None:
        return Kernels(
            bodies=every, reason=f"a kernel for {' and '.join(nodes)} alone makes the rest of a model slower"
        )
    sha256 = library_file.sha256(path, KIND)
    bodies = {name: count for name, count in every.items() if name not in nodes}
    return Kernels(Path(os.path.abspath(path)), sha256, held.instructions, nodes, bodies)


def _fused_nodes(model: ModelProto) -> Iterator[tuple[NodeProto, Mapping[str, int]]]:
    """The nodes of our domain, in functions too, each with the operator sets that it stands under."""
    for function in model.functions:
        yield from _of_domain(function.node, function.opset_import)
    yield from _of_domain(model.graph.node, model.opset_import)


def _of_domain(
    nodes: Iterable[NodeProto], imports: Iterable[OperatorSetIdProto]
) -> Iterator[tuple[NodeProto, Mapping[str, int]]]:
    versions = {item.domain: item.version for item in imports}
    return ((node, versions) for node in nodes_of(nodes) if node.domain == DOMAIN)


def _lacking(model: ModelProto, fused: Iterable[tuple[NodeProto, Mapping[str, int]]], held: Contents) -> Iterator[str]:
    """What of its fused nodes a model has that a library has no kernel for, as part of a sentence."""
    operators = {item.operator.name: item.operator for item in fusions() if item.operator.domain == DOMAIN}
    types: Mapping[str, int] | None = None
    for node, versions in fused:
        takes = held.operators.get(node.op_type)
        if takes is None:
            continue
        called = f"{node.op_type} {node.name or next(iter(node.output), '')}"
        operator, version = operators.get(node.op_type), versions.get(DOMAIN)
        if str(version) != held.version:
            yield f"{called} is of version {version} of {DOMAIN}"
            continue
        values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if operator is None or not _is(operator, values):
            yield f"{called} is another operator of that name"
            continue
        for name, known in takes.attributes.items():
            value = values.get(name, b"")
            word = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
            if word not in known:
                yield f"{called} has {name}={word!r}"
        types = _element_types(model) if types is None else types
        kinds = _element_type(operator, node, values["inputs"].decode().split(","), types)
        if unknown := sorted({_type(kind) for kind in kinds} - takes.types):
            yield f"{called} is of {unknown[0]}"


def _is(operator: FusedOp, values: Mapping[str, Any]) -> bool:
    """Whether a node with such attributes is of the operator, and not of one of the user's own that has its name."""
    try:
        operator.present(dict.fromkeys(values["inputs"].decode().split(","), "there"))
        same = values["plugin_version"].decode() == operator.plugin_version
    except (PatternError, KeyError, AttributeError, UnicodeDecodeError):
        return False
    return same and all(name in values for name in operator.attributes)


def _type(kind: int) -> str:
    return str(helper.tensor_dtype_to_np_dtype(kind).name)


def _element_type(
    operator: FusedOp, node: NodeProto, inputs: Sequence[str], types: Mapping[str, int]
) -> Collection[int]:
    """The element type that a node computes in; all that its operator is for where the model does not tell."""
    given = dict(zip(inputs, node.input, strict=False))
    narrow = (types.get(value, 0) for name, value in given.items() if not operator.may_be_float32(name))
    told = next((kind for kind in (types.get(node.output[0], 0), *narrow) if kind in _FLOATING), None)
    return (operator.types or FLOATS) if told is None else [told]


def _element_types(model: ModelProto) -> dict[str, int]:
    """Value -> element type, of the main graph and its subgraphs, as far as ONNX infers them."""
    light = without_weights(model)
    with contextlib.suppress(Exception):  # what ONNX raises on a malformed model
        light = bounded_inference(light)
    types: dict[str, int] = {}
    pending = [light.graph]
    while pending:
        graph = pending.pop()
        values = (*graph.input, *graph.output, *graph.value_info)
        types |= {value.name: value.type.tensor_type.elem_type for value in values}
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        pending += [inner for node in graph.node for _, inner in subgraphs(node)]
    return types
