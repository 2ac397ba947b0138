"""`onnx-fuse learn`, and `fuse` and `explain` with what was learned."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnx_fuse import torch_export
from tests.helpers import model
from tests.onnx_fuse.cli.helpers import run

GATE = """
<domain: "com.example", opset_import: ["" : 18]>
Gate (float[B, 8] x, float[B, 8] y) => (z)
{
    half = Constant<value_float: float = 0.5>()
    scaled = Mul(x, half)
    tanh = Tanh(scaled)
    sigmoid = Sigmoid(y)
    z = Mul(tanh, sigmoid)
}
"""
MODEL = """
(float[N, 8] a, float[N, 8] b) => (float[N, 8] c) <float h = {0.5}>
{
    r = Relu(a)
    m = Mul(h, r)
    t = Tanh(m)
    s = Sigmoid(b)
    c = Mul(s, t)
}
"""
MODULE = """
import torch

class Gate(torch.nn.Module):
    def forward(self, x, y):
        return torch.tanh(x * 0.5) * torch.sigmoid(y)

class NeedsWidth(torch.nn.Module):
    def __init__(self, width):
        super().__init__()

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gate.onnxtxt").write_text(GATE)
    (tmp_path / "module.py").write_text(MODULE)
    onnx.save(model(MODEL), tmp_path / "model.onnx")
    return tmp_path


def test_learn_then_fuse_and_explain(folder: Path) -> None:
    learned, out = folder / "gate.onnx", folder / "fused.onnx"
    done = run("learn", folder / "gate.onnxtxt", "-o", learned, "--plugin-namespace", "ns", "--plugin-version", "2")
    assert done.exit_code == 0, done.output
    assert "com.example::Gate" in done.stdout and "constant_1: 0.5, read by Mul" in done.stdout
    assert "It has a body, and no kernel yet" in done.stdout and "B: any size" in done.stdout
    onnx.checker.check_model(onnx.load(learned), full_check=True)

    done = run("fuse", folder / "model.onnx", "-o", out, "--with", learned, "--require", "Gate=1")
    assert done.exit_code == 0, done.output
    assert "Verified: equal" in done.stdout and "Gate is learned: it has a body and no kernel yet" in done.stderr
    written = onnx.load(out)
    assert [(node.domain, node.op_type) for node in written.graph.node] == [("", "Relu"), ("com.example", "Gate")]
    attributes = {item.name: item.s for item in written.graph.node[1].attribute}
    assert attributes["plugin_namespace"] == b"ns" and attributes["plugin_version"] == b"2"

    done = run("explain", folder / "model.onnx", "--with", learned, "--pattern", "Gate")
    assert done.exit_code == 0 and "Would fuse (Gate): 1 place" in done.stdout


def test_a_constant_as_attribute(folder: Path) -> None:
    learned = folder / "gate.onnx"
    arguments = ("-o", learned, "--op", "SharpGate", "--domain", "com.other", "--attribute", "sharpness=0.5")
    done = run("learn", folder / "gate.onnxtxt", *arguments)
    assert (
        done.exit_code == 0 and "com.other::SharpGate" in done.stdout and "sharpness: 0.5 in the example" in done.stdout
    )


def test_learn_from_a_module(folder: Path) -> None:
    pytest.importorskip("torch")
    learned = folder / "gate.onnx"
    done = run("learn", f"{folder / 'module.py'}:Gate", "-o", learned, "--inputs", "float[B, 8] x, float[B, 8] y")
    assert done.exit_code == 0, done.output
    done = run("fuse", folder / "model.onnx", "-o", folder / "fused.onnx", "--with", learned, "--require", "Gate=1")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("example", "options", "code", "sentence"),
    [
        ("missing.onnx", (), 5, "does not exist"),
        ("model.onnx", ("--op", "Gelu"), 2, "TensorRT would take it for an operator of its own"),
        ("model.onnx", ("--attribute", "sharpness"), 2, "is not of the form NAME=CONSTANT"),
        ("model.onnx", ("--attribute", "sharpness=7"), 2, "No constant of the example is 7"),
        ("model.onnx", ("--inputs", "float[B] x"), 2, "has its types in the file"),
        ("model.onnx", ("-o", "no/such/folder.onnx"), 6, "no/such"),
        ("missing.py:Gate", (), 2, "does not exist"),
        ("module.py:Nothing", (), 2, "holds no Nothing"),
        ("module.py:number", (), 2, "makes no torch.nn.Module"),
        ("module.py:NeedsWidth", (), 2, "cannot be made"),
        ("module.py:Gate", (), 2, "has no example_inputs"),
        ("module.py:Gate", ("--inputs", "float[B"), 2, "are no inputs"),
    ],
)
def test_errors(
    folder: Path, monkeypatch: pytest.MonkeyPatch, example: str, options: tuple[str, ...], code: int, sentence: str
) -> None:
    if ".py" in example:
        pytest.importorskip("torch")
    monkeypatch.chdir(folder)
    done = run("learn", example, "-o", "learned.onnx", *options)
    assert done.exit_code == code and sentence in done.stderr and "hint: " in done.stderr, done.output
    assert not (folder / "learned.onnx").exists()


def test_what_cannot_be_learned_has_an_exit_code_of_its_own(folder: Path) -> None:
    onnx.save(model("(float[B] x) => (float[B] y) { r = RandomNormalLike(x) y = Mul(r, x) }"), folder / "random.onnx")
    done = run("learn", folder / "random.onnx", "-o", folder / "learned.onnx", "--op", "Noise")
    assert done.exit_code == 7 and "is random" in done.stderr


def test_with_a_model_that_is_no_fusion(folder: Path) -> None:
    done = run("fuse", folder / "model.onnx", "-o", folder / "out.onnx", "--with", folder / "model.onnx")
    assert done.exit_code == 5 and "holds no learned fusion" in done.stderr
    done = run("fuse", folder / "model.onnx", "-o", folder / "out.onnx", "--with", folder / "nothing.onnx")
    assert done.exit_code == 5 and "does not exist" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no.py:Gate"], "no.py does not exist"),
        (["gate.onnxtxt:Gate.py:x"], "does not exist"),
        (["broken.py:Gate"], "is not Python"),
        (["module.py:Gate", "--inputs", "float[B"], "are no inputs"),
        (["module.py:Gate", "--op", "Conv"], "cannot be called"),
    ],
)
def test_what_is_wrong_at_first_sight_needs_no_torch(
    folder: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken.py").write_text("class Gate(:")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch_export, "require_torch", lambda: pytest.fail("torch was imported"))
    done = run("learn", *arguments, "-o", "out.onnx")
    assert done.exit_code in (2, 5) and said in done.stderr, done.output
