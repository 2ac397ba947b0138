"""ONNX Runtime on the CPU as an executor: fused nodes run by the kernel library, or by their function bodies."""

from __future__ import annotations

import bisect
import itertools
import json
import re
import statistics
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from onnx_fuse.errors import ModelError
from onnx_fuse.passes.graph.inlining import inline_calls
from onnx_fuse.patterns.language.operator import DOMAIN
from onnx_fuse.runtime.device.arrays import Tensor, numpy_dtype
from onnx_fuse.runtime.device.engine_file import EngineTensor
from onnx_fuse.runtime.device.executor import PRODUCTS, Device, HostDevice, LayerTime, Profile
from onnx_fuse.runtime.onnxruntime import sessions
from onnx_fuse.runtime.onnxruntime.kernel_library import Choice, choose

_NODE = re.compile(r"@(\d+)@")  # the mark of the graph's n-th node, in names of its parts
_INSIDE = "@inside@"  # the mark of nodes within If, Loop and Scan, whose time is part of theirs
_SUFFIX = "_kernel_time"


class OrtExecutor:
    """A model in ONNX Runtime.

    Args:
        model: a file, or a model in memory without external data.
        optimise: let ONNX Runtime rewrite the graph.
        threads: threads of one run; ONNX Runtime's choice if None.
        device: where inputs and outputs lie; the CPU must be able to read it.
        library: the kernel library for fused nodes (see `kernel_library.Choice`): by default the one that is found.

    Attributes:
        kernels: what runs the fused nodes.

    Raises:
        ModelError: ONNX Runtime cannot load the model, or an input or output is no tensor of numbers.
        UsageError: the kernel library that was asked for is not there or damaged, or lacks what the model needs.
    """

    profiles: tuple[Profile, ...] = ()
    shape_inputs: frozenset[str] = frozenset()

    def __init__(
        self,
        model: ModelProto | str | Path,
        *,
        optimise: bool = True,
        threads: int | None = None,
        device: Device | None = None,
        library: Choice = None,
    ) -> None:
        self._model, self._optimise, self._threads = model, optimise, threads
        self.kernels = choose(model, library)
        self.session = sessions.session(model, optimise=optimise, threads=threads, library=self.kernels.library)
        self.device: Device = device or HostDevice()
        name = f"model {model.graph.name!r}" if isinstance(model, ModelProto) else str(model)
        fused = f"; {self.kernels}" if self.kernels.nodes or self.kernels.bodies else ""
        self.description = f"ONNX Runtime {ort.__version__} on the CPU, {name}{fused}"
        self.inputs = tuple(_tensor(item, name) for item in self.session.get_inputs())
        self.outputs = tuple(_tensor(item, name) for item in self.session.get_outputs())

    def context(self, profile: int, stream: int) -> OrtContext:
        return OrtContext(self)

    def layers(self, profile: int, inputs: Mapping[str, Tensor], runs: int) -> list[LayerTime]:
        """The times of ONNX Runtime's kernels, added up by the node of the model they belong to.

        What it makes of several nodes counts for the one whose name it keeps, or is a layer of its own where it keeps none.
        """
        model, base = self._model, None
        if not isinstance(model, ModelProto):
            from onnx_fuse.passes.files import io

            base, model = Path(model).parent, io.load(model)
        feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
        with tempfile.TemporaryDirectory(prefix="onnx-fuse-") as folder:
            session = sessions.session(
                marked(model, self.kernels.nodes),
                base_dir=base,
                optimise=self._optimise,
                threads=self._threads,
                profile=Path(folder) / "profile",
                library=self.kernels.library,
            )
            for _ in range(runs + 1):
                sessions.run(session, feeds)
            events = json.loads(Path(session.end_profiling()).read_text())
        return _layers(events, model, runs)


class OrtContext:
    """One binding of inputs and outputs to memory."""

    def __init__(self, executor: OrtExecutor) -> None:
        self._executor = executor
        self._binding = executor.session.io_binding()
        self._made: list[str] = []

    def prepare(self, inputs: Mapping[str, Tensor]) -> Mapping[str, tuple[int, ...] | None]:
        # The names of other dimensions are not to be relied on: exporters give one name to dimensions that differ.
        return {item.name: _fixed(item.shape) for item in self._executor.outputs}

    def enqueue(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        for name, tensor in inputs.items():
            self._binding.bind_input(name, "cpu", 0, _elem_type(tensor), tensor.shape, tensor.address)
        for item in self._executor.outputs:
            if item.name not in outputs:
                self._binding.bind_output(item.name, "cpu")
                continue
            tensor = outputs[item.name]
            self._binding.bind_output(item.name, "cpu", 0, _elem_type(tensor), tensor.shape, tensor.address)
        self._made = [item.name for item in self._executor.outputs if item.name not in outputs]
        try:
            self._executor.session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types, none of them public
            raise sessions.translated(error, "ONNX Runtime cannot run the model") from error

    def made(self) -> Mapping[str, Tensor]:
        values = dict(zip((item.name for item in self._executor.outputs), self._binding.get_outputs(), strict=True))
        types = {item.name: item.dtype for item in self._executor.outputs}
        where = self._executor.device.where
        found = {
            name: Tensor(values[name].data_ptr(), types[name], tuple(values[name].shape()), where, values[name])
            for name in self._made
        }
        self._binding.clear_binding_outputs()  # the values are the caller's now
        return found


def _fixed(shape: tuple[int | str, ...]) -> tuple[int, ...] | None:
    sizes = tuple(dim for dim in shape if isinstance(dim, int))
    return sizes if shape and len(sizes) == len(shape) else None  # () may be a rank that is not known


def _elem_type(tensor: Tensor) -> int:
    return helper.np_dtype_to_tensor_dtype(numpy_dtype(tensor.dtype))


def _tensor(item: Any, model: str) -> EngineTensor:
    kind = re.fullmatch(r"tensor\((\w+)\)", item.type)
    if kind is None or kind[1] == "string":
        raise ModelError(
            f"{model}: {item.name!r} is a {item.type}, and only tensors of numbers can be run here.",
            "Use onnxruntime.InferenceSession for it.",
        )
    aliases = {"float": "FLOAT", "double": "DOUBLE"}
    number = TensorProto.DataType.Value(aliases.get(kind[1], kind[1].upper()))
    # A dimension without a name has one that is its own: it follows from no input.
    shape = tuple(
        dim if isinstance(dim, int | str) else f"{item.name}:{axis}" for axis, dim in enumerate(item.shape or ())
    )
    return EngineTensor(item.name, helper.tensor_dtype_to_np_dtype(number).name, shape)


# --- times of nodes --------------------------------------------------------------------------------------------------


def marked(model: ModelProto, kernels: Collection[str] = ()) -> ModelProto:
    """A copy whose nodes are named after the nodes of `model` they come from, all functions inlined.

    ONNX Runtime inlines functions too, but does not keep which node called them.

    Args:
        kernels: operators of our domain that run by kernels: their nodes stay as they are.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    for number, node in enumerate(copy.graph.node):
        node.name = f"@{number}@"
    counter = itertools.count()
    for node in itertools.chain(copy.graph.node, *(body.node for body in copy.functions)):
        for inner in _held(node):
            inner.name = f"{_INSIDE}{next(counter)}"
    return inline_calls(copy, lambda node: node.domain == DOMAIN and node.op_type in kernels)[0]


def _held(node: NodeProto) -> Iterator[NodeProto]:
    """The nodes of a node's subgraphs."""
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.type == AttributeProto.GRAPH else ():
            yield inner
            yield from _held(inner)


def _layers(events: Sequence[Mapping[str, Any]], model: ModelProto, runs: int) -> list[LayerTime]:
    """ONNX Runtime's events as layers, in the order of execution: one for each node, and for each kernel of no node."""
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    totals: dict[str, list[float]] = {}  # key of a layer -> seconds in each run
    products: dict[str, list[float]] = {}
    operators: dict[str, str] = {}
    for event in sorted(events, key=lambda event: event["ts"]):
        name = event["name"].removesuffix(_SUFFIX)
        round_ = bisect.bisect(starts, event["ts"]) - 1
        if name == event["name"] or _INSIDE in name or round_ < 0:
            continue
        number = _NODE.search(name)
        key, operator = number[0] if number else name, event["args"]["op_name"]
        operators.setdefault(key, operator)
        for table in (totals, products) if operator in PRODUCTS else (totals,):
            table.setdefault(key, [0.0] * len(starts))[round_] += event["dur"] / 1e6
    return [
        _layer(key, times[-runs:], products.get(key, [0.0])[-runs:], operators[key], model)
        for key, times in totals.items()
    ]


def _layer(key: str, times: Sequence[float], products: Sequence[float], operator: str, model: ModelProto) -> LayerTime:
    seconds, in_products = statistics.median(times), statistics.median(products)
    number = _NODE.fullmatch(key)
    if number is None:
        return LayerTime(key, seconds, (), (operator,), in_products)
    node = model.graph.node[int(number[1])]
    name = node.name or next(filter(None, node.output), "")
    is_function = any((item.domain, item.name) == (node.domain, node.op_type) for item in model.functions)
    return LayerTime(name, seconds, (name,), (node.op_type if is_function else operator,), in_products)
