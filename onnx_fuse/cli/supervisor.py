"""Ends a command at once when it is asked to: by Ctrl-C, SIGTERM or SIGHUP, also while a library's own code runs.

The command runs in a child. The parent passes signals on, so that the child can clean up. Where that takes too long, as it does
while no Python runs, the parent ends it. Then it ends what the child has started, and removes the folders that it has left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from onnx_fuse.passes.files import temporary

# Together less than a second: for the child to clean up, and for its own children (make removes half-written files).
GRACE, GRACE_OF_CHILDREN = 0.4, 0.3
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>


def supervised(command: Callable[[], object]) -> NoReturn:
    """Runs a command, and ends this process with its exit code; 128 + the number of the signal where one has ended it."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup stays nohup
    if not hasattr(os, "fork"):
        _exit_on(numbers)
        command()
        sys.exit(0)
    _control_process(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # until there is somebody to handle them
    made = None
    with contextlib.suppress(OSError):  # nowhere to write: the command will say so if it matters
        temporary.remove_abandoned(Path(tempfile.gettempdir()))
        made = temporary.new_folder(Path(tempfile.gettempdir()))
    child = os.fork()
    if child == 0:
        _control_process(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _exit_on(numbers)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        if made is not None:
            tempfile.tempdir = os.environ["TMPDIR"] = str(made[0])
            os.environ[temporary.FOLDERS] = str(made[0] / "folders")
        command()
        sys.exit(0)
    try:
        code = _wait(child, numbers)
    finally:
        if made is not None:
            _clean(*made)
    # Not by way of the interpreter's own end, during which a signal would be answered as if nobody handled it.
    os._exit(code)


def _exit_on(numbers: Sequence[int]) -> None:
    """Lets signals unwind the stack, which removes temporary files; the first one only, so that it is not interrupted in that."""

    def unwind(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in numbers:
        signal.signal(number, unwind)


def _wait(child: int, numbers: Sequence[int]) -> int:
    received = 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if not received:
            received = number
            _send(child, number)
            signal.setitimer(signal.ITIMER_REAL, GRACE)

    signal.signal(signal.SIGALRM, lambda number, frame: _send(child, signal.SIGKILL))
    for number in numbers:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    _, status = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if not received and not os.WIFSIGNALED(status):
        return os.waitstatus_to_exitcode(status)
    _end_children()
    ended_by = received or os.WTERMSIG(status)
    if os.WIFSIGNALED(status) and sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")  # a spinner hides the cursor
    if not received:
        sys.stderr.write(
            f"error: The command was ended by {signal.Signals(ended_by).name}.\n"
            "hint: SIGKILL may mean that memory ran out; after another signal, run it again with python -X faulthandler.\n"
        )
    return 128 + ended_by


def _end_children() -> None:
    """Ends what the command had started: it became ours when the command ended."""
    for number, seconds in ((signal.SIGTERM, GRACE_OF_CHILDREN), (signal.SIGKILL, 1.0)):
        told: set[int] = set()
        until = time.monotonic() + seconds
        while (found := _children()) and time.monotonic() < until:
            for process in found - told:
                _send(process, number)
            told |= found
            for process in found:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process, os.WNOHANG)
            time.sleep(0.005)


def _children() -> set[int]:
    with contextlib.suppress(OSError):  # not Linux
        return {int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    return set()


def _send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _clean(folder: Path, lock: int) -> None:
    left = b""
    with contextlib.suppress(OSError):
        left = (folder / "folders").read_bytes()
    for parent in {Path(os.fsdecode(path)).parent for path in left.split(b"\0") if path}:
        temporary.remove_abandoned(parent)
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _control_process(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
