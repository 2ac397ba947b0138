"""Work in a child process: what it gives, what it raises, and what happens at its limits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from onnx_fuse.errors import ModelError
from onnx_fuse.passes.graph.confined import Exceeded, confined

MEGA = 1 << 20


def children() -> list[str]:
    """The child processes of this one, whatever else the tests have started."""
    threads = Path("/proc/self/task").glob("*/children")
    return sorted(number for thread in threads for number in thread.read_text().split())


def test_what_the_work_gives_and_changes() -> None:
    held: list[int] = []
    assert confined(lambda: held.append(1) or os.getpid(), memory=64 * MEGA, seconds=30) != os.getpid()
    assert held == []
    assert len(confined(lambda: bytes(8 * MEGA), memory=64 * MEGA)) == 8 * MEGA


def test_what_the_work_raises() -> None:
    def fail() -> None:
        raise ModelError("It is wrong.", "Mend it.")

    with pytest.raises(ModelError, match="It is wrong") as error:
        confined(fail, memory=None)
    assert error.value.remedy == "Mend it."


def test_an_error_that_cannot_be_pickled_keeps_its_message() -> None:
    class OddError(Exception):
        pass

    def fail() -> None:
        raise OddError("odd")

    with pytest.raises(RuntimeError, match="odd"):
        confined(fail, memory=None)


def test_too_much_memory() -> None:
    assert confined(lambda: len(bytearray(32 * MEGA)), memory=256 * MEGA) == 32 * MEGA
    with pytest.raises(Exceeded, match="more memory than it may"):
        confined(lambda: len(bytearray(1024 * MEGA)), memory=256 * MEGA)


def test_too_much_time_and_nobody_is_left() -> None:
    others, start = children(), time.monotonic()
    with pytest.raises(Exceeded, match=r"not done after 0\.2 s"):
        confined(lambda: time.sleep(60), memory=None, seconds=0.2)
    assert time.monotonic() - start < 10
    assert children() == others


def test_a_crash() -> None:
    with pytest.raises(Exceeded, match="SIGABRT"):
        confined(os.abort, memory=None)


def test_a_signal_while_it_waits_ends_the_child_too() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    others, before = children(), signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            confined(lambda: time.sleep(60), memory=None)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert children() == others
