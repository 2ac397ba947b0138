"""`onnx-fuse bench`: trtexec's layout, JSON, and what it says when it cannot."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

import onnx_fuse
from onnx_fuse.cli.app import app
from onnx_fuse.runtime.onnxruntime import kernel_library
from tests.helpers import model
from tests.runtime.engines import write_engine
from tests.runtime.onnxruntime.libraries import library

SHORT = ("--duration", "0", "--warm-up", "0", "--iterations", "12")
SWISH = """<domain: "gr.ml.infra", opset_import: ["" : 17]>
FusedSwish <beta>(q) => (r) { c = Constant<value_float: float=@beta>() d = Mul(q, c) s = Sigmoid(d) r = Mul(q, s) }"""


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], env={"COLUMNS": "80"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = model(
        "(float[n,64] x) => (float[n,64] y) { a = gr.ml.infra.FusedSwish <beta=1.0>(x) y = MatMul(a, w) }",
        functions=SWISH,
        weights={"w": np.ones((64, 64), np.float32)},
    )
    for node, name in zip(made.graph.node, ("swish", "product"), strict=True):
        node.name = name
    onnx.save(made, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_the_layout_of_trtexec(path: Path) -> None:
    done = bench(path, *SHORT, "--batch", 3)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ONNX Runtime ") and f"{path}; fused nodes by their bodies" in lines[0]
    assert lines[1:3] == ["Inputs: x:3x64", "=== Performance summary ==="]
    number = r"[\d.e+-]+"
    times = ", ".join(
        f"{name} = {number} ms"
        for name in ("min", "max", "mean", "median", r"percentile\(90%\)", r"percentile\(95%\)", r"percentile\(99%\)")
    )
    assert re.fullmatch(rf"Throughput: {number} qps", lines[3])
    assert re.fullmatch(f"Latency: {times}", lines[4])
    assert re.fullmatch(f"CPU Compute Time: {times}", lines[5])
    assert re.fullmatch(rf"Total Host Walltime: {number} s, 12 runs, 1 at a time", lines[6])


def test_json_and_layers(path: Path) -> None:
    done = bench(path, *SHORT, "--json", "--layers", "--no-optimise", "--shapes", "x:2x64", "--streams", 2)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["runs"] == 24 and facts["streams"] == 2 and facts["shapes"] == {"x": [2, 64]}
    latency = facts["phases"]["latency"]
    assert 0 < latency["min"] <= latency["median"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert [(layer["nodes"], layer["operators"]) for layer in facts["layers"]] == [
        (["swish"], ["FusedSwish"]),
        (["product"], ["MatMul"]),
    ]
    assert 0 < facts["share_of_products"] < 1


def test_the_table_of_layers(path: Path) -> None:
    done = bench(path, *SHORT, "--layers", "--no-optimise")
    assert re.search(r"\d\.\d{3} +\d+\.\d% +FusedSwish +swish", done.stdout)
    assert re.search(r"\d\.\d{3} +\d+\.\d% +MatMul +product", done.stdout)
    assert re.search(r"All layers: \d+\.\d{3} ms; in matrix products: \d+\.\d%", done.stdout)


def test_comparing(path: Path, tmp_path: Path) -> None:
    # So much more work that no noise hides it.
    slow = model(
        "(float[n,64] x) => (float[n,64] y) { "
        + " ".join(f"t{number} = MatMul({'x' if number == 0 else f't{number - 1}'}, w)" for number in range(150))
        + " y = Relu(t149) }",
        weights={"w": np.eye(64, dtype=np.float32)},
    )
    onnx.save(slow, tmp_path / "slow.onnx")
    arguments = (*SHORT, "--batch", 512, "--compare")
    done = bench(path, *arguments, tmp_path / "slow.onnx")
    assert done.exit_code == 0, done.output
    (found,) = re.findall(
        rf"slow.onnx takes ([\d.]+) times as long as {path.name} \(95% confidence: .*, 12 pairs of calls.*\)",
        done.stdout,
    )
    assert float(found) > 2 and done.stdout.count("Throughput") == 2
    ratio = json.loads(bench(tmp_path / "slow.onnx", *arguments, path, "--json").stdout)["ratio"]
    assert ratio["low"] <= ratio["median"] < 0.5 and ratio["median"] <= ratio["high"] and ratio["pairs"] == 12
    assert ratio["differs"] == (ratio["high"] < 1)


def test_inputs_of_ones_own(path: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((5, 64), np.float32))
    assert "Inputs: x:5x64" in bench(path, *SHORT, "--inputs", tmp_path / "x.npz").stdout
    np.savez(tmp_path / "z.npz", z=np.ones((5, 64), np.float32))
    done = bench(path, *SHORT, "--inputs", tmp_path / "z.npz")
    assert done.exit_code == 2 and "no input 'z'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "cause"),
    [
        (["--shapes", "x"], 2, "--shapes 'x' is not of the form NAME:SIZES"),
        (["--shapes", "x:2xq"], 2, "--shapes 'x:2xq' is not of the form"),
        (["--shapes", "z:2x2"], 2, "The model has no input 'z'"),
        (["--shapes", "x:2x65"], 2, "Input 'x' cannot have the shape [2, 65]"),
        (["--cuda-graphs"], 2, "no CUDA graphs"),
        (["--streams", "0"], 2, "--streams"),
        (["--compare", "missing.onnx"], 5, "missing.onnx: no such file"),
        (["--compare", "missing.engine"], 5, "The engine missing.engine does not exist."),
        (["--compare", "."], 5, "no such file"),
        (["--inputs", "missing.npz"], 2, "cannot be read as .npz: No such file or directory."),
    ],
)
def test_wrong_usage(path: Path, arguments: list[str], code: int, cause: str) -> None:
    done = bench(path, *SHORT, *arguments)
    assert done.exit_code == code and cause in done.stderr
    assert done.stdout == "" and len(done.stderr.splitlines()) == 2 and "[Errno" not in done.stderr


def test_an_engine_that_is_not_there_or_has_no_record(tmp_path: Path) -> None:
    engine = tmp_path / "m.engine"
    done = bench(engine, *SHORT)
    assert done.exit_code == 5 and done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: The engine {engine} does not exist.",
        "hint: Check the path, or build it: onnx-fuse build.",
    ]
    engine.write_bytes(b"a plan")
    done = bench(engine, *SHORT)
    assert done.exit_code == 5 and "has no record m.engine.json beside it." in done.stderr


def test_a_model_that_takes_other_inputs(path: Path, tmp_path: Path) -> None:
    onnx.save(model("(float[n,3] q) => (float[n,3] y) { y = Relu(q) }"), tmp_path / "other.onnx")
    done = bench(path, *SHORT, "--compare", tmp_path / "other.onnx")
    assert done.exit_code == 2 and "The model has no input 'x'" in done.stderr and "q float32[n, 3]" in done.stderr


def test_an_engine_where_none_can_run(path: Path, tmp_path: Path) -> None:
    done = bench(write_engine(tmp_path, onnx.load(path)), *SHORT)
    assert done.exit_code in (2, 5)  # no GPU; or no plan that it opens
    assert "model.engine" in done.stderr and len(done.stderr.splitlines()) == 2


def test_the_kernel_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Used where it is found, said in text and JSON, turned off, and asked for."""
    original = model("(float[n,64] x) => (float[n,64] y) { s = Sigmoid(x) y = Mul(x, s) }")
    onnx_fuse.fuse(original, enable=["FusedSwish"]).save(tmp_path / "m.onnx")
    monkeypatch.setenv(kernel_library.VARIABLE, str(library()))
    found = json.loads(bench(tmp_path / "m.onnx", *SHORT, "--json", "--layers").stdout)
    assert f"of {library()}" in found["description"]
    assert found["kernels"]["library"] == str(library()) and found["kernels"]["nodes"] == {"FusedSwish": 1}
    assert [layer["operators"] for layer in found["layers"]] == [["FusedSwish"]]
    off = bench(tmp_path / "m.onnx", *SHORT, "--no-library", "--compare", tmp_path / "m.onnx")
    assert off.exit_code == 0 and off.stdout.count("fused nodes by their bodies: no kernel library was wanted") == 2
    monkeypatch.setenv(kernel_library.VARIABLE, "")
    missing = bench(tmp_path / "m.onnx", *SHORT, "--library")
    assert missing.exit_code == 2 and "error: No kernel library is found." in missing.stderr
    assert "hint: Build one: onnx-fuse plugins build --for onnxruntime" in missing.stderr
