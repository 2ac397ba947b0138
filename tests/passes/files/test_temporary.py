"""Temporary folders: what becomes of those that killed processes leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnx_fuse.passes.files import staging, temporary


def left_by_a_killed_process(folder: Path) -> list[str]:
    """Lets a process die while it writes into the folder; what is there then."""
    script = (
        "import os, signal, sys; from pathlib import Path; from onnx_fuse.passes.files.staging import Staging\n"
        "with Staging() as staging:\n"
        "    staging.write(Path(sys.argv[1]) / 'm.onnx', b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, folder], check=False)
    return os.listdir(folder)


def test_the_next_one_cleans_up(tmp_path: Path) -> None:
    (left,) = left_by_a_killed_process(tmp_path)
    assert (tmp_path / left / "0").read_bytes() == b"half"
    staging.check_output(tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []


def test_the_name_says_whose_it_is(tmp_path: Path) -> None:
    with temporary.temporary_folder(tmp_path) as folder:
        assert folder.parent == tmp_path and f"-{os.getpid()}-" in folder.name


def test_those_of_the_living_stay(tmp_path: Path) -> None:
    with staging.Staging() as one:
        one.write(tmp_path / "one", b"1")
        staging.write_file(tmp_path / "other", b"2")
        script = "import sys; from onnx_fuse.passes.files import staging; staging.write_file(sys.argv[1], b'3')"
        subprocess.run([sys.executable, "-c", script, tmp_path / "third"], check=True)
        one.commit()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "one": b"1",
        "other": b"2",
        "third": b"3",
    }


def test_other_files_and_links_of_such_a_name_stay(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"x")
    name = ".onnx-fuse-1-0123456789abcdef"
    (tmp_path / name).symlink_to("precious")
    (tmp_path / f"{name}-mine").mkdir()
    (tmp_path / ".onnx-fuse-1-0123456789abcdee").write_bytes(b"a file")
    before = sorted(os.listdir(tmp_path))
    staging.write_file(tmp_path / "new", b"x")
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "new"])
    assert (tmp_path / "precious" / "file").read_bytes() == b"x"


def test_where_files_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (left,) = left_by_a_killed_process(tmp_path)

    def refuse(descriptor: int, *, wait: bool) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(temporary, "_lock", refuse)
    staging.write_file(tmp_path / "new", b"x")
    assert sorted(os.listdir(tmp_path)) == sorted(["new", left])


def test_a_folder_that_was_taken_for_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may come between making a folder and locking it."""
    lock, taken = temporary._lock, []

    def late(descriptor: int, *, wait: bool) -> None:
        if wait and not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].rmdir()
        lock(descriptor, wait=wait)

    monkeypatch.setattr(temporary, "_lock", late)
    staging.write_file(tmp_path / "new", b"x")
    assert taken and os.listdir(tmp_path) == ["new"]
