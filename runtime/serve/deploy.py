"""A folder that serves a model with NVIDIA Triton Inference Server: model repository, Dockerfile, Kubernetes manifests."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnx_fuse import installation
from onnx_fuse.errors import ModelError, OutputError, UsageError
from onnx_fuse.passes.files import io, staging
from onnx_fuse.passes.files.temporary import temporary_folder
from onnx_fuse.runtime.device import engine_file, memory
from onnx_fuse.runtime.device.engine_file import EngineTensor
from onnx_fuse.runtime.onnxruntime import kernel_library, room, sessions
from onnx_fuse.runtime.onnxruntime.kernel_library import Choice, Kernels
from onnx_fuse.runtime.plugins import plugin_library
from onnx_fuse.runtime.serve import manifests
from onnx_fuse.runtime.verify import compare, random_inputs
from onnx_fuse.runtime.verify.precision import tolerances
from onnx_fuse.runtime.verify.record import Rejected
from onnx_fuse.runtime.verify.reference import Evidence, Original, drawn_evidence

SERVER = "26.07"
"""The server's release that is used where none is given: what is said of its ONNX Runtime here was checked for this one."""
_ONNXRUNTIME, _NEWEST_OPSET, _NEWEST_IR = "1.27.0", 26, 13  # of that release
MAX_BATCH_SIZE = 32
"""The largest batch of a model whose batch dimension is open, where none is given."""

_ENGINES = (".engine", ".plan", ".trt")
_TYPES = {
    **{name: f"TYPE_{name.upper()}" for name in ("bool", "uint8", "uint16", "uint32", "uint64")},
    **{name: f"TYPE_{name.upper()}" for name in ("int8", "int16", "int32", "int64")},
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "string": "TYPE_STRING",
}
# Where ONNX Runtime's names of types, "tensor(float)", are not numpy's.
_ONNXRUNTIME_TYPES = {"float": "float32", "double": "float64"}
_CASES = 4
_VERSION = "1"
_NO_BATCHING = "No batching: "


@dataclass(frozen=True)
class Deployment:
    """What was written.

    Attributes:
        folder: the folder.
        name: of the model, as clients ask for it.
        backend: "onnxruntime" or "tensorrt".
        config: the server's `ModelConfig` message that config.pbtxt holds.
        notes: sentences on what was assumed, checked, or left to the reader.
    """

    folder: Path
    name: str
    backend: str
    config: Any
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """What is to be served: its file, its signature, the largest batch that it takes (0: it has no batch dimension), and why."""

    path: Path
    backend: str
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    largest_batch: int
    notes: tuple[str, ...]
    profiles: int = 1
    plugins: tuple[Path, ...] = ()
    kernels: Kernels = field(default_factory=Kernels)
    onnx: ModelProto | None = None


def deploy(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    max_batch_size: int | None = None,
    instances: int = 1,
    batch_delay: int = 100,
    gpus: int | None = None,
    server: str = SERVER,
    image: str | None = None,
    plugins: Sequence[str | os.PathLike[str]] = (),
    verify: bool = True,
    library: Choice = None,
) -> Deployment:
    """Writes the folder from which a server with the model is built and run.

    It holds `models/NAME/config.pbtxt` and `models/NAME/1/` (the model repository, with the kernel library of an ONNX model), the
    plugin libraries of an engine, a Dockerfile, and manifests for Kubernetes. All of it appears, or nothing.

    Args:
        model: an engine with its record beside it, or an ONNX model, which the server's ONNX Runtime backend runs.
        out: the folder to write; it must not exist, or be empty.
        name: of the model; by default that of the file.
        max_batch_size: the most rows in a batch; 0 turns batching off. By default what the engine takes, or `MAX_BATCH_SIZE`
            if the model has a batch dimension.
        instances: how many instances run at a time, for each GPU if there are any.
        batch_delay: microseconds that a request may wait for others to share its batch.
        gpus: GPUs of a pod; by default 1 for an engine, and 0 for an ONNX model, which then runs on the CPU.
        server: release of the server's image, such as "26.07".
        image: what the built image is called in the manifests; by default `NAME:1`.
        plugins: libraries to take an engine's plugins from, where they are no longer where the engine was built with them.
        verify: run an ONNX model, and see whether the rows of a batch are independent of each other. If they are not, it is
            served without batching.
        library: the kernel library that shall run the fused nodes of an ONNX model (see `OrtSession`). By default the one that
            is found, for a server on the CPU.

    Raises:
        UsageError: an option does not fit the model, a library is not found, or a package is missing.
        ModelError: the model or the engine cannot be read or run.
        OutputError: the folder exists or cannot be written.
    """
    source, folder = Path(model), Path(out)
    _messages()
    _check_new(folder)
    _check_numbers(max_batch_size=max_batch_size, instances=instances, batch_delay=batch_delay, gpus=gpus)
    name = _default_name(source) if name is None else name
    manifests.check_names(model=name, server=server, image=image, plugins=[Path(item).name for item in plugins])
    if source.suffix in _ENGINES or os.path.isfile(engine_file.record_path(source)):
        if library:
            raise UsageError(f"{source} is an engine, and needs no kernel library.", "Leave --library out.")
        served = _engine(source, plugins)
    else:
        if plugins:
            raise UsageError(f"{source} is no engine, and needs no plugin library.", "Leave --plugins out.")
        # Without kernels for the GPU there would be a copy to the host and back at each fused node.
        library = False if gpus and library is None else library
        served = _onnx_model(source, server, verify, library)
    manifests.check_names(model=name, server=server, image=image, plugins=[item.name for item in served.plugins])
    gpus = (1 if served.backend == "tensorrt" else 0) if gpus is None else gpus
    if served.backend == "tensorrt" and gpus == 0:
        raise UsageError(f"The engine {source} needs a GPU.", "Give --gpus 1, or deploy the ONNX model.")
    size, notes = _batch_size(served, max_batch_size)
    config = _config(served, name, size, instances, batch_delay, gpus)
    with _new_folder(folder) as staged:
        _write_model(served, config, staged / "models" / name)
        for plugin in served.plugins:
            (staged / "plugins").mkdir(exist_ok=True)
            shutil.copyfile(plugin, staged / "plugins" / plugin.name)
        settings = manifests.Settings(
            name=name,
            server=server,
            image=image or f"{manifests.resource_name(name)}:1",
            gpus=gpus,
            plugins=tuple(plugin.name for plugin in served.plugins),
            waiting=max(size, 1),
        )
        for path, text in manifests.written(settings).items():
            (staged / path).parent.mkdir(exist_ok=True)
            (staged / path).write_text(text)
    return Deployment(folder, name, served.backend, config, (*served.notes, *notes))


def _check_new(folder: Path) -> None:
    """Fails now where writing would fail after the model has been run."""
    with staging.writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} exists and is not empty.", "Give a new folder; nothing is overwritten.")
        os.scandir(folder.parent).close()


def _check_numbers(**given: int | None) -> None:
    least = {"instances": 1}
    for option, number in given.items():
        if number is not None and number < least.get(option, 0):
            raise UsageError(
                f"--{option.replace('_', '-')} is {number}.", f"Give a number from {least.get(option, 0)} on."
            )


def _default_name(source: Path) -> str:
    """A name after the file, of the characters that a name may have."""
    return re.sub(r"[^\w.-]", "_", source.stem, flags=re.ASCII)[:63].strip("_.-") or "model"


# --- what is served --------------------------------------------------------------------------------------------------


def _engine(path: Path, given: Sequence[str | os.PathLike[str]]) -> _Model:
    record = engine_file.read(path)
    if record.module != "tensorrt":
        raise UsageError(
            f"{path} was built with {record.module}, and the server's TensorRT backend only opens engines of tensorrt.",
            f"Build it with tensorrt on a machine with the GPU, or deploy the ONNX model {record.model}.",
        )
    largest, smallest = 0, 1
    if _shares_first_axis(record.inputs) and _open_first_axis(record.outputs):
        batches = [[profile[tensor.name] for tensor in record.inputs] for profile in record.profiles]
        # Of several profiles the server takes, for each batch, one that the batch fits.
        largest = max((min(shapes.max[0] for shapes in profile) for profile in batches), default=0)
        smallest = min((max(shapes.min[0] for shapes in profile) for profile in batches), default=1)
    notes = [f"The image must have the TensorRT that built the engine, {record.version}: see --server."]
    notes += _unchecked(largest)
    if smallest > 1:
        notes.append(f"The engine takes no batch below {smallest}: smaller requests fail.")
    return _Model(
        path=path,
        backend="tensorrt",
        inputs=record.inputs,
        outputs=record.outputs,
        largest_batch=largest,
        notes=tuple(notes),
        profiles=len(record.profiles),
        plugins=tuple(plugin_library.of_engine(f"The engine {path}", record.plugins, map(Path, given))),
    )


def _unchecked(largest_batch: int) -> list[str]:
    return ["That the rows of a batch are independent of each other was not checked."] if largest_batch else []


def _onnx_model(path: Path, server: str, verify: bool, library: Choice = False) -> _Model:
    model = io.load(path)
    notes = [] if server != SERVER else _require_known(model, path)
    kernels = kernel_library.choose(model, library)
    if kernels.nodes or kernels.bodies:
        notes.append(f"The server runs {kernels}.")
    if kernels.library is not None:
        notes.append("The library was compiled on this machine: the server's image needs a C library that is as new.")
    original = Original(model, path.parent, (), library=kernels.library)
    original.open()
    inputs, outputs = (
        tuple(_tensor(value) for value in values)
        for values in (original.session.get_inputs(), original.session.get_outputs())
    )
    largest = MAX_BATCH_SIZE if _shares_first_axis(inputs) and _open_first_axis(outputs) else 0
    served = _Model(path, "onnxruntime", inputs, outputs, largest, tuple(notes), kernels=kernels, onnx=model)
    return _run(served, original) if verify else replace(served, notes=(*notes, *_unchecked(largest)))


def _require_known(model: ModelProto, path: Path) -> list[str]:
    """Refuses what the server's ONNX Runtime does not know."""
    opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    for what, found, newest in (("opset", opset, _NEWEST_OPSET), ("IR version", model.ir_version, _NEWEST_IR)):
        if found > newest:
            raise UsageError(
                f"{path} has {what} {found}; ONNX Runtime {_ONNXRUNTIME} of server {SERVER} knows up to {newest}.",
                "Export it with an older opset, or name a later server with --server.",
            )
    return [f"ONNX Runtime {_ONNXRUNTIME} of server {SERVER} knows opset {opset} and IR version {model.ir_version}."]


def _tensor(value: Any) -> EngineTensor:
    """An input or output as ONNX Runtime, and with it the server's backend, sees it."""
    kind = re.fullmatch(r"tensor\((\w+)\)", value.type)
    if kind is None:
        raise UsageError(f"{value.name!r} is a {value.type}, and the server takes only tensors.", "Change the export.")
    dtype = _ONNXRUNTIME_TYPES.get(kind[1], kind[1])
    shape = tuple(
        size if isinstance(size, int) else size or f"{value.name}:{axis}" for axis, size in enumerate(value.shape)
    )
    return EngineTensor(value.name, dtype, shape)


def _shares_first_axis(inputs: Sequence[EngineTensor]) -> bool:
    """Whether all inputs begin with one dimension that is open."""
    first = {tensor.shape[0] if tensor.shape else 0 for tensor in inputs}
    return len(first) == 1 and isinstance(first.pop(), str)


def _open_first_axis(outputs: Sequence[EngineTensor]) -> bool:
    return all(tensor.shape and isinstance(tensor.shape[0], str) for tensor in outputs)


def _run(served: _Model, original: Original) -> _Model:
    """The model with what running it in ONNX Runtime tells: it runs, outputs have the ranks that are declared, and, if it has
    a batch dimension, rows that are computed together are what they are alone."""
    specs = random_inputs.input_specs(original.model)
    shapes = random_inputs.draw_shapes(specs, random_inputs.DRAWS[1])
    needed = memory.needed_bytes(original.model, original.model, shapes)

    def ran() -> _Model:
        if needed is None:  # in a process of its own, which does not have the threads of the session
            original.open()
        return _ran(served, original, specs)

    return room.with_room(ran, needed, remedy="--no-verify deploys it without running it.")


def _ran(served: _Model, original: Original, specs: Sequence[random_inputs.InputSpec]) -> _Model:
    rejected: list[Rejected] = []
    cases = (
        case for case in drawn_evidence(original, specs, 0, rejected) if not served.largest_batch or _rows(case) > 1
    )
    ran = list(itertools.islice(cases, _CASES))
    if not ran:
        reason = rejected[-1].reason if rejected else "none makes a batch of several rows"
        raise ModelError(
            f"{served.path} runs on none of the random inputs: {reason}", "--no-verify deploys it without running it."
        )
    for tensor in served.outputs:
        if ran[0].expected[tensor.name].ndim != len(tensor.shape):
            raise ModelError(
                f"Output {tensor.name!r} of {served.path} has no shape, without which the server refuses it.",
                "Write shapes into the model with onnx.shape_inference.infer_shapes_path.",
            )
    if not served.largest_batch:
        return replace(served, notes=(*served.notes, f"It ran in ONNX Runtime on {len(ran)} sets of random inputs."))
    problem = _mixes_rows(original, ran)
    if problem is not None:
        return replace(served, largest_batch=0, notes=(*served.notes, f"{_NO_BATCHING}{problem}."))
    checked = f"Its rows are independent of each other: {len(ran)} batches gave what their rows give alone."
    return replace(served, notes=(*served.notes, checked))


def _rows(evidence: Evidence) -> int:
    return min(len(array) for array in evidence.inputs.values())


def _mixes_rows(original: Original, cases: Sequence[Evidence]) -> str | None:
    """Why a batch is not what its rows are alone, which is what the server takes for granted; None if it is."""
    together: dict[str, list[random_inputs.Array]] = {name: [] for name in cases[0].expected}
    alone: dict[str, list[random_inputs.Array]] = {name: [] for name in cases[0].expected}
    for case in cases:
        for row in range(_rows(case)):
            inputs = {name: array[row : row + 1] for name, array in case.inputs.items()}
            for name, part in sessions.run(original.session, inputs).items():
                if len(part) != 1 or len(case.expected[name]) != _rows(case):
                    return f"the first axis of output {name!r} is not that of the inputs"
                together[name].append(case.expected[name][row : row + 1].ravel())
                alone[name].append(part.ravel())
    # All cases at once: the outputs of one may all be next to nothing, and their noise is not.
    allowed = tolerances(original.model)
    for name, rows in together.items():
        found = compare.compare(name, np.concatenate(rows), np.concatenate(alone[name]), allowed[name])
        if found.problem is not None:
            return f"output {name!r} of a row depends on the other rows of its batch"
    return None


# --- the server's configuration --------------------------------------------------------------------------------------


def _batch_size(served: _Model, wanted: int | None) -> tuple[int, list[str]]:
    if wanted is None:
        assumed = served.backend == "onnxruntime" and served.largest_batch
        note = f"Batches hold up to {served.largest_batch} rows: assumed, see --max-batch-size."
        return served.largest_batch, [note] if assumed else []
    if wanted and not served.largest_batch:
        found = [note.removeprefix(_NO_BATCHING) for note in served.notes if note.startswith(_NO_BATCHING)]
        why = found[0] if found else "its inputs and outputs do not begin with one open dimension."
        raise UsageError(
            f"{served.path} cannot be batched: {why}",
            "Leave --max-batch-size out, or export it with an open batch dimension, the first of all inputs and outputs.",
        )
    if served.backend == "tensorrt" and wanted > served.largest_batch:
        raise UsageError(
            f"--max-batch-size is {wanted}, and the engine takes up to {served.largest_batch}.",
            "Build the engine for larger batches, or give a smaller number.",
        )
    return wanted, []


def _config(served: _Model, name: str, batch: int, instances: int, delay: int, gpus: int) -> Any:
    """The server's ModelConfig. With batches, the first axis of every shape is left out, and a shape that is empty then is
    written as [1] with a reshape, as the server asks; without them, a scalar is written as [1]."""
    messages = _messages()
    config = messages.ModelConfig(name=name, backend=served.backend, max_batch_size=batch)
    for kind, tensors in (("input", served.inputs), ("output", served.outputs)):
        for tensor in tensors:
            item = getattr(config, kind).add(name=tensor.name, data_type=_data_type(tensor, served))
            dims = [size if isinstance(size, int) else -1 for size in tensor.shape[1 if batch else 0 :]]
            item.dims.extend(dims or [1])
            if batch and not dims:
                item.reshape.SetInParent()
    if batch > 1:
        config.dynamic_batching.max_queue_delay_microseconds = delay
    group = messages.ModelInstanceGroup
    profiles = [str(index) for index in range(served.profiles)] if served.profiles > 1 else []
    config.instance_group.add(count=instances, kind=group.KIND_GPU if gpus else group.KIND_CPU, profile=profiles)
    if served.kernels.library is not None:
        config.model_operations.op_library_filename.append(
            f"{manifests.REPOSITORY}/{name}/{_VERSION}/{kernel_library.LIBRARY}"
        )
    return config


def _data_type(tensor: EngineTensor, served: _Model) -> Any:
    if tensor.dtype not in _TYPES:
        raise UsageError(
            f"{tensor.name!r} of {served.path} is {tensor.dtype}, a type that the server has no name for.",
            "Cast it inside the model to one of " + ", ".join(_TYPES) + ".",
        )
    return _messages().DataType.Value(_TYPES[tensor.dtype])


def _messages() -> Any:
    """The server's own protobuf classes."""
    return installation.require("tritonclient.grpc.model_config_pb2", extra="deploy", purpose="write config.pbtxt")


# --- writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its name when all is written, and goes if anything fails."""
    with staging.writing(target), temporary_folder(target.parent) as folder:
        staged = folder / "new"
        staged.mkdir()
        yield staged
        os.replace(staged, target)


def _write_model(served: _Model, config: Any, folder: Path) -> None:
    from google.protobuf import text_format

    version = folder / _VERSION
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    if served.onnx is None:
        shutil.copyfile(served.path, version / "model.plan")
    else:
        if served.kernels.library is not None:
            shutil.copyfile(served.kernels.library, version / kernel_library.LIBRARY)
        io.save(served.onnx, version / "model.onnx", source=served.path, external_data="copy", unchanged=True)
