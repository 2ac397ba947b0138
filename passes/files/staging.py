"""Files that appear whole or not at all: written under a temporary name, flushed to the disk, then renamed into place."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from onnx_fuse.errors import ModelError, OutputError, UsageError, reason
from onnx_fuse.passes.files.temporary import temporary_folder
from onnx_fuse.passes.files.wire import Piece
from onnx_fuse.passes.graph.spans import Span

_PART = 1 << 22  # bytes of a span in memory at a time
_FICLONE = 0x40049409  # <linux/fs.h>: make one file share the blocks of another

# What a filesystem answers when it cannot clone or copy inside the kernel, as opposed to when the copy itself fails.
_CANNOT_COPY_IN_KERNEL = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ETXTBSY}

_REMEDIES = {
    errno.ENOENT: "Create the folder first, or choose another one.",
    errno.ENOTDIR: "A part of this path is a file, not a folder: choose another path.",
    errno.EISDIR: "Give the name of a file, not of a folder.",
    errno.EACCES: "Choose a folder you may write to.",
    errno.EPERM: "Choose a folder you may write to.",
    errno.EROFS: "The filesystem is read-only: choose another folder.",
    errno.ENOSPC: "The disk is full: free some space or choose another folder.",
    errno.EDQUOT: "Your quota is used up: free some space or choose another folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Links lead back to themselves there: choose another path.",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError raised inside into an OutputError about `path`."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        remedy = _REMEDIES.get(getattr(error, "errno", None) or 0, "Choose another place for the output.")
        raise OutputError(f"Cannot write {path}: {reason(error)}.", remedy) from error


def check_output(path: str | os.PathLike[str]) -> None:
    """Raises now what `write_file` would raise later: so that minutes of work are not lost to a mistyped folder.

    Raises:
        OutputError: the folder is missing or cannot be written, or `path` is a folder, a device or a pipe.
    """
    target = Path(path)
    with writing(target), temporary_folder(_destination(target).parent):
        pass


def require_apart(
    outputs: Iterable[tuple[str, str | os.PathLike[str]]], inputs: Iterable[str | os.PathLike[str]]
) -> None:
    """Refuses an output that is an input, or another output: by another path, through a link, or as a hard link.

    Args:
        outputs: what each is called in the error, such as "The report", and the file to write.
        inputs: files that are read.

    Raises:
        UsageError: which output it is, and which file it would overwrite.
    """
    taken = {_identity(path): path for path in inputs}
    for name, path in outputs:
        identity = _identity(path)
        if identity in taken:
            raise UsageError(
                f"{name} would overwrite {os.fspath(taken[identity])}.",
                f"{os.fspath(path)} is that file: choose another.",
            )
        taken[identity] = path


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes one whole file.

    Raises:
        OutputError: the file cannot be written; what was there before is untouched.
    """
    with Staging() as staging:
        staging.write(Path(path), data)
        staging.commit()


class Staging:
    """Several files that appear together: staged under temporary names, put in place by `commit`, in the order staged.

    Leaving the context without a commit, or when a commit fails, removes the temporaries, the folders made for them, and
    the files already in place that were not there before.
    """

    def __init__(self) -> None:
        self._temporaries = contextlib.ExitStack()
        self._places: dict[Path, Path] = {}  # folder -> temporary folder in it
        self._staged: list[tuple[Path, Path]] = []
        self._folders: list[Path] = []
        self._new: list[Path] = []
        self._committed = False

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._temporaries.close()
        if self._committed:
            return
        for path in self._new:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def write(self, path: Path, data: bytes | Sequence[Piece]) -> None:
        """Stages a file with these contents; a link is followed, an existing file keeps its permissions.

        Raises:
            ModelError: a file that spans lie in was changed.
        """
        pieces = [data] if isinstance(data, bytes) else data
        with writing(path), self._temporary(path) as file:
            for piece in pieces:
                if isinstance(piece, Span):
                    file.flush()
                    _copy_span(piece, file.fileno())
                else:
                    file.write(piece)
            # Only now is it known that what was copied is what was there when the model was read.
            for source in {piece.source for piece in pieces if isinstance(piece, Span)}:
                source.require_unchanged()

    def copy(self, source: Path, path: Path) -> None:
        """Stages a copy of `source`, sharing its blocks where the filesystem can; folders on the way are made."""
        try:
            contents = source.open("rb", buffering=0)
        except OSError as error:
            raise ModelError(
                f"Cannot read {source}: {error.strerror}.", "Check the file and its permissions."
            ) from error
        with contents, writing(path):
            self._make_folders(path.parent)
            with self._temporary(path) as file:
                _copy_contents(contents, file)

    def commit(self) -> None:
        """Puts the staged files in place."""
        for temporary, target in self._staged:
            with writing(target):
                is_new = not target.exists()
                os.replace(temporary, target)
                if is_new:
                    self._new.append(target)
        self._committed = True
        for folder in {target.parent for _, target in self._staged}:
            _flush_folder(folder)

    @contextlib.contextmanager
    def _temporary(self, path: Path) -> Iterator[BinaryIO]:
        target = _destination(path)
        # In the same folder: a rename is atomic only within one filesystem.
        if target.parent not in self._places:
            self._places[target.parent] = self._temporaries.enter_context(temporary_folder(target.parent))
        temporary = self._places[target.parent] / str(len(self._staged))
        # Not the tempfile module: its files are private (0600), and these should get what the umask says.
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
        self._staged.append((temporary, target))
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        if target.exists():
            with contextlib.suppress(PermissionError):  # somebody else's file in a folder we may write to
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))

    def _make_folders(self, folder: Path) -> None:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            path.mkdir()
            self._folders.append(path)


def _destination(path: Path) -> Path:
    """The file that is to be replaced: a link is followed, so that it stays a link; write protection is respected."""
    target = Path(os.path.realpath(path))
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # A rename would replace the device or pipe itself, and what is behind /dev/stdout is open elsewhere.
    absolute = Path(os.path.abspath(path))
    open_elsewhere = absolute.is_relative_to("/proc") or absolute.is_relative_to("/dev")
    if not stat.S_ISREG(mode) or (open_elsewhere and not absolute.is_relative_to("/dev/shm")):
        raise OutputError(f"Cannot write {path}: it is not a regular file.", "Give the name of a file.")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return target


def _identity(path: str | os.PathLike[str]) -> tuple[object, ...]:
    """Equal for paths of one file; one that does not exist yet is known by its folder and its name there."""
    with contextlib.suppress(OSError, ValueError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    with contextlib.suppress(OSError, ValueError):
        folder, name = os.path.split(os.path.realpath(path))
        status = os.stat(folder)
        return status.st_dev, status.st_ino, name
    return (os.path.abspath(path),)


def _copy_contents(source: BinaryIO, target: BinaryIO) -> None:
    if sys.platform == "linux":
        import fcntl

        try:
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
            return
        except OSError:
            pass  # most filesystems cannot; if the reason is another, the copy below meets it too
        try:
            while os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
                pass
        except OSError as error:
            if error.errno not in _CANNOT_COPY_IN_KERNEL:
                raise
    # Both descriptors stand where the kernel's copy ended; at the end of the file nothing is left to do.
    shutil.copyfileobj(source, target, 1 << 22)


def _copy_span(span: Span, target: int) -> None:
    """Copies a span to where a file stands, inside the kernel where it can."""
    source, offset, left = span.source.descriptor, span.offset, span.length
    try:
        while left and (copied := os.copy_file_range(source, target, left, offset)):
            offset, left = offset + copied, left - copied
    except AttributeError:  # not on Linux
        pass
    except OSError as error:
        if error.errno not in _CANNOT_COPY_IN_KERNEL:
            raise
    for data in _in_memory([Span(span.source, offset, left)]):
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]


def _in_memory(pieces: Sequence[Piece]) -> Iterator[bytes]:
    """The bytes of the pieces, of a span a part at a time."""
    for piece in pieces:
        if not isinstance(piece, Span):
            yield piece
            continue
        for start in range(0, piece.length, _PART):
            yield piece.source.read(piece.offset + start, min(_PART, piece.length - start))


def _flush_folder(folder: Path) -> None:
    """Makes the renames survive a power cut, where the system lets a folder be flushed."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
