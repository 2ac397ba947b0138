"""Fused models in ONNX Runtime: after its own optimisation they have no more nodes than the originals."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto

import onnx_fuse
from benchmarks import recommenders
from tests.models import exports
from tests.models.exports import Export
from tests.models.torch_export import Source, sampled

CELLS = [cell for cell in (*exports.matrix(), *exports.wide()) if not cell.half and cell.error is None]
USUAL = {
    "bert-script17-eager-static",
    "bert-dynamo20-sdpa-dynamic",
    "vit-script17-eager-dynamic",
    "gpt2-script14-sdpa-static",
    "gpt2-dynamo18-sdpa-dynamic",
    "encoder_post-script14-native-dynamic",
    "roberta-dynamo23-eager-dynamic",
    "llama-script14-eager-dynamic",
    "distilbert-script14-eager-static",
}
RECOMMENDERS = [
    (name, exporter, opset) for name in recommenders.MODELS for exporter, opset in (("script", 17), ("dynamo", 20))
]


def nodes(model: ModelProto | Path) -> Counter[str]:
    """Operators of a model as ONNX Runtime runs it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "optimised.onnx")
        options.optimized_model_filepath = path
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def total(found: Counter[str]) -> int:
    """Number of nodes, with the parts of what the originals have as one node.

    An Einsum turns two of its three tensors. An Attention has two products, a mask, Softmax, and three nodes for rows without a key.
    """
    return found.total() + 2 * found["Einsum"] + 6 * found["Attention"]


def allowed(cell: Export, attentions: int) -> int:
    """More nodes than this a fused model must not have.

    Below opset 17 a norm is found among its parts, in a body now and then too late for the sums before it: two nodes a block.
    """
    return 2 * attentions if cell.opset < 17 else 0


@pytest.mark.parametrize(
    "cell",
    sampled(*CELLS, usual={cell for cell in CELLS if cell.name in USUAL}),
    ids=lambda cell: cell.name,
)
def test_architectures(cell: Export) -> None:
    path = exports.cached(cell)
    before = nodes(path)
    result = onnx_fuse.fuse(onnx.load(path), verify=False)
    fused = result.report.fused
    assert fused
    after = nodes(result.model)
    more = total(after) - total(before)
    assert more <= allowed(cell, fused.get("FusedAttentionLayerNorm", 0)), {
        name: (before[name], after[name]) for name in before | after if before[name] != after[name]
    }


@functools.cache
def source(name: str) -> Source:
    torch.manual_seed(0)
    return recommenders.MODELS[name][0]()


@pytest.mark.parametrize(
    ("name", "exporter", "opset"),
    sampled(
        *RECOMMENDERS,
        usual={
            ("HSTU, research", "script", 17),
            ("HSTU, ops", "script", 17),
            ("DLRM", "script", 17),
            ("DLRM", "dynamo", 20),
            ("two-tower", "script", 17),
            ("SASRec", "script", 17),
        },
    ),
)
def test_recommenders(name: str, exporter: str, opset: int) -> None:
    original = source(name).export(exporter, opset)
    before = nodes(original)
    result = onnx_fuse.fuse(original, enable=[recommenders.FM], verify=False)
    assert result.report.fused == recommenders.MODELS[name][1]
    after = nodes(result.model)
    assert total(after) <= total(before), {
        name: (before[name], after[name]) for name in before | after if before[name] != after[name]
    }
