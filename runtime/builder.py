"""From a model to an engine on disk: checked, converted, parsed, built for a GPU that need not be here, and kept until something
changes."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnx import AttributeProto, ModelProto, ValueInfoProto, helper

from onnx_fuse import installation
from onnx_fuse.errors import ModelError, UsageError, VerificationError
from onnx_fuse.passes.files import io
from onnx_fuse.passes.files.external_data import external_files
from onnx_fuse.passes.files.staging import Staging, write_file
from onnx_fuse.passes.graph.inlining import inline_calls
from onnx_fuse.passes.precision import NARROW, convert, precision_of, quantized_types
from onnx_fuse.passes.select import cost_model
from onnx_fuse.passes.select import predicted as select
from onnx_fuse.passes.select.predicted import Selection
from onnx_fuse.runtime.device import engine_file, gpus
from onnx_fuse.runtime.device.engine_file import EngineRecord, EngineTensor
from onnx_fuse.runtime.measure.selection import selected
from onnx_fuse.runtime.plugins import plugin_library
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.config import EngineConfig, Profile
from onnx_fuse.runtime.tensorrt.parse import (
    ParsedNetwork,
    ParseResult,
    TensorInfo,
    creator,
    fused_nodes,
    is_plugin,
    operators_without_plugin,
    parse_network,
    serialized,
    text_of,
)
from onnx_fuse.runtime.tensorrt.profiles import profiles_for
from onnx_fuse.runtime.verify.accuracy import Accuracy, measure
from onnx_fuse.runtime.verify.compare import TOLERANCES
from onnx_fuse.runtime.verify.random_inputs import input_specs
from onnx_fuse.versions import __version__

_BLOCK = 1 << 22
_MOST_ERRORS = 5
_FOR_TENSORRT = ("plugin_namespace", "plugin_version")
_FIELD_TYPES = {
    AttributeProto.INT: ("INT32", "INT64"),
    AttributeProto.INTS: ("INT32", "INT64"),
    AttributeProto.FLOAT: ("FLOAT32", "FLOAT64"),
    AttributeProto.FLOATS: ("FLOAT32", "FLOAT64"),
    AttributeProto.STRING: ("CHAR",),
}
_REMEDIES = {
    "workspace": "Give the engine more workspace, or do not limit it (--workspace).",
    "memory": "Free memory, or build on a larger machine.",
    "profile": "Check the shapes (--shapes) against what the model can run on.",
}
_FAR = {"float16": TOLERANCES["float16"], "bfloat16": 8 * TOLERANCES["float16"]}  # bfloat16 has three bits less
_QUANTIZERS = "NVIDIA's nvidia-modelopt (modelopt.onnx.quantization) and onnxruntime.quantization add them"


@dataclass(frozen=True)
class Built:
    """An engine, and what is worth knowing of how it came about.

    Attributes:
        engine: the plan; its record lies beside it.
        record: what is in the record.
        reused: the engine was there and nothing had changed, so it was not built.
        rebuilt: why an engine that was there was built again; None where there was none, or it was reused.
        parsed: what the parser said; None for a reused engine.
        plugins: nodes that became plugin layers.
        without_plugin: reason -> fused nodes that did not.
        assumed: sentences on what was chosen for the caller.
        warnings: sentences on what may not be as wanted.
        converted: nodes in the narrow type and nodes left in float32, where the precision was changed.
        selection: what was decided for the fused nodes with a plugin, as `Selection.to_dict` gives it; None where all stay.
        accuracy: how far that is from the float32 model; None where the precision was not changed.
        seconds: for all of it.
    """

    engine: Path
    record: EngineRecord
    reused: bool
    rebuilt: str | None
    parsed: ParseResult | None
    plugins: tuple[str, ...]
    without_plugin: Mapping[str, tuple[str, ...]]
    assumed: tuple[str, ...]
    warnings: tuple[str, ...]
    converted: tuple[int, int] | None
    accuracy: Accuracy | None
    selection: dict[str, Any] | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "engine": str(self.engine)}


@dataclass(frozen=True)
class _Source:
    """The model as it came: its name, its protobuf without external data, the folder of that, and a hash of both."""

    name: str
    proto: ModelProto
    folder: Path
    sha256: str


@dataclass(frozen=True)
class _Prepared:
    """The model as the parser gets it."""

    proto: ModelProto
    inlined: dict[str, int]
    converted: tuple[int, int] | None
    accuracy: Accuracy | None
    warnings: tuple[str, ...]


def build(
    model: ModelProto | str | Path,
    output: str | Path,
    config: EngineConfig | None = None,
    *,
    base_dir: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
    listener: Callable[[str], None] | None = None,
) -> Built:
    """Builds an engine of a model, fused or not, unless the one at `output` was built of the same with the same.

    Args:
        model: the model, or its path.
        output: where to put the plan; its record goes beside it, `OUTPUT.json`. Both appear or neither does.
        config: how to build it.
        base_dir: folder of the external data of a ModelProto.
        progress: called with a word on what is being done.
        listener: called with every line that TensorRT logs.

    Raises:
        UsageError: the configuration does not fit the model or this machine, or TensorRT or a plugin library is missing.
        ModelError: the model cannot be read.
        VerificationError: TensorRT does not accept the model, or builds no engine of it.
        OutputError: the engine cannot be written.
    """
    started = time.perf_counter()
    say = progress or (lambda _: None)
    config = config or EngineConfig()
    output = Path(output)
    io.check_output(output)
    if not isinstance(model, ModelProto) and Path(model).resolve() == output.resolve():
        raise UsageError(f"The engine would overwrite the model {model}.", "Choose another name for the engine.")
    say("reading the model")
    source = _load(model, base_dir)
    libraries = [
        path.resolve() for path in (plugin_library.find() if config.plugins is None else map(Path, config.plugins))
    ]
    binding.load_plugins(libraries)
    profiles, assumed = profiles_for(input_specs(source.proto), config)
    targets, notes = _targets(config)
    without = _without_plugin(source.proto, libraries)
    selection = _selected(source, config, profiles, targets, say)
    if selection is not None and (left_out := selection.left_out):
        source = replace(source, proto=select.without(source.proto, left_out))
        without["its plugin is not predicted to pay" if config.select == "auto" else "its plugin does not pay"] = tuple(
            item.node for item in selection.decisions if not item.keep
        )
    fused = [node.name or node.output[0] for node in fused_nodes(source.proto) if is_plugin(node)]
    record = EngineRecord(
        model=source.name,
        key="",
        module=binding.module().__name__,
        version=binding.module().__version__,
        targets=targets,
        inputs=(),
        outputs=(),
        profiles=profiles,
        plugins={str(path): _sha256(path) for path in libraries} if fused else {},
        layers={},
        sha256="",
        options=_options(config, selection),
    )
    record = replace(record, key=_key(source, record))
    present, rebuilt = _present(output, record)
    decided = None if selection is None else selection.to_dict()
    if present is not None:
        seconds = time.perf_counter() - started
        return Built(
            output, present, True, None, None, tuple(fused), without, assumed, notes, None, None, decided, seconds
        )

    prepared = _prepare(source, config, say)
    say("parsing")
    parsed = parse_network(prepared.proto, base_dir=source.folder, plugins=())
    # Those of plugins that cannot stand where they are come on top.
    inlined = dict(Counter(prepared.inlined) + Counter(parsed.result.inlined))
    result = replace(parsed.result, inlined=inlined, missing=operators_without_plugin(source.proto))
    _check_accepted(result, source.name)
    wanted = [node.name for node in fused_nodes(prepared.proto) if is_plugin(node)]
    if missing := [name for name in wanted if name not in result.plugins]:
        without = {**without, "TensorRT made no plugin layer of it": tuple(missing)}
    say("building the engine")
    with binding.listening(listener):
        plan = _plan(parsed, config, record, assumed)
    record = replace(
        record,
        inputs=_tensors(source.proto.graph.input, result.inputs),
        outputs=_tensors(source.proto.graph.output, result.outputs),
        layers=_layers(parsed),
        sha256=hashlib.sha256(plan).hexdigest(),
    )
    with Staging() as staging:
        staging.write(output, plan)
        staging.write(engine_file.record_path(output), engine_file.to_json(record))
        staging.commit()
    return Built(
        engine=output,
        record=record,
        reused=False,
        rebuilt=rebuilt,
        parsed=result,
        plugins=result.plugins,
        without_plugin=without,
        assumed=assumed,
        warnings=(*notes, *prepared.warnings),
        converted=prepared.converted,
        accuracy=prepared.accuracy,
        selection=decided,
        seconds=time.perf_counter() - started,
    )


# --- what it is built of ----------------------------------------------------------------------------------------------


def _load(model: ModelProto | str | Path, base_dir: str | Path | None) -> _Source:
    digest = hashlib.sha256()
    if isinstance(model, ModelProto):
        name, proto, folder = model.graph.name, model, Path(base_dir or ".")
        digest.update(serialized(proto))
    else:
        path = Path(model)
        name, proto, folder = path.name, io.load(path), path.parent
        digest.update(_sha256(path).encode())
    for file in external_files(proto):
        digest.update(f"\0{file.location}\0{_sha256(folder / file.location)}".encode())
    return _Source(name, proto, folder, digest.hexdigest())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.", "Check the file and its permissions.") from error
    return digest.hexdigest()


def _targets(config: EngineConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The compute capabilities that the engine is for (none: the GPU of this machine), and warnings.

    Raises:
        UsageError: they cannot be built for, or there is neither a target nor a GPU.
    """
    module, can = binding.module().__name__, binding.features()
    notes: tuple[str, ...] = ()
    if config.timing_cache is not None and not can.timing_cache:
        notes = (f"{module} measures nothing while it builds and has no timing cache: that setting is not used.",)
    if can.targets:
        unknown = [target for target in config.targets if target not in can.targets]
        if unknown:
            raise UsageError(
                f"{module} does not build for {', '.join(unknown)}.", f"Targets are {', '.join(can.targets)}."
            )
        return tuple(config.targets) or can.portable, notes
    if config.targets:
        raise UsageError(
            f"{module} builds for the GPU of this machine only, not for {', '.join(config.targets)}.",
            "Leave the target out, or build with tensorrt_rtx, in an environment without tensorrt: "
            f"{installation.add_extra('tensorrt-rtx')}",
        )
    if gpus.first() is None:
        raise UsageError(
            f"{module} builds for the GPU of this machine, and there is none.",
            "Build where the GPU is; or ahead of time, with a target such as --target SM86 or SM120, and tensorrt_rtx in an "
            f"environment without tensorrt: {installation.add_extra('tensorrt-rtx')}",
        )
    return (), notes


def _selected(
    source: _Source,
    config: EngineConfig,
    profiles: Sequence[Profile],
    targets: Sequence[str],
    say: Callable[[str], None],
) -> Selection | None:
    """Which of the fused nodes that would become plugins are worth it, at the sizes that the first profile is optimised for."""
    plugins_of = {node.name or node.output[0] for node in source.proto.graph.node if is_plugin(node)}
    if config.select == "all" or not plugins_of:
        return None
    say("selecting")
    device = cost_model.device_for([f"sm_{target.removeprefix('SM')}" for target in targets] or [str(gpus.first())])

    def of_operators(predicted: Selection, kept: Collection[str]) -> ModelProto:
        others = [item.node for item in predicted.decisions if item.operator not in kept]
        return select.without(source.proto, others)

    return selected(
        config.select,
        source.proto,
        of_operators,
        among=plugins_of,
        sizes={name: of.opt for name, of in profiles[0].items()} if profiles else None,
        device=None if device is None else device.name,
        precision=config.precision if config.precision in ("float32", *NARROW) else None,
        folder=source.folder,
        progress=say,
    )


def _options(config: EngineConfig, selection: Selection | None) -> dict[str, Any]:
    names = ("precision", "opt_level", "workspace")
    chosen = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return chosen if selection is None else {**chosen, "without_plugin": sorted(selection.left_out)}


def _key(source: _Source, record: EngineRecord) -> str:
    """SHA-256 over everything that the engine depends on."""
    parts = {
        "onnx_fuse": __version__,
        "model": source.sha256,
        "record": asdict(record),
        "device": None if record.targets else str(gpus.first()),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _present(output: Path, wanted: EngineRecord) -> tuple[EngineRecord | None, str | None]:
    """The record of the engine that is there if it is the one wanted; else why it has to be built again, if there is one."""
    if not output.exists():
        return None, None
    try:
        found = engine_file.read(output)
    except ModelError as error:
        return None, error.cause
    if found.key == wanted.key:
        return found, None
    for name, what in (
        ("model", "it is of another model"),
        ("version", "TensorRT has another version"),
        ("module", "it is of another TensorRT module"),
        ("targets", "it is for other GPUs"),
        ("plugins", "the plugin libraries are others"),
        ("profiles", "the shapes are others"),
        ("options", "the options are others"),
    ):
        if getattr(found, name) != getattr(wanted, name):
            return None, f"The engine {output} is out of date: {what}."
    return None, f"The engine {output} is out of date: the model, onnx-fuse or the GPU has changed."


# --- fused nodes and their plugins ------------------------------------------------------------------------------------


def _without_plugin(proto: ModelProto, libraries: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Reason -> fused nodes for which no plugin is registered."""
    found: dict[str, tuple[str, ...]] = {}
    for node in fused_nodes(proto):
        if not is_plugin(node):
            wanted = (
                f"{text_of(node, 'plugin_namespace')}::{node.op_type} version {text_of(node, 'plugin_version') or '1'}"
            )
            reason = f"no loaded library has a plugin {wanted}" if libraries else "no plugin library is loaded"
            found[reason] = (*found.get(reason, ()), node.name or node.output[0])
    return found


def _check_fields(proto: ModelProto) -> None:
    """Holds each fused node's attributes against the fields that its plugin takes: TensorRT drops what is not among them.

    Raises:
        VerificationError: an attribute is no field, or of another type.
    """
    for node in fused_nodes(proto):
        maker = creator(node, text_of(node, "plugin_namespace"))
        if maker is None:
            continue
        fields = {field.name: field.type.name for field in maker.field_names}
        for attribute in node.attribute:
            kinds = _FIELD_TYPES.get(attribute.type)
            if attribute.name in _FOR_TENSORRT or (kinds and fields.get(attribute.name) in (*kinds, "UNKNOWN")):
                continue
            if attribute.name in fields and kinds is None:
                continue  # a tensor or shape: the creator says what it makes of it
            has = f"is {fields[attribute.name]} there" if attribute.name in fields else "is no field of the plugin"
            kind = AttributeProto.AttributeType.Name(attribute.type)
            raise VerificationError(
                f"Node {node.name or node.output[0]} ({node.op_type}): attribute {attribute.name} ({kind}) {has}, so TensorRT "
                "would build something else than the model says.",
                "Fuse the model and build the plugin library with the same version of onnx-fuse, or build without plugins.",
            )


def _prepare(source: _Source, config: EngineConfig, say: Callable[[str], None]) -> _Prepared:
    """Inlines the bodies of what no plugin takes, then converts the precision; bodies of plugins stay for ONNX Runtime.

    Raises:
        UsageError: the precision asked for cannot be had of this model.
        VerificationError: a fused node does not fit its plugin.
    """
    proto = ModelProto()
    proto.CopyFrom(source.proto)
    bodies = list(source.proto.functions)
    overloads = {node.output[0]: node.overload for node in proto.graph.node if is_plugin(node)}
    proto, inlined = inline_calls(proto, is_plugin)
    _check_fields(proto)
    kept = set()
    for node in proto.graph.node:
        if overload := overloads.get(next(iter(node.output), "")):
            node.overload = overload
        kept.add((node.domain, node.op_type, node.overload))
    proto.functions.extend(body for body in bodies if (body.domain, body.name, body.overload) in kept)
    wanted = _wanted_precision(proto, config)
    if wanted is None:
        return _Prepared(proto, dict(sorted(inlined.items())), None, None, ())
    say(f"converting to {wanted}")
    done = convert(proto, wanted, base_dir=source.folder)
    warnings = [f"{reason}: {count} nodes stay float32." for reason, count in done.kept.items()]
    if not done.narrow:
        warnings.append(f"No node could be converted to {wanted}.")
    accuracy = None
    if config.verify:
        say("comparing with the float32 model")
        accuracy = measure(proto, done, wanted, source.folder)
        warnings += [f"In {wanted} {sentence}." for sentence in accuracy.broken]
        if accuracy.worst > _FAR[wanted]:
            share = f"{accuracy.worst:.1%} of its largest magnitude"
            warnings.append(f"In {wanted} an output differs by {share}: see if it still serves.")
    return _Prepared(done.model, dict(sorted(inlined.items())), (done.narrow, done.wide), accuracy, tuple(warnings))


def _wanted_precision(proto: ModelProto, config: EngineConfig) -> str | None:
    """What to convert the model to; None to leave it."""
    wanted = config.precision
    if wanted in ("int8", "fp8"):
        if wanted not in quantized_types(proto):
            raise UsageError(
                f"{wanted} is only for models with QuantizeLinear and DequantizeLinear nodes of that type, and this has none.",
                f"Quantise it first: {_QUANTIZERS}.",
            )
        return None
    held = precision_of(proto)
    if wanted is None or wanted == held:
        return None
    if wanted == "float32":
        raise UsageError(
            f"The model is in {held}; float32 would be slower and no more exact.",
            "Export it in float32, or leave the precision out.",
        )
    return wanted


# --- TensorRT ---------------------------------------------------------------------------------------------------------


def _check_accepted(result: ParseResult, name: str) -> None:
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


def _plan(parsed: ParsedNetwork, config: EngineConfig, record: EngineRecord, assumed: Sequence[str]) -> bytes:
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
        settings.set_timing_cache(settings.create_timing_cache(path.read_bytes() if path.is_file() else b""), False)
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


def _tensors(declared: Iterable[ValueInfoProto], seen: Iterable[TensorInfo]) -> tuple[EngineTensor, ...]:
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


def _layers(parsed: ParsedNetwork) -> dict[str, tuple[str, ...]]:
    """Layer of the network -> the ONNX nodes it came from, as the parser noted them."""
    layers = map(parsed.network.get_layer, range(parsed.network.num_layers))
    found = {layer.name: tuple(re.findall(r"\[ONNX Layer: (.*?)\](?=$|\s|\[)", layer.metadata)) for layer in layers}
    return {name: nodes for name, nodes in found.items() if nodes}
