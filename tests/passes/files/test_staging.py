"""Files that appear whole: what is refused as an output, and what becomes of what killed processes leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnx_fuse.errors import OutputError, UsageError
from onnx_fuse.passes.files import staging


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
