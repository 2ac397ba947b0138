"""The recommender models of examples/models: exported, fused, equal, and equal to PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch

import onnx_fuse
from examples.models.bert4rec import BERT4Rec
from examples.models.generative_recommender import GenerativeRecommender, Recommendation
from examples.models.sasrec import SASRec
from tests import helpers
from tests.models.torch_export import EXPORTERS, Source, sampled

ATTENTION, EMBEDDING, HSTU = "FusedAttentionLayerNorm", "FusedEmbedLayerNorm", "HSTUHierarchicalAttention"
ITEMS = 50


def ids(batch: int = 3, length: int = 7) -> torch.Tensor:
    drawn = torch.randint(1, ITEMS, (batch, length))
    drawn[1, -3:] = 0
    return drawn


def sasrec() -> Source:
    return Source(SASRec(ITEMS).eval(), {"input_ids": ids()}, {"input_ids": {0: "B", 1: "N"}})


def bert4rec() -> Source:
    return Source(BERT4Rec(ITEMS).eval(), {"input_ids": ids()}, {"input_ids": {0: "B", 1: "N"}})


def generative(timed: bool) -> Source:
    input_ids = ids()
    inputs = {
        "input_ids": input_ids,
        "attention_mask": (input_ids != 0).long(),
        "position_ids": torch.arange(7).expand(3, 7).contiguous(),
        "dense_features": torch.randn(3, 6),
    }
    if timed:
        inputs["timestamps"] = torch.randint(0, 10**6, (3, 7)).sort(-1).values
    axes = {name: {0: "B"} if name == "dense_features" else {0: "B", 1: "N"} for name in inputs}
    return Source(GenerativeRecommender(ITEMS).eval(), inputs, axes, Recommendation._fields)


MODELS: dict[str, tuple[Callable[[], Source], dict[str, int]]] = {
    "sasrec": (sasrec, {ATTENTION: 2}),
    "bert4rec": (bert4rec, {ATTENTION: 2, EMBEDDING: 1}),
    "generative": (functools.partial(generative, timed=False), {HSTU: 2}),
    "generative_timed": (functools.partial(generative, timed=True), {HSTU: 2}),
}


@functools.cache
def source(name: str) -> Source:
    torch.manual_seed(len(name))
    return MODELS[name][0]()


@pytest.mark.parametrize(
    ("name", "exporter", "opset"),
    sampled(
        *((name, *exporter) for name in MODELS for exporter in EXPORTERS),
        usual={(name, "script", 14 + 3 * (place % 2)) for place, name in enumerate(MODELS)},
    ),
)
def test_models_fuse(name: str, exporter: str, opset: int) -> None:
    made = source(name)
    result = onnx_fuse.fuse(made.export(exporter, opset))
    assert result.report.verification["passed"]
    assert dict(result.report.fused) == MODELS[name][1]
    with torch.no_grad():
        wanted = made.module(*made.inputs.values())
    found = helpers.run(result.model, {key: value.numpy() for key, value in made.inputs.items()})
    for want, got in zip(wanted if isinstance(wanted, tuple) else (wanted,), found, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4 * float(want.abs().max()))
