"""`onnx-fuse debug`: what is printed, JSON, files and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.tensorrt import binding
from tests.onnx_fuse.cli.helpers import run
from tests.trust import mutations


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    original = mutations.attention_block()
    fused = onnx_fuse.fuse(original, verify=False).model
    made = {"original": original, "fused": fused, "wrong": onnx.ModelProto()}
    made["wrong"].CopyFrom(fused)
    node = next(node for node in made["wrong"].graph.node if node.domain)
    next(item for item in node.attribute if item.name == "epsilon").f = 0.5
    paths = {name: folder / f"{name}.onnx" for name in made}
    for name, path in paths.items():
        onnx.save(made[name], path)
    return paths


def test_equal(models: dict[str, Path]) -> None:
    result = run("debug", models["original"], models["fused"])
    assert result.exit_code == 0, result.output
    assert "Equal: 7 values in each of 12 cases." in result.stdout and "FusedAttentionLayerNorm" in result.stdout
    assert "q0" not in result.stdout and "6 further values are shown by --all" in result.stdout
    assert "q0" in run("debug", models["original"], models["fused"], "--all").stdout


def test_different(models: dict[str, Path]) -> None:
    result = run("debug", models["original"], models["wrong"])
    assert result.exit_code == 4
    assert "The first value that differs is 'y', which FusedAttentionLayerNorm" in result.stdout
    assert "LayerNormalization_y" in result.stdout
    assert result.stderr.splitlines() == [
        f"error: {models['wrong']} does not compute what {models['original']} computes.",
        "hint: Fuse with --disable for that operator, and please report it with the model.",
    ]


def test_json(models: dict[str, Path]) -> None:
    result = run("debug", models["original"], models["wrong"], "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 4 and found["equal"] is False and found["place"]["value"] == "y"
    assert found["place"]["fused_nodes"][0][1] == "FusedAttentionLayerNorm"
    value = found["values"][-1]
    assert value["comparison"]["problem"] and value["original"]["std"] != value["fused"]["std"]
    assert run("debug", models["original"], models["wrong"], "--rtol", "10").exit_code == 0


def test_dump_network(models: dict[str, Path], tmp_path: Path) -> None:
    try:
        binding.module()
    except UsageError as missing:
        pytest.skip(str(missing))
    target = tmp_path / "network.txt"
    assert run("debug", models["original"], models["fused"], "--dump-network", target).exit_code == 0
    assert "MATRIX_MULTIPLY" in target.read_text() and "input  x float[-1, -1, 8]" in target.read_text()
    missing = run("debug", models["original"], models["fused"], "--dump-network", tmp_path / "none" / "n.txt")
    assert missing.exit_code == 6


def test_unreadable(models: dict[str, Path], tmp_path: Path) -> None:
    assert run("debug", models["original"], tmp_path / "none.onnx").exit_code == 5
    assert run("debug", models["original"], models["fused"], "--inputs", tmp_path / "none.npz").exit_code == 2
