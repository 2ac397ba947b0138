"""From a network that TensorRT accepts to a plan: how it is built, and what the plan has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onnx import ValueInfoProto, helper

from onnx_fuse.errors import UsageError, VerificationError
from onnx_fuse.passes.files.staging import write_file
from onnx_fuse.runtime.device.engine_file import EngineRecord, EngineTensor
from onnx_fuse.runtime.plugins import plugin_library
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.config import EngineConfig, Profile
from onnx_fuse.runtime.tensorrt.parse import ParsedNetwork, ParseResult, TensorInfo

_MOST_ERRORS = 5
_REMEDIES = {
    "workspace": "Give the engine more workspace, or do not limit it (--workspace).",
    "memory": "Free memory, or build on a larger machine.",
    "profile": "Check the shapes (--shapes) against what the model can run on.",
}


def require_accepted(result: ParseResult, name: str) -> None:
    """Sees to it that TensorRT takes the model of that name.

    Raises:
        VerificationError: it does not, or takes nodes that are meant for a plugin for operators of its own.
    """
    if result.mistaken:
        raise VerificationError(
            f"TensorRT takes {', '.join(result.mistaken)} for operators of its own: they have its names, and no plugin is "
            "registered for them.",
            "Load the plugin library, or call the operators something that TensorRT does not know.",
        )
    if not result.accepted and result.lacking:
        raise VerificationError(
            f"{result.module} does not accept {name}: it has no plugin for {', '.join(result.lacking)}, and the model no body.",
            plugin_library.how_to_get(result.lacking),
        )
    if not result.accepted:
        shown = [
            f"{issue.node or 'the model'} ({issue.op_type}): {issue.message}" for issue in result.errors[:_MOST_ERRORS]
        ]
        raise VerificationError(
            f"{result.module} does not accept {name}: {'; '.join(shown)}", "`onnx-fuse parse` shows all errors by node."
        )


def plan_of(parsed: ParsedNetwork, config: EngineConfig, record: EngineRecord, assumed: Sequence[str]) -> bytes:
    """The plan that TensorRT builds of a network; what it measured for that goes into the timing cache.

    Args:
        record: says the profiles and the targets, and names the model.
        assumed: sentences on the shapes that were chosen for the caller.

    Raises:
        UsageError: as for `configure`.
        VerificationError: TensorRT builds none.
    """
    settings = configure(parsed, config, record.profiles, record.targets)
    with binding.logged() as log:
        plan = parsed.builder.build_serialized_network(parsed.network, settings)
    if plan is None:
        reason = next((line for line in log if "ERROR" in line), "it gives no reason")
        if "profile" in reason and assumed:
            remedy = f"It was assumed that {' and '.join(assumed)}: give shapes that the model runs on (--shapes)."
        else:
            known = (text for word, text in _REMEDIES.items() if word in reason.lower())
            remedy = next(known, "Run it with -v for TensorRT's log.")
        raise VerificationError(f"{record.module} builds no engine of {record.model}: {reason}", remedy)
    if config.timing_cache is not None and binding.features().timing_cache:
        write_file(config.timing_cache, bytes(settings.get_timing_cache().serialize()))
    return bytes(plan)


def configure(parsed: ParsedNetwork, config: EngineConfig, profiles: Iterable[Profile], targets: Sequence[str]) -> Any:
    """TensorRT's builder configuration for a network.

    Raises:
        UsageError: a range of shapes is refused, or an input's values would have to be given.
    """
    trt, can = binding.module(), binding.features()
    settings = parsed.builder.create_builder_config()
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that layers keep the names of their nodes
    if config.opt_level is not None:
        settings.builder_optimization_level = config.opt_level
    if config.workspace is not None:
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace)
    if can.targets and tuple(targets) != can.portable:
        settings.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            settings.set_compute_capability(getattr(trt.ComputeCapability, target), index)
    if config.timing_cache is not None and can.timing_cache:
        path = Path(config.timing_cache)
        try:
            known = path.read_bytes() if os.path.exists(path) else b""
        except OSError as error:
            raise UsageError(
                f"The timing cache {path} cannot be read: {error.strerror}.", "Choose another file for it."
            ) from error
        settings.set_timing_cache(settings.create_timing_cache(known), False)
    inputs = [parsed.network.get_input(index) for index in range(parsed.network.num_inputs)]
    for shapes in profiles:
        profile = parsed.builder.create_optimization_profile()
        for tensor in inputs:
            if tensor.is_shape_tensor:
                raise UsageError(
                    f"The values of input {tensor.name} become a shape in the model, and an engine needs a range for them.",
                    "Export the model so that shapes follow from those of its inputs.",
                )
            if -1 in tuple(tensor.shape):
                profile.set_shape(
                    tensor.name, shapes[tensor.name].min, shapes[tensor.name].opt, shapes[tensor.name].max
                )
        with binding.logged() as log:
            added = settings.add_optimization_profile(profile)
        if added < 0:
            raise UsageError(f"TensorRT refuses the shapes: {' '.join(log) or 'it gives no reason'}", "Check --shapes.")
    return settings


def tensors_of(declared: Iterable[ValueInfoProto], seen: Iterable[TensorInfo]) -> tuple[EngineTensor, ...]:
    """Inputs or outputs: types as in the model, sizes as TensorRT knows them, names for those that may differ."""
    by_name = {value.name: value for value in declared}
    found = []
    for tensor in seen:
        value = by_name[tensor.name]
        dims = [dim.dim_param or f"{tensor.name}:{axis}" for axis, dim in enumerate(value.type.tensor_type.shape.dim)]
        shape = tensor.shape if tensor.shape is not None else tuple(dims)
        named = tuple(
            dim if isinstance(dim, int) and dim >= 0 else (dims[axis] if axis < len(dims) else f"{tensor.name}:{axis}")
            for axis, dim in enumerate(shape)
        )
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        found.append(EngineTensor(tensor.name, kind.name, named))
    return tuple(found)


def layers_of(parsed: ParsedNetwork) -> dict[str, tuple[str, ...]]:
    """Layer of the network -> the ONNX nodes it came from, as the parser noted them."""
    layers = map(parsed.network.get_layer, range(parsed.network.num_layers))
    found = {layer.name: tuple(re.findall(r"\[ONNX Layer: (.*?)\](?=$|\s|\[)", layer.metadata)) for layer in layers}
    return {name: nodes for name, nodes in found.items() if nodes}
