"""The export step: files, proof against PyTorch, build configuration, trtexec lines; and torch operators that become nodes."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnx_fuse
from onnx_fuse.errors import LearnError, ModelError, RequirementError, UsageError, VerificationError
from onnx_fuse.exporting import custom_ops, step
from onnx_fuse.learning import from_onnx
from onnx_fuse.passes.files.checker import check
from onnx_fuse.runtime.plugins import plugin_library
from tests.helpers import model

torch = pytest.importorskip("torch")

AXES = {"x": {0: "batch", 1: "sequence"}, "scale": {0: "batch"}}


class Block(torch.nn.Module):  # type: ignore[misc]
    """A residual sum with its norm, and a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: Any, scale: Any, extra: Any = None) -> dict[str, Any]:
        hidden = self.norm(x + self.dropout(self.linear(x)))
        return {"hidden": hidden, "score": (hidden * x * scale[:, None, None]).sum(-1)}


def example() -> tuple[Any, Any]:
    return torch.randn(2, 5, 8), torch.randn(2)


def export(path: Path, **options: Any) -> onnx_fuse.Exported:
    """TorchScript's exporter takes a tenth of a second."""
    settings: dict[str, Any] = {"dynamic_shapes": AXES, "dynamo": False, "opset": 17, "enable": ["FusedSkipLayerNorm"]}
    settings["select"] = "all"
    return onnx_fuse.export(Block(), example(), path, **{**settings, **options})


def test_files_and_what_is_in_them(tmp_path: Path) -> None:
    done = export(
        tmp_path / "block.onnx",
        sizes={"batch": [32, 1, 8], "sequence": [16, 128]},
        plugin_libraries=["lib dir/libp.so"],
    )
    names = ["block.build.json", "block.fused.onnx", "block.onnx", "block.summary.json", "block.trtexec.sh"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for path in (done.standard, done.fused):
        check(onnx.load(path), str(path))
    assert [value.name for value in onnx.load(done.fused).graph.output] == ["hidden", "score"]
    assert not any(node.domain for node in onnx.load(done.standard).graph.node)

    build = json.loads(done.build.read_text())
    x = build["inputs"][0]
    assert (x["name"], x["shape"], x["min"], x["opt"], x["max"]) == (
        "x",
        ["batch", "sequence", 8],
        [1, 16, 8],
        [8, 128, 8],
        [32, 128, 8],
    )
    assert build["precision"] == "float32" and build["plugin_libraries"] == ["lib dir/libp.so"]
    (operator,) = build["operators"]
    assert (operator["name"], operator["count"], operator["has_body"]) == ("FusedSkipLayerNorm", 1, True)
    assert (operator["plugin_namespace"], operator["plugin_version"]) == ("gr.ml.infra", "1")

    lines = done.trtexec.read_text().splitlines()
    standard, fused = [line for line in lines if line.startswith("trtexec")]
    for line in (standard, fused):
        assert "--minShapes=x:1x16x8,scale:1 --optShapes=x:8x128x8,scale:8 --maxShapes=x:32x128x8,scale:32" in line
    assert "--dynamicPlugins" not in standard and "'--dynamicPlugins=lib dir/libp.so'" in fused
    assert stat.S_ISREG(done.trtexec.stat().st_mode)

    summary = json.loads(done.summary.read_text())
    assert summary["fused"] == {"FusedSkipLayerNorm": 1} and summary["verification"]["onnx"]["passed"]
    for which in ("standard", "fused"):
        compared = summary["verification"]["pytorch"][which]
        assert compared["passed"] and compared["cases"][0] == "the example inputs" and len(compared["cases"]) > 1
        assert max(compared["worst"].values()) < 1e-5


def test_a_plugin_library_is_found_unless_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugin_library.VARIABLE, "/lib/ours.so:/lib/more.so")
    for options, wanted in (({}, ["/lib/ours.so", "/lib/more.so"]), ({"plugin_libraries": []}, [])):
        done = export(tmp_path / "block.onnx", **options)
        assert json.loads(done.build.read_text())["plugin_libraries"] == wanted
        found = [part for part in done.trtexec.read_text().split() if part.startswith("--dynamicPlugins")]
        assert found == [f"--dynamicPlugins={library}" for library in wanted]


def test_sizes_that_are_not_given_are_those_of_the_example(tmp_path: Path) -> None:
    done = export(tmp_path / "block.onnx", sizes={"batch": [1, 4]})
    build = json.loads(done.build.read_text())
    assert build["sizes"]["sequence"] == {"min": 5, "opt": 5, "max": 5}
    assert build["sizes_of_the_example"] == ["sequence"]
    assert "No sizes were given for sequence" in done.trtexec.read_text()


def test_names_cannot_become_commands() -> None:
    line = "trtexec --onnx=m.onnx"
    build = {"trtexec": {"standard": line, "fused": line}, "operators": [], "plugin_libraries": []}
    text = step._script({**build, "sizes_of_the_example": ["batch\ntouch evil", "sequence\r"]})
    assert [item for item in text.splitlines() if item and not item.startswith("#")] == [line, line]


def test_half_precision(tmp_path: Path) -> None:
    done = export(tmp_path / "block.onnx", precision="float16")
    build = json.loads(done.build.read_text())
    assert build["precision"] == "float16" and build["inputs"][0]["dtype"] == "float16"
    assert json.loads(done.summary.read_text())["verification"]["pytorch"]["fused"]["passed"]


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    module = Block().train()
    weight = module.linear.weight.detach().clone()
    onnx_fuse.export(module, example(), tmp_path / "m.onnx", dynamic_shapes=AXES, dynamo=False, opset=17)
    assert module.training and torch.equal(module.linear.weight, weight)


def test_three_lines_after_an_export_of_ones_own(tmp_path: Path) -> None:
    module, inputs = Block().eval(), example()
    path = tmp_path / "own.onnx"
    torch.onnx.export(module, inputs, str(path), dynamo=False, input_names=["a", "b"], output_names=["hidden", "score"])
    before = path.read_bytes()
    done = onnx_fuse.finish_export(path, module, inputs, enable=["FusedSkipLayerNorm"], select="all")
    assert done.report.fused == {"FusedSkipLayerNorm": 1} and path.read_bytes() == before
    assert json.loads(done.summary.read_text())["verification"]["pytorch"]["standard"]["passed"]


def test_what_does_not_pay_is_left_out_by_default(tmp_path: Path) -> None:
    """A sum and norm after a linear layer is what TensorRT chains itself; it is decided for the opt sizes."""
    done = export(tmp_path / "block.onnx", select="auto", device="L4", sizes={"batch": [32, 1, 8], "sequence": [16]})
    selection = json.loads(done.summary.read_text())["selection"]
    assert done.report.fused == {} and selection["sizes"] == {"batch": 8, "sequence": 16}
    (decision,) = selection["decisions"]
    assert decision["operator"] == "FusedSkipLayerNorm" and not decision["keep"] and selection["device"] == "L4"
    assert done.fused.read_bytes() == done.standard.read_bytes()


def test_a_model_that_is_not_the_modules_is_refused(tmp_path: Path) -> None:
    module, inputs = Block().eval(), example()
    path = tmp_path / "own.onnx"
    torch.onnx.export(module, inputs, str(path), dynamo=False, input_names=["x", "scale"])
    with torch.no_grad():
        module.linear.weight.mul_(1.5)
    with pytest.raises(VerificationError, match="The exported model does not compute what the module does"):
        onnx_fuse.finish_export(path, module, inputs)
    assert [item.name for item in tmp_path.iterdir()] == ["own.onnx"]


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"sizes": {"batsh": [1]}}, UsageError, "sizes names 'batsh'"),
        ({"sizes": {"batch": [0]}}, UsageError, "sizes of batch"),
        ({"dynamic_shapes": {"y": {0: "batch"}}}, UsageError, "names 'y', which is no input"),
        ({"precision": "int8"}, UsageError, "precision='int8'"),
        ({"input_names": ["x"]}, UsageError, "1 names for 2 inputs"),
        ({"require": {"FusedSkipLayerNorm": 2}}, RequirementError, "2 FusedSkipLayerNorm required, 1 fused"),
        ({"opset": 5}, ModelError, "torch cannot export Block"),
    ],
)
def test_errors_leave_nothing_behind(tmp_path: Path, options: dict[str, Any], kind: Any, sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        export(tmp_path / "block.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_module(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no torch\.nn\.Module"):
        onnx_fuse.export(lambda x: x, example(), tmp_path / "m.onnx")


# --- torch operators --------------------------------------------------------------------------------------------------


@torch.library.custom_op("onnx_fuse_tests::gated", mutates_args=())
def gated(x: torch.Tensor, gate: torch.Tensor, sharpness: float) -> torch.Tensor:
    """What would be a kernel."""
    return plain_gated(x, gate, sharpness)


@gated.register_fake
def _(x: torch.Tensor, gate: torch.Tensor, sharpness: float) -> torch.Tensor:
    return torch.empty_like(x)


def plain_gated(x: Any, gate: Any, sharpness: float) -> Any:
    return torch.tanh(x) * torch.sigmoid(gate * sharpness)


class Gates(torch.nn.Module):  # type: ignore[misc]
    """Calls the operator twice, with two sharpnesses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 16)

    def forward(self, x: Any) -> Any:
        a, b = self.linear(x).chunk(2, -1)
        return torch.ops.onnx_fuse_tests.gated(torch.ops.onnx_fuse_tests.gated(a, b, 0.5), b, 2.0)


def table() -> Any:
    shapes = {"x": {0: "B"}, "gate": {0: "B"}}
    arguments = (torch.randn(3, 8), torch.randn(3, 8), 0.5)
    return onnx_fuse.custom_op(
        gated, plain_gated, arguments, op="Gated", dynamic_shapes=shapes, attributes={"sharpness": 0.5}
    )


def test_a_torch_operator_becomes_a_node_with_a_body(tmp_path: Path) -> None:
    translations = table()
    done = onnx_fuse.export(
        Gates(), (torch.randn(3, 8),), tmp_path / "gates.onnx", dynamic_shapes={"x": {0: "batch"}},
        custom_translation_table=translations,
    )  # fmt: skip
    written = onnx.load(done.standard)
    nodes = [node for node in written.graph.node if node.op_type == "Gated"]
    assert [(node.domain, list(node.input)[1:]) for node in nodes] == [("gr.ml.infra", [nodes[0].input[1]])] * 2
    values = [{item.name: item.s or item.f for item in node.attribute} for node in nodes]
    assert [value["sharpness"] for value in values] == [0.5, 2.0]
    assert values[0]["inputs"] == b"x,gate" and values[0]["plugin_namespace"] == b"gr.ml.infra"
    assert [(function.domain, function.name) for function in written.functions] == [("gr.ml.infra", "Gated")]
    build = json.loads(done.build.read_text())
    assert [(item["name"], item["count"], item["has_body"]) for item in build["operators"]] == [("Gated", 2, True)]
    assert json.loads(done.summary.read_text())["verification"]["pytorch"]["standard"]["passed"]

    # torch.onnx.export by itself, another opset: the bodies are added afterwards.
    path = tmp_path / "own.onnx"
    torch.onnx.export(
        Gates().eval(), (torch.randn(3, 8),), str(path), dynamo=True, custom_translation_table=translations,
        opset_version=20, verbose=False,
    )  # fmt: skip
    assert not onnx.load(path).functions
    translations.attach(path)
    attached = onnx.load(path)
    onnx.checker.check_model(attached, full_check=True)
    assert [entry.version for entry in attached.functions[0].opset_import] == [20]
    assert len(translations.attach(path).functions) == 1


def test_a_number_that_is_no_attribute_must_be_the_examples() -> None:
    fusion = from_onnx(model("(float[B] x) => (float[B] y) <float h = {0.5}> { m = Mul(x, h) y = Tanh(m) }"), "Half")
    translate = custom_ops._translation(fusion, ["x", "factor"], {"factor": 0.5})
    with pytest.raises(UsageError, match=r"has a body for factor=0\.5, the model calls it with 2\.0"):
        translate("x", 2.0)


def test_what_cannot_be_an_operator() -> None:
    with pytest.raises(UsageError, match="no torch operator"):
        onnx_fuse.custom_op(plain_gated, plain_gated, (torch.randn(3, 8),))
    with pytest.raises(LearnError, match="cannot be exported"):
        onnx_fuse.custom_op(gated, lambda x, gate, sharpness: 1 / 0, (torch.randn(3, 8), torch.randn(3, 8), 0.5))
