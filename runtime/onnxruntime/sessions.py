"""ONNX Runtime sessions on the CPU: open a model, run it, and say in one sentence what went wrong."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import EncodeError
from onnx import GraphProto, ModelProto, StringStringEntryProto, TensorProto, ValueInfoProto

from onnx_fuse.errors import ModelError, VerificationError
from onnx_fuse.passes.files.external_data import tensors, whole
from onnx_fuse.passes.graph.spans import span_of

if TYPE_CHECKING:
    import onnxruntime as ort

_FATAL = 4
_LONGEST_MESSAGE = 400
# Where in ONNX Runtime's sources the error was raised: nothing a reader of the message can use.
_SOURCE_PLACE = re.compile(r"/\S*onnxruntime/\S+:\d+ [^)]*\)(?: const)? |(?<!\S)\S+\.(?:cc|h):\d+ \w+ ")
_REMEDIES = (
    (r"External data path", "Put the weight file beside the model, under the name that the model gives."),
    (
        r"No Op registered|No opset import|Could not find an implementation|is not a registered function",
        "ONNX Runtime's CPU provider has no such operator for these types; a model that needs it cannot be run here.",
    ),
    (r"IR version|Opset \d+ is under development", "Upgrade onnxruntime, or export with an older opset."),
    (r"bad_alloc|Failed to allocate", "Use smaller shapes or a machine with more memory."),
)


class OutOfTime(VerificationError):
    """A run was ended because its time was up."""


class Deadline:
    """When runs have to be over; a context, at the end of which it is forgotten.

    Args:
        seconds: from now; None: never.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._timer: threading.Timer | None = None
        self._options: Any = None

    @property
    def left(self) -> float | None:
        """Seconds until then, 0 when it has passed; None: no limit."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return self.left == 0.0

    def options(self) -> Any:
        """ONNX Runtime's options for runs that end when the deadline passes; None where there is no limit."""
        if self._options is None and self._end is not None:
            import onnxruntime as ort

            self._options = ort.RunOptions()
            # One thread for all runs: to start one takes longer than to run a small model.
            self._timer = threading.Timer(self.left or 0.0, self._terminate)
            self._timer.daemon = True
            self._timer.start()
        return self._options

    def _terminate(self) -> None:
        self._options.terminate = True

    def __enter__(self) -> Deadline:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()


def session(
    model: ModelProto | str | Path,
    *,
    base_dir: str | Path | None = None,
    optimise: bool = False,
    extra_outputs: Sequence[str] = (),
    threads: int | None = None,
    profile: Path | None = None,
    library: Path | None = None,
) -> ort.InferenceSession:
    """Opens a model on the CPU provider, silently, without temporary files.

    Args:
        model: a file, or a model in memory; weights in external data stay on disk and are mapped by ONNX Runtime.
        base_dir: folder that holds the external data of a model in memory (a file knows its own).
        optimise: let ONNX Runtime rewrite the graph and repack weights. Off, what runs is what the model says:
            its own fusions are now and then wrong, and repacking copies every weight.
        extra_outputs: values of a model in memory that shall be outputs too; the model is not changed.
        threads: threads of one run; ONNX Runtime's choice if None.
        profile: prefix of the file that `end_profiling` writes, with the time of every node.
        library: the kernel library to run fused nodes by, as `kernel_library.choose` chose it; their bodies run if None.

    Raises:
        ModelError: the model cannot be read, is invalid, or needs an operator that ONNX Runtime does not have.
    """
    import onnxruntime as ort  # only where a model is run: it takes time and memory

    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        # Shapes change from run to run; an arena would keep the largest of each.
        options.enable_cpu_mem_arena = False
    source: str | bytes
    if isinstance(model, ModelProto):
        where = f"model {model.graph.name!r}"
        source, folder = _serialized(model, base_dir, where)
        if extra_outputs:
            # Messages written one after the other are read as one merged message.
            added = GraphProto(output=[ValueInfoProto(name=name) for name in extra_outputs])
            source += ModelProto(graph=added).SerializeToString()
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    else:
        where = str(model)
        source = where
        if not os.path.isfile(Path(where)):
            raise ModelError(f"{where}: no such file.", "Check the path of the model.")
    try:
        if library is not None:
            options.register_custom_ops_library(str(library))
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types, none of them public
        raise translated(error, f"{where}: ONNX Runtime cannot load it") from error


def run(
    session: ort.InferenceSession,
    inputs: Mapping[str, np.ndarray[Any, Any]],
    deadline: Deadline | None = None,
) -> dict[str, Any]:
    """Runs a session: output name -> array (a list of arrays for an output that is a sequence).

    Args:
        session, inputs: what to run, on what.
        deadline: when to end the run; ONNX Runtime looks at it between two nodes, in loops too.

    Raises:
        ModelError: a node failed, or the inputs do not fit; the message is ONNX Runtime's, on one line.
        OutOfTime: the deadline passed.
    """
    names = [output.name for output in session.get_outputs()]
    up = OutOfTime("The time for running the model is up.", "Give it more time.")
    if deadline is not None and deadline.passed:
        raise up
    try:
        return dict(zip(names, session.run(names, dict(inputs), deadline and deadline.options()), strict=True))
    except Exception as error:  # as above
        if deadline is not None and deadline.passed:
            raise up from error
        raise translated(error, "ONNX Runtime cannot run the model") from error


def message(error: BaseException) -> str:
    """ONNX Runtime's message on one line, without its error code and source file."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = re.sub(r"\s+", " ", _SOURCE_PLACE.sub("", text)).strip()
    text = re.sub(
        r"^Non-zero status code returned while running (\w+) node\. Name:('.*?') Status Message: ", r"\1 \2: ", text
    )
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."


def _serialized(model: ModelProto, base_dir: str | Path | None, where: str) -> tuple[bytes, Path | None]:
    """The model as bytes, and the folder in which ONNX Runtime shall look for its external data (None: it has none)."""
    sources = {span.source for tensor, _ in tensors(model) if (span := span_of(tensor)) is not None}
    if sources:
        folders = {source.path.parent for source in sources}
        base_dir = next(iter(folders)) if base_dir is None else Path(os.path.abspath(base_dir))
        if folders != {base_dir} or not all(source.is_in_place for source in sources):
            model = whole(model)  # ONNX Runtime opens files by their names
    locations = list(_locations(model))
    folder: Path | None = None
    if locations:
        if base_dir is None:
            raise ModelError(
                f"{where}: its weights lie in {locations[0].value!r}, and the folder of that file is not known.",
                "Pass the folder as base_dir, or the path of the model instead of the model.",
            )
        model, folder = _follow_links(model, {entry.value for entry in locations}, Path(base_dir))
    try:
        return model.SerializeToString(), folder
    except (ValueError, EncodeError) as error:
        raise ModelError(
            f"{where}: it cannot be serialized ({error}).",
            "A model above 2 GB needs its weights in external data: load it with load_external_data=False.",
        ) from error


def _follow_links(model: ModelProto, files: set[str], base_dir: Path) -> tuple[ModelProto, Path]:
    """ONNX Runtime refuses weight files that are links to another folder (the layout of the Hugging Face cache).

    Such a model comes back as a copy that names the files behind the links, with the folder that holds them. A path
    that leaves the folder by itself ("../x", "/x") is left for ONNX Runtime to refuse.
    """
    root = base_dir.resolve()
    if any(not name or PurePath(name).is_absolute() or ".." in PurePath(name).parts for name in files):
        return model, root
    targets = {name: (base_dir / name).resolve() for name in files}
    if all(target.is_relative_to(root) for target in targets.values()):
        return model, root
    common = Path(os.path.commonpath([target.parent for target in targets.values()]))
    copy = ModelProto()
    copy.CopyFrom(model)
    for entry in _locations(copy):
        entry.value = targets[entry.value].relative_to(common).as_posix()
    return copy, common


def _locations(model: ModelProto) -> Iterator[StringStringEntryProto]:
    """Where the tensors of a model that do not lie in it as protobuf say that their data is."""
    for tensor, _ in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            yield from (entry for entry in tensor.external_data if entry.key == "location")


def translated(error: Exception, what: str) -> ModelError:
    """An error of ONNX Runtime's as one of ours; `what` begins the sentence."""
    text = message(error)
    remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, text)), "")
    return ModelError(f"{what}: {text}", remedy or "Check the model with the command check-model that comes with onnx.")
