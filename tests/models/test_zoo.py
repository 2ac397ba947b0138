"""All architectures of `zoo.py`: every attention block fuses as the configuration says it should, and computes the same.

One export of each, and a few with a batch of 1; with ONNX_FUSE_ALL_MODELS=1 (`make test-models`) all those of `exports.wide`,
and of `exports.single`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pytest
from onnx import helper

import onnx_fuse
from onnx_fuse.passes.report import MatchRecord

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.models import exports, zoo

ALL = bool(os.environ.get("ONNX_FUSE_ALL_MODELS"))
SINGLE = ("encoder_post", "bloom", "multihead_attention", "autoint")
"""Those whose axes a batch of 1 changes most: heads and batch in one axis, tokens or heads before the batch."""
CELLS = exports.wide() if ALL else exports.sparse(exports.wide())
CELLS += [cell for cell in exports.single() if ALL or cell.architecture in SINGLE]
ATTENTION = "FusedAttentionLayerNorm"
FAILURES = [(name, glob) for name, architecture in zoo.ARCHITECTURES.items() for glob in architecture.fails]


@dataclass(frozen=True)
class Run:
    """A cell, what its configuration says, and what fusing makes of it."""

    cell: exports.Export
    result: onnx_fuse.FuseResult

    @property
    def architecture(self) -> zoo.Architecture:
        return zoo.ARCHITECTURES[self.cell.architecture]

    @property
    def matches(self) -> list[MatchRecord]:
        return [match for match in self.result.report.matches if match.operator == ATTENTION]


@pytest.fixture(scope="module", params=CELLS, ids=lambda cell: cell.name)
def run(request: pytest.FixtureRequest) -> Run:
    for package, name in (("keras", "keras_encoder"), ("einops", "einops_vit")):
        if request.param.architecture == name:
            pytest.importorskip(package)
    return Run(request.param, onnx_fuse.fuse(exports.cached(request.param)))


def test_every_block_is_fused_with_what_follows_it(run: Run) -> None:
    architecture = run.architecture
    assert len(run.matches) == architecture.blocks
    for match in run.matches:
        assert match.parts == run.cell.rim
        if run.cell.rim == zoo.RIM:
            assert match.left_out == ()
        else:
            assert not architecture.stays or any(architecture.stays in sentence for sentence in match.left_out), (
                match.left_out
            )


def test_the_nodes_have_the_heads_of_the_configuration(run: Run) -> None:
    nodes = [node for node in run.result.model.graph.node if node.op_type == ATTENTION]
    found = {helper.get_node_attr_value(node, "num_heads") for node in nodes}
    assert found == ({run.architecture.heads} if run.architecture.heads else {2, 4})


def test_the_result_is_proven_equal_and_nothing_went_wrong(run: Run) -> None:
    report = run.result.report
    assert report.verification is not None
    assert report.verification["passed"] and report.verification["skipped"] is None
    assert len(report.verification["cases"]) >= 2
    assert [item.error for item in report.passes if item.error] == []
    # A decoder's two kinds of block have two bodies, of which TensorRT would take the first.
    assert [warning for warning in report.warnings if "2 bodies" not in warning] == []


def test_it_fuses_no_further(run: Run) -> None:
    again = onnx_fuse.fuse(run.result.model, verify=False)
    assert again.report.fused == {} and not again.changed


def test_the_sample_has_each_architecture_and_each_setting() -> None:
    cells = exports.wide()
    sample = exports.sparse(cells)
    assert [cell.architecture for cell in sample] == list(dict.fromkeys(cell.architecture for cell in cells))
    for setting in ("exporter", "opset", "attention", "dynamic", "half"):
        assert {getattr(cell, setting) for cell in sample} == {getattr(cell, setting) for cell in cells}


@pytest.mark.skipif(not ALL, reason="only with all models")
@pytest.mark.parametrize(("name", "glob"), FAILURES)
def test_what_cannot_be_had_fails_as_it_is_listed(name: str, glob: str) -> None:
    import onnxruntime

    cell = next(cell for cell in exports.settings_of(name) if fnmatchcase(cell.settings, glob))
    with pytest.raises(Exception) as caught:  # of whichever class the exporter or ONNX Runtime has for it
        onnxruntime.InferenceSession(str(exports.cached(cell)), providers=["CPUExecutionProvider"])
    assert zoo.ARCHITECTURES[name].fails[glob] in str(caught.value)


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_weights_are_never_trivial(name: str) -> None:
    if name == "keras_encoder":
        pytest.importorskip("keras")
    module, _, _ = zoo.build(name, zoo.ARCHITECTURES[name].attentions[0])
    vectors = {name: parameter for name, parameter in module.named_parameters() if parameter.dim() == 1}
    assert all(not torch.any((vector == 0) | (vector == 1)) for vector in vectors.values())
