"""Files that appear whole: what is refused as an output, and what becomes of what killed processes leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnx_fuse.errors import OutputError, UsageError
from onnx_fuse.passes.files import staging


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


class TestWhatIsNoFile:
    @pytest.mark.parametrize("device", ["/dev/null", "/dev/full", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
    def test_devices(self, device: str) -> None:
        for action in (lambda: staging.check_output(device), lambda: staging.write_file(device, b"x")):
            with pytest.raises(OutputError, match="not a regular file"):
                action()

    def test_pipes(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "link").symlink_to("pipe")
        for name in ("pipe", "link"):  # without a reader, opening it would wait for ever
            with pytest.raises(OutputError, match="not a regular file"):
                staging.write_file(tmp_path / name, b"x")

    def test_links_in_a_circle(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        with pytest.raises(OutputError, match=r"(?s)symbolic links.*lead back"):
            staging.check_output(tmp_path / "a")
        assert (tmp_path / "a").is_symlink()

    @pytest.mark.parametrize("name", ["x" * 300, "null\0byte"])
    def test_names_that_no_file_can_have(self, tmp_path: Path, name: str) -> None:
        for action in (staging.check_output, lambda path: staging.write_file(path, b"x")):
            with pytest.raises(OutputError):
                action(tmp_path / name)
        assert os.listdir(tmp_path) == []


class TestRequireApart:
    def test_the_same_file_by_another_path(self, tmp_path: Path) -> None:
        model = tmp_path / "m.onnx"
        model.write_bytes(b"model")
        (tmp_path / "link").symlink_to("m.onnx")
        os.link(model, tmp_path / "hard")
        (tmp_path / "folder").symlink_to(".")
        for output in (model, tmp_path / "link", tmp_path / "hard", tmp_path / "folder" / "m.onnx"):
            with pytest.raises(UsageError, match=r"The report would overwrite .*m.onnx"):
                staging.require_apart([("The report", output)], [model])

    def test_two_outputs_that_are_not_there_yet(self, tmp_path: Path) -> None:
        (tmp_path / "folder").symlink_to(".")
        (tmp_path / "link").symlink_to("new")
        (tmp_path / "sub").mkdir()
        for other in (tmp_path / "folder" / "new", tmp_path / "link", tmp_path / "sub" / ".." / "new"):
            with pytest.raises(UsageError):
                staging.require_apart([("-o", tmp_path / "new"), ("--report", other)], [])
        with pytest.raises(UsageError):
            staging.require_apart([("-o", tmp_path / "no" / "new"), ("--report", tmp_path / "no" / "." / "new")], [])

    def test_what_is_apart(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_bytes(b"model")
        (tmp_path / "copy.onnx").write_bytes(b"model")
        staging.require_apart(
            [("-o", tmp_path / "copy.onnx"), ("--report", tmp_path / "r.json")], [tmp_path / "m.onnx", tmp_path / "no"]
        )


class TestLeftovers:
    def test_the_next_one_cleans_up(self, tmp_path: Path) -> None:
        (left,) = left_by_a_killed_process(tmp_path)
        assert (tmp_path / left / "0").read_bytes() == b"half"
        staging.check_output(tmp_path / "m.onnx")
        assert os.listdir(tmp_path) == []

    def test_the_name_says_whose_it_is(self, tmp_path: Path) -> None:
        with staging.temporary_folder(tmp_path) as folder:
            assert folder.parent == tmp_path and f"-{os.getpid()}-" in folder.name

    def test_those_of_the_living_stay(self, tmp_path: Path) -> None:
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

    def test_other_files_and_links_of_such_a_name_stay(self, tmp_path: Path) -> None:
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

    def test_where_files_cannot_be_locked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (left,) = left_by_a_killed_process(tmp_path)

        def refuse(descriptor: int, *, wait: bool) -> None:
            raise OSError("no locks here")

        monkeypatch.setattr(staging, "_lock", refuse)
        staging.write_file(tmp_path / "new", b"x")
        assert sorted(os.listdir(tmp_path)) == sorted(["new", left])

    def test_a_folder_that_was_taken_for_abandoned(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another process may come between making a folder and locking it."""
        lock, taken = staging._lock, []

        def late(descriptor: int, *, wait: bool) -> None:
            if wait and not taken:
                taken.extend(tmp_path.iterdir())
                taken[0].rmdir()
            lock(descriptor, wait=wait)

        monkeypatch.setattr(staging, "_lock", late)
        staging.write_file(tmp_path / "new", b"x")
        assert taken and os.listdir(tmp_path) == ["new"]
