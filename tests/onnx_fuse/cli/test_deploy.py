"""The command `deploy`: what it prints, its exit codes, and that options arrive."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

from onnx_fuse.cli.app import app
from tests.helpers import model

pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="onnx-fuse[deploy]")

SQUARES = "(float[N,4] x) => (float[N,4] y) { y = Mul(x, x) }"


def deploy(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["deploy", *map(str, arguments)])


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    onnx.save(model(SQUARES), tmp_path / "squares.onnx")
    return tmp_path / "squares.onnx"


def test_a_model_is_deployed_and_what_was_assumed_is_said(squares: Path, tmp_path: Path) -> None:
    result = deploy(squares, "-o", tmp_path / "repo")
    assert result.exit_code == 0, result.output
    first, *notes, last = result.stdout.splitlines()
    assert first == f"Wrote {tmp_path / 'repo'}: squares, by the server's onnxruntime backend."
    assert any("Batches hold up to 32 rows: assumed" in note for note in notes)
    assert last.startswith("The server itself was not run.")
    assert (tmp_path / "repo" / "models" / "squares" / "1" / "model.onnx").is_file()


def test_options_arrive(squares: Path, tmp_path: Path) -> None:
    options = (
        "--name s --max-batch-size 6 --instances 3 --batch-delay 40 --gpus 2 --server 26.01 --image i:2 --no-verify"
    )
    result = deploy(squares, "-o", tmp_path / "repo", *options.split())
    assert result.exit_code == 0, result.output
    config = (tmp_path / "repo" / "models" / "s" / "config.pbtxt").read_text()
    for line in ("max_batch_size: 6", "count: 3", "kind: KIND_GPU", "max_queue_delay_microseconds: 40"):
        assert line in config
    assert (tmp_path / "repo" / "Dockerfile").read_text().startswith("FROM nvcr.io/nvidia/tritonserver:26.01-py3\n")
    pod = (tmp_path / "repo" / "kubernetes" / "deployment.yaml").read_text()
    assert "nvidia.com/gpu: '2'" in pod and "image: i:2" in pod
    assert "was not checked" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("--name", "no/name"), 2, "is no name for a model"),
        (("--plugins", "lib.so"), 2, "needs no plugin library"),
        (("-o", "."), 6, "exists and is not empty"),
    ],
)
def test_errors_have_a_cause_a_remedy_and_a_code(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = deploy(squares, "-o", "repo", *arguments)
    assert result.exit_code == code
    assert "error: " in result.stderr and error in result.stderr and "hint: " in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["squares.onnx"]


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    result = deploy(tmp_path / "none.onnx", "-o", tmp_path / "repo")
    assert result.exit_code == 5 and "does not exist" in result.stderr
