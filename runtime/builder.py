"""From a model to an engine on disk: checked, converted, parsed, built for a GPU that need not be here, and kept until something
changes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnx_fuse import installation
from onnx_fuse.errors import ModelError, UsageError
from onnx_fuse.passes.files import io
from onnx_fuse.passes.files.digest import sha256
from onnx_fuse.passes.files.external_data import external_files
from onnx_fuse.passes.files.staging import Staging, require_apart
from onnx_fuse.passes.graph.inlining import inline_calls
from onnx_fuse.passes.precision import NARROW, convert, precision_of, quantized_types
from onnx_fuse.passes.select import cost_model
from onnx_fuse.passes.select.decisions import Selection, leave_out
from onnx_fuse.runtime.device import engine_file, gpus
from onnx_fuse.runtime.device.engine_file import EngineRecord
from onnx_fuse.runtime.measure.selection import selected
from onnx_fuse.runtime.plugins import plugin_library
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.config import EngineConfig, Profile
from onnx_fuse.runtime.tensorrt.parse import ParseResult, parse_network, serialized
from onnx_fuse.runtime.tensorrt.plan import layers_of, plan_of, require_accepted, tensors_of
from onnx_fuse.runtime.tensorrt.plugin_nodes import (
    check_fields,
    fused_nodes,
    is_plugin,
    operators_without_plugin,
    without_plugin,
)
from onnx_fuse.runtime.tensorrt.profiles import profiles_for
from onnx_fuse.runtime.verify.accuracy import Accuracy, measure
from onnx_fuse.runtime.verify.compare import TOLERANCES
from onnx_fuse.runtime.verify.random_inputs import input_specs
from onnx_fuse.versions import __version__

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
        UsageError: the configuration does not fit the model or this machine, TensorRT or a plugin library is missing, or an
            output would overwrite what is read.
        ModelError: the model cannot be read.
        VerificationError: TensorRT does not accept the model, or builds no engine of it.
        OutputError: the engine cannot be written.
    """
    started = time.perf_counter()
    say = progress or (lambda _: None)
    config = config or EngineConfig()
    output = Path(output)
    outputs = [("The engine", output), ("Its record", engine_file.record_path(output))]
    if config.timing_cache is not None:
        outputs.append(("The timing cache", Path(config.timing_cache)))
    for _, path in outputs:
        io.check_output(path)
    say("reading the model")
    source = _load(model, base_dir)
    libraries = [
        Path(os.path.realpath(path)) for path in (plugin_library.find() if config.plugins is None else config.plugins)
    ]
    data = [source.folder / file.location for file in external_files(source.proto)]
    require_apart(outputs, [*libraries, *data, *([] if isinstance(model, ModelProto) else [model])])
    binding.load_plugins(libraries)
    profiles, assumed = profiles_for(input_specs(source.proto), config)
    targets, notes = _targets(config)
    without = without_plugin(source.proto, libraries)
    _require_kernels(source.proto, libraries, targets)
    selection = _selected(source, config, profiles, targets, say)
    if selection is not None and (left_out := selection.left_out):
        source = replace(source, proto=leave_out(source.proto, left_out))
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
    require_accepted(result, source.name)
    wanted = [node.name for node in fused_nodes(prepared.proto) if is_plugin(node)]
    if missing := [name for name in wanted if name not in result.plugins]:
        without = {**without, "TensorRT made no plugin layer of it": tuple(missing)}
    say("building the engine")
    with binding.listening(listener):
        plan = plan_of(parsed, config, record, assumed)
    record = replace(
        record,
        inputs=tensors_of(source.proto.graph.input, result.inputs),
        outputs=tensors_of(source.proto.graph.output, result.outputs),
        layers=layers_of(parsed),
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
    try:
        return sha256(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.", "Check the file and its permissions.") from error


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
                f"{module} does not build for {', '.join(unknown)}.",
                f"Its targets are {', '.join(can.targets)}. For another GPU build on that GPU with TensorRT itself, without "
                f"a target: {installation.add_extra('tensorrt')}",
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


def _require_kernels(proto: ModelProto, libraries: Sequence[Path], targets: Sequence[str]) -> None:
    """Sees to it that the plugins of a model can run on every GPU that the engine is for: TensorRT would not notice.

    Raises:
        UsageError: a library has neither machine code nor PTX for one.
    """
    gpu = gpus.first()
    wanted = [int(target.removeprefix("SM")) for target in targets] or ([gpu.capability] if gpu else [])
    for operator in sorted({node.op_type for node in fused_nodes(proto) if is_plugin(node)}):
        for library in libraries:
            held = plugin_library.held(library, operator)
            lacking = [f"sm_{item}" for item in wanted if held is not None and held.runs_on(item) is None]
            if lacking:
                raise UsageError(
                    f"The plugin library {library} has no kernels of {operator} for {', '.join(lacking)}; it has {held}.",
                    "Build the library for that GPU (onnx-fuse plugins build --arch), name another target, or leave plugins out.",
                )


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
        return leave_out(source.proto, others)

    return selected(
        config.select,
        source.proto,
        of_operators,
        among=plugins_of,
        build_engine=build,
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
    if not os.path.exists(output):
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


# --- what the parser gets ---------------------------------------------------------------------------------------------


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
    check_fields(proto)
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
