"""Temporary folders that are removed in the end, also where a process was killed: by the next one that comes there.

Nothing heavy is imported here: the command needs it before it starts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = re.compile(r"\.onnx-fuse-\d+-[0-9a-f]{16}")
FOLDERS = "ONNX_FUSE_FOLDERS"
"""Environment variable that names a file: temporary folders are entered there, for whoever has to end this process by force."""


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder in `parent`, which is removed in the end; so are those there that killed processes have left.

    Its name says whose it is, and a lock that it is still used: the system takes a lock back when a process ends, whatever ends
    it, and knows it in containers too, where the number of a process says nothing.
    """
    remove_abandoned(parent)
    folder, lock = new_folder(parent)
    try:
        if ledger := os.environ.get(FOLDERS):
            with contextlib.suppress(OSError), open(ledger, "ab", buffering=0) as file:
                file.write(os.fsencode(folder) + b"\0")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned(parent: Path) -> None:
    """Removes the temporary folders in `parent` whose processes have ended. Where files cannot be locked, they stay."""
    with contextlib.suppress(OSError):
        for name in filter(_FOLDER.fullmatch, os.listdir(parent)):
            with contextlib.suppress(OSError):
                lock = os.open(parent / name, os.O_RDONLY | _NO_LINKS)
                try:
                    _lock(lock, wait=False)
                    shutil.rmtree(parent / name, ignore_errors=True)
                finally:
                    os.close(lock)


def new_folder(parent: Path) -> tuple[Path, int]:
    """What `temporary_folder` makes, for who removes it himself, and the descriptor that holds its lock."""
    while True:
        folder = parent / f".onnx-fuse-{os.getpid()}-{secrets.token_hex(8)}"
        folder.mkdir(0o700)
        with contextlib.suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
            lock = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(OSError):  # there are filesystems without locks
                _lock(lock, wait=True)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _lock(descriptor: int, *, wait: bool) -> None:
    """Raises OSError where somebody else holds the lock, or nobody can."""
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)) from None
    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
