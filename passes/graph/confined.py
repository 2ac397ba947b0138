"""Work that a model can blow up: done in a child process, of limited memory and time."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
_BLOCK = 1 << 20
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_HANDLED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM")


class Exceeded(ValueError):
    """The work took more memory or time than it may, or brought its process down."""


def confined(work: Callable[[], T], *, memory: int | None, seconds: float | None = None) -> T:
    """Does something in a child of this process. What the work changes in memory, this process does not see.

    Args:
        work: what to do; its result, or the error that it raises, has to be one that can be pickled.
        memory: bytes that the child may take above what this process has; None: any.
        seconds: how long it may take; None: as long as it likes.

    Raises:
        Exceeded: a limit was reached, the child crashed, or this system has no way to limit it.
        Exception: what the work raised.
    """
    if not hasattr(os, "fork"):
        raise Exceeded("this system cannot limit the memory of a process.")
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child waits for none of them
        child = os.fork()
    if child == 0:
        os.close(reader)
        _work(work, writer, memory, seconds)
    os.close(writer)
    try:
        answer = _read(reader, seconds)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if answer is None:
        raise Exceeded(f"it was not done after {seconds:g} s.")
    if not answer:  # it could not even say what was wrong
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
            raise Exceeded(f"its process was ended by {signal.Signals(os.WTERMSIG(status)).name}.")
        raise Exceeded("it took more memory than it may.")
    done, value = pickle.loads(answer)
    if done:
        return value
    if isinstance(value, MemoryError):
        raise Exceeded("it took more memory than it may.")
    raise value


def _read(reader: int, seconds: float | None) -> bytes | None:
    """What the child says before it ends; None where that takes too long."""
    end = None if seconds is None else time.monotonic() + seconds
    blocks: list[bytes] = []
    while True:
        left = None if end is None else max(end - time.monotonic(), 0.0)
        if not select.select([reader], [], [], left)[0]:
            return None
        block = os.read(reader, _BLOCK)
        if not block:
            return b"".join(blocks)
        blocks.append(block)


def _work(work: Callable[[], Any], writer: int, memory: int | None, seconds: float | None) -> NoReturn:
    try:
        for name in _HANDLED:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
        _die_with_parent()
        faulthandler.disable()  # a crash is the parent's to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # of C++, about memory that it did not get
        _limit(memory, seconds)
        try:
            answer = pickle.dumps((True, work()))
        except Exception as error:
            answer = _error(error)
        with open(writer, "wb") as file:
            file.write(answer)
    finally:
        os._exit(0)  # nothing that this process wants to do at its end is for the child to do


def _error(error: Exception) -> bytes:
    try:
        return pickle.dumps((False, error))
    except Exception:
        return pickle.dumps((False, RuntimeError(str(error))))


def _limit(memory: int | None, seconds: float | None) -> None:
    try:
        import resource
    except ImportError:
        return
    if memory is not None:
        used = 0
        with contextlib.suppress(OSError, ValueError, IndexError):
            used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        _lower(resource.RLIMIT_DATA, used + memory)
    if seconds is not None:  # for where it outlives its parent
        _lower(resource.RLIMIT_CPU, int(seconds * (os.cpu_count() or 1)) + 2)


def _lower(which: int, limit: int) -> None:
    import resource

    _, most = resource.getrlimit(which)
    limit = min(limit, sys.maxsize)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(which, (limit, limit))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
