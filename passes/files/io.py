"""The two ends of the way of a model: reading it without its external weights, and writing it whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto

from onnx_fuse import installation
from onnx_fuse.errors import ModelError, OutputError, UsageError, did_you_mean, reason
from onnx_fuse.passes.files import wire
from onnx_fuse.passes.files.checker import check, one_sentence
from onnx_fuse.passes.files.external_data import external_files, materialise, source_of, validate, whole
from onnx_fuse.passes.files.staging import Staging, check_output, require_apart
from onnx_fuse.passes.files.wire import Piece
from onnx_fuse.passes.graph import spans
from onnx_fuse.passes.graph.spans import Source

__all__ = [
    "ExternalDataMode",
    "check",
    "check_output",
    "data_files",
    "load",
    "load_lazily",
    "materialise",
    "parse",
    "plan_copies",
    "save",
    "serialise",
]

ExternalDataMode: TypeAlias = Literal["auto", "keep", "copy"]

WORTHWHILE = 1 << 24
"""Bytes of a file from which it pays to leave large tensors in it."""

_PROTOBUF_LIMIT = (1 << 31) - 1
_EMBED_LESS = "Keep its weights in external data: onnx.save(model, path, save_as_external_data=True)."

# First bytes of what people hand over by mistake, and what to do about it.
_MISTAKEN = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the model itself", "Run `git lfs pull`."),
    (b"PK\x03\x04", "is a zip archive, perhaps a PyTorch checkpoint", "Export it with torch.onnx.export first."),
    (b"<", "is a web page or XML", "Download the model itself, for example the 'raw' link."),
    (b"{", "is JSON", "Give the .onnx file; a model in onnx's JSON form must be called .json."),
)

# Field -> wire type of a ModelProto (onnx.proto): tells a file cut short from one that was never a model.
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}


def load(path: str | os.PathLike[str]) -> ModelProto:
    """Reads a model; tensors in external data stay references, but are known to be there.

    Files called .onnxtxt, .textproto, .json, ... are read in the text form that onnx has for them.

    Args:
        path: the model file.

    Raises:
        ModelError: the file is missing, unreadable, no ONNX model, newer than the installed onnx, or its external data is
            missing, too short or outside the model's folder.
    """
    path = Path(path)
    return _loaded(_read(path), path)


def load_lazily(path: str | os.PathLike[str]) -> tuple[ModelProto, Source | None]:
    """Reads a model as `load` does, but leaves large tensors in the file.

    Such a tensor reads as external data that lies in the model's own file. `save` writes it as the file has it; `materialise`
    reads those of a model, `onnx_fuse.passes.graph.spans` one of them.

    Returns:
        The model, and the file, to be kept as long as the model is used; None if the model was read as a whole.

    Raises:
        ModelError: as `load` does; and when the file is changed meanwhile.
    """
    path = Path(path)
    if _readable_size(path) < WORTHWHILE or _text_format(path) is not None or not _can_lie_in(path):
        return load(path), None
    try:
        source = spans.opened(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    data = wire.skim(source)
    if data is None:
        return load(path), None
    try:
        model = _loaded(data, path)
    except ModelError:  # reading all of it tells better what is wrong
        return load(path), None
    source.require_unchanged()
    return model, source


def _can_lie_in(path: Path) -> bool:
    """Whether a tensor can be said to lie in this file, and read there."""
    # Names that are no text cannot be in a protobuf; ONNX Runtime takes two dots for a way out of the folder.
    is_text = not any("\ud800" <= letter <= "\udfff" for letter in path.name)
    return is_text and not path.name.startswith("..") and hasattr(os, "pread")


def _loaded(data: bytes, path: Path) -> ModelProto:
    model = _parse(data, path)
    # External tensors carry this word. Looking for it costs nothing beside walking all attributes of all nodes.
    may_be_external = _text_format(path) is not None or _mentions_files(data)
    del data
    _require_model(model, path)
    if may_be_external or any(map(spans.is_external, model.graph.initializer)):
        validate(model, path)
    return model


def _mentions_files(data: bytes) -> bool:
    """Whether a model, as bytes, may have tensors in other files than its own: quickly, and now and then wrongly so."""
    return data.count(b"location") > len(spans.marks(data))


def save(
    model: ModelProto,
    path: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    base_dir: Path | None = None,
    external_data: ExternalDataMode = "auto",
    unchanged: bool = False,
) -> None:
    """Writes a model and brings its external data along; either all of it appears or nothing does.

    Args:
        model: the model to write.
        path: the file to write; one that exists is replaced, a link is followed.
        source: the file that the model came from: its external data lies beside it.
        base_dir: where external data lies, of a model that came from no file.
        external_data: "keep" leaves the data files where they are, "copy" puts copies beside `path`, "auto" keeps them if
            `path` is in their folder and copies them otherwise.
        unchanged: the model is what `source` holds: its own bytes are written, which are not always those that protobuf
            would write.

    Raises:
        OutputError: nothing was written.
        UsageError: "keep" with another folder, external data whose folder is not known, or `path` is a data file of the model.
    """
    path = Path(path)
    source = None if source is None else Path(source)
    as_it_is = source if unchanged and source is not None and _text_format(source) == _text_format(path) else None
    opened = None if as_it_is is None else source_of(model)
    data = _serialise(model, path) if as_it_is is None or opened is not None else _read(as_it_is)
    home = base_dir if source is None else source.parent
    copies = plan_copies(model, path, home, external_data, data)
    pieces = _pieces(model, data, path) if as_it_is is None else [opened.whole] if opened is not None else None
    del data
    with Staging() as staging:
        for original, target in copies:
            staging.copy(original, target)
        # The model comes last: a reader who sees it finds its data there.
        if as_it_is is not None and pieces is None:
            staging.copy(as_it_is, path)
        else:
            staging.write(path, pieces or [])
        staging.commit()


def plan_copies(
    model: ModelProto, path: Path, home: Path | None, mode: ExternalDataMode, data: bytes | None = None
) -> list[tuple[Path, Path]]:
    """Which data files `save` copies where, as (file, copy); refuses what would lose or overwrite data.

    Args:
        model, path, mode: as for `save`.
        home: where external data lies; None: not known.
        data: the bytes of the model where they are at hand, which tell quickly that there is no external data.

    Raises:
        OutputError, UsageError: as `save` does.
    """
    if mode not in ("auto", "keep", "copy"):
        raise UsageError(f"external_data is {mode!r}.", "Use 'auto', 'keep' or 'copy'.")
    if data is not None and _text_format(path) is None and not _mentions_files(data):
        return []
    locations = [file.location for file in external_files(model)]
    if not locations:
        return []
    folder = path.parent
    places = {home or folder, folder}
    require_apart([("The model", path)], [place / location for location in locations for place in places])
    if home is None:
        missing = [location for location in locations if not (folder / location).is_file()]
        if missing:
            raise UsageError(
                f"The model's external data {missing[0]!r} is not in {folder}, and where the model came from is not known.",
                "Give the path of the model or its base_dir, or save it into the folder of its data.",
            )
        return []
    if os.path.realpath(home) == os.path.realpath(folder):
        return []
    if mode == "keep":
        raise UsageError(
            f"{path} is not in {home}, where the model's external data is kept.",
            f"Save into {home}, or let the data be copied (--external-data copy).",
        )
    copies = [(home / location, folder / location) for location in locations]
    return [(original, target) for original, target in copies if not _is_there(original, target, folder)]


def data_files(path: str | os.PathLike[str]) -> list[str]:
    """Where the model in a file says that its external data is, relative to the folder of the file.

    It says nothing of what it cannot read: that is for `load`.
    """
    if not os.path.isfile(path):
        return []
    try:
        path = Path(path)
        if _readable_size(path) < WORTHWHILE and _text_format(path) is None and not _mentions_files(_read(path)):
            return []  # without parsing it, which its reader will do
        model, _held = load_lazily(path)
    except ModelError:
        return []
    return [file.location for file in external_files(model)]


def _readable_size(path: Path) -> int:
    """The size in bytes of a file that can be a model.

    Raises:
        ModelError: there is no such file, or it is none.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            inside = sorted(path.glob("*.onnx"))
            remedy = f"Name the model in it, for example {inside[0]}." if inside else "Name the model file itself."
            raise ModelError(f"{path} is a folder.", remedy)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path} is not a regular file.", "Save the model as a file first.")
        if status.st_size > _PROTOBUF_LIMIT:
            raise ModelError(f"{path} is larger than 2 GiB, which protobuf cannot read.", _EMBED_LESS)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _unreadable(path, error) from error
    if not status.st_size:
        raise ModelError(f"{path} is empty.", "Export, copy or download it again.")
    return status.st_size


def _unreadable(path: Path, error: OSError | ValueError) -> ModelError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ModelError(f"{path} does not exist.", _similar(path))
    return ModelError(f"Cannot read {path}: {reason(error)}.", "Check the path and the permissions of the file.")


def _read(path: Path) -> bytes:
    _readable_size(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _similar(path: Path) -> str:
    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.name.endswith(".onnx")]
    except OSError:
        return f"The folder {path.parent} does not exist either: check the path."
    known = [str(path.parent / name) for name in names]
    return did_you_mean(str(path), known).rstrip() or "Check the path."


def parse(data: bytes) -> ModelProto:
    """A model from the bytes of its file.

    Raises:
        ModelError: they are none.
    """
    path = Path("The given data")
    model = _parse(data, path)
    _require_model(model, path)
    return model


def _text_format(path: Path) -> str | None:
    """The name of onnx's text form for this suffix; None for the usual binary one."""
    name: str | None = onnx.serialization.registry.get_format_from_file_extension(path.suffix)
    return None if name == "protobuf" else name


def _parse(data: bytes, path: Path) -> ModelProto:
    form = _text_format(path)
    if form is not None:
        try:
            return onnx.load_model_from_string(data, format=form)
        except Exception as error:  # each of the text parsers raises its own kind
            raise ModelError(
                f"{path} is not a model in onnx's {form} form: {one_sentence(error)}", "Give the binary .onnx file."
            ) from error
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise _undecodable(data, path) from None
    return model


def _undecodable(data: bytes, path: Path) -> ModelError:
    for start, what, remedy in _MISTAKEN:
        if data.startswith(start):
            return ModelError(f"{path} {what}.", remedy)
    if data[4:8] == b"ORTM":
        return ModelError(f"{path} is in ONNX Runtime's own format.", "Give the .onnx file it was made from.")
    missing = _missing_bytes(data)
    if missing is None:
        return ModelError(f"{path} is not an ONNX model.", "Give a file that torch.onnx.export or onnx.save wrote.")
    if missing > 0:
        cause = f"{path} is cut short: at least {missing} of its bytes are missing after {len(data)}."
        return ModelError(cause, "Copy or download it again.")
    return ModelError(
        f"{path} is damaged: it begins as an ONNX model but cannot be read.", "Copy or download it again."
    )


def _missing_bytes(data: bytes) -> int | None:
    """Bytes that the last outer field announces beyond the end of the file; None if these are no fields of a model."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        field, wire = tag >> 3, tag & 7
        if _MODEL_FIELDS.get(field) != wire:
            return None
        value, position = _varint(data, position)
        if wire == 2:
            position += value
    return position - len(data)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
    return value, position + 1  # past the end: the number itself is cut


def _require_model(model: ModelProto, path: Path) -> None:
    if not model.HasField("graph"):
        raise ModelError(f"{path} holds no graph: it is no ONNX model, or cut short.", "Export or copy it again.")
    if not model.opset_import:
        raise ModelError(f"{path} imports no opset: it is no ONNX model, or cut short.", "Export or copy it again.")
    installed = f"the installed onnx {onnx.__version__}"
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise ModelError(
                f"{path} uses opset {opset.version}; {installed} knows up to {newest}.",
                f"Update it ({installation.pip_install('-U', 'onnx')}), or export the model with an older opset.",
            )
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{path} has IR version {model.ir_version}; {installed} knows up to {onnx.IR_VERSION}.",
            f"Update it ({installation.pip_install('-U', 'onnx')}), or export the model with an older onnx.",
        )


def serialise(model: ModelProto) -> bytes:
    """The bytes of the model's file; external data stays where it is.

    Raises:
        OutputError: it has more than protobuf can write.
    """
    return _serialise(model, Path("the bytes of the model"))


def _serialise(model: ModelProto, path: Path) -> bytes:
    form = _text_format(path)
    try:
        if form is not None:
            serialised: bytes | str = onnx.serialization.registry.get(form).serialize_proto(whole(model))
            return serialised.encode() if isinstance(serialised, str) else serialised
        data: bytes = model.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise OutputError(
            f"Cannot write {path}: protobuf cannot serialise the model ({error}).", _EMBED_LESS
        ) from error
    return data


def _pieces(model: ModelProto, data: bytes, path: Path) -> Sequence[Piece]:
    """What `save` writes for a model, of which the bytes that the library makes are at hand."""
    pieces: Sequence[Piece] = [data]
    if _text_format(path) is None and spans.marks(data):
        pieces = wire.spliced(data) or [_serialise(whole(model), path)]
    if wire.size(pieces) > _PROTOBUF_LIMIT:
        raise OutputError(f"Cannot write {path}: the model is larger than 2 GiB, which no one could read.", _EMBED_LESS)
    return pieces


def _is_there(original: Path, target: Path, folder: Path) -> bool:
    """Whether the target already has these contents."""
    if not Path(os.path.realpath(target)).is_relative_to(os.path.realpath(folder)):
        raise OutputError(f"{target} leads out of {folder} by a link.", "Choose another folder for the output.")
    if not target.exists():
        return False
    if target.is_file() and _same_contents(original, target):
        return True
    raise OutputError(
        f"{target} exists and differs from {original}, which would be copied there.",
        "Choose another folder for the output, or move that file away.",
    )


def _same_contents(one: Path, other: Path) -> bool:
    # Not filecmp.cmp: it remembers its answers, and believes equal times of change.
    try:
        if one.samefile(other):
            return True
        if one.stat().st_size != other.stat().st_size:
            return False
        with one.open("rb") as left, other.open("rb") as right:
            while block := left.read(1 << 20):
                if block != right.read(1 << 20):
                    return False
        return True
    except OSError as error:
        raise OutputError(
            f"Cannot compare {one} with {other}: {error.strerror}.", "Check their permissions."
        ) from error
