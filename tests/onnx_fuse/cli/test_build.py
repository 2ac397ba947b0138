"""`onnx-fuse build`: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from onnx_fuse.cli.app import app
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.tensorrt import binding
from tests.helpers import model
from tests.onnx_fuse.cli.helpers import TERMINAL

try:
    if binding.module().__name__ != "tensorrt_rtx":
        pytest.skip("these engines are built ahead of time, with tensorrt_rtx", allow_module_level=True)
except UsageError as missing:
    pytest.skip(str(missing), allow_module_level=True)

MODEL = """(int64[batch, sequence] input_ids, float[batch, sequence, 8] some_quite_long_name_of_an_input) =>
           (float[batch, sequence, 8] y) { e = Gather(T, input_ids) s = Add(e, some_quite_long_name_of_an_input) y = MatMul(s, W) }"""


def run(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(app, ["build", *map(str, arguments)], env={"COLUMNS": "80", **environment})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    weights = {"T": np.ones((4, 8), np.float32), "W": np.ones((8, 8), np.float32)}
    onnx.save(model(MODEL, weights=weights), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_what_it_prints(path: Path, tmp_path: Path) -> None:
    shapes = ("--shapes", "input_ids:1x16:8x128:32x512", "--shapes", "input_ids:64x16:64x128:64x512")
    done = run(path, "-o", tmp_path / "m.plan", "--precision", "fp16", "--target", "SM86,SM120", *shapes, **TERMINAL)
    assert done.exit_code == 0, done.output
    text = done.stdout
    assert "for SM86, SM120" in text and "32x512x8" in text and "64x128" in text and "assumed" not in text
    assert "Precision: 3 nodes in float16, 0 in float32." in text and "y: " in text and "written" in text
    table = [line for line in text.splitlines() if str(tmp_path) not in line]
    assert max(map(len, table)) <= 80


def test_a_second_build_says_that_nothing_was_to_do(path: Path, tmp_path: Path) -> None:
    arguments = (path, "-o", tmp_path / "m.plan", "--target", "SM86", "--max-batch-size", "4")
    assert "assumed: sequence is 1 to 512, optimised for 128" in run(*arguments).stdout
    assert "is up to date, nothing was built" in run(*arguments).stdout
    (tmp_path / "m.plan").write_bytes(b"something else")
    again = run(*arguments)
    assert again.exit_code == 0 and "warning: The engine" in again.stderr and "built again" in again.stderr


def test_how_to_get_plugins(tmp_path: Path) -> None:
    call = '(float[n] x) => (float[n] y) { y = gr.ml.infra.Twice <plugin_namespace = "gr.ml.infra"> (x) }'
    body = '<domain: "gr.ml.infra", opset_import: ["": 17]> Twice (a) => (b) { b = Add (a, a) }'
    onnx.save(model(call, functions=body), tmp_path / "m.onnx")
    arguments = (tmp_path / "m.onnx", "-o", tmp_path / "m.plan", "--target", "SM86")
    advice = "Build the plugin library with `onnx-fuse plugins build`"
    assert advice in run(*arguments).stdout
    (tmp_path / "m.plan").unlink()
    done = run(*arguments, "--no-plugins")
    assert "1 node without: no plugin library is loaded" in done.stdout and advice not in done.stdout


def test_quiet_and_reports(path: Path, tmp_path: Path) -> None:
    quiet = run(path, "-o", tmp_path / "m.plan", "--target", "SM86", "--quiet", "--report", tmp_path / "r.json")
    assert quiet.exit_code == 0 and quiet.output == ""
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["record"]["targets"] == ["SM86"] and report["reused"] is False
    piped = run(path, "-o", tmp_path / "m.plan", "--target", "SM86", "--report", "-")
    assert json.loads(piped.stdout)["reused"] is True and "up to date" in piped.stderr


def test_the_configuration_of_the_export_step(path: Path, tmp_path: Path) -> None:
    sizes = {"min": [1, 1], "opt": [2, 2], "max": [3, 3]}
    config = {
        "format": 1,
        "inputs": [{"name": "input_ids", "shape": ["batch", "sequence"], **sizes}],
        "precision": "float32",
        "plugin_libraries": [],
    }
    (tmp_path / "m.build.json").write_text(json.dumps(config))
    given = (path, "-o", tmp_path / "m.plan", "--target", "SM86", "--config", tmp_path / "m.build.json")
    assert "3x3x8" in run(*given).stdout
    assert "9x3x8" in run(*given, "--shapes", "input_ids:1x1:2x2:9x3").stdout


def test_the_log_of_tensorrt(path: Path, tmp_path: Path) -> None:
    done = run(path, "-o", tmp_path / "m.plan", "--target", "SM86", "-v")
    assert done.exit_code == 0 and done.stderr.count("VERBOSE: ") > 10


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (("--shapes", "ids"), 2, "NAME:MIN:OPT:MAX"),
        (("--shapes", "ids:1:2:3"), 2, "no input 'ids'"),
        (("--precision", "fp64"), 2, "fp64"),
        (("--precision", "int8"), 2, "int8 is only for models"),
        (("--workspace", "lots"), 2, "is no size"),
        (("--workspace", "1"), 4, "builds no engine of m.onnx"),
        (("--target", "SM1"), 2, "does not build for SM1"),
        (("--target", "SM90"), 2, "[tensorrt]"),
        (("--plugins", "no.so"), 2, "no.so"),
        (("--plugins", "no.so", "--no-plugins"), 2, "exclude each other"),
        (("--config", "no.json"), 2, "no.json cannot be read"),
        (("--report", "none/r.json"), 6, "none/r.json"),
    ],
)
def test_errors(path: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = run(path, "-o", tmp_path / "m.plan", *arguments)
    assert done.exit_code == code and message in done.stderr and "error: " in done.stderr
    assert not (tmp_path / "m.plan").exists()


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    done = run(tmp_path / "no.onnx", "-o", tmp_path / "m.plan")
    assert done.exit_code == 5 and "does not exist" in done.stderr
