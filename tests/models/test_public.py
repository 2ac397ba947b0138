"""Recommender models of torch-rechub, as they are: exported by both exporters, fused as their maths allows, equal."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.generative.hstu import HSTUModel
from torch_rechub.models.matching import SASRec
from torch_rechub.models.ranking import BST, DIN

import onnx_fuse
from tests.models.torch_export import EXPORTERS, Source, sampled

ITEMS, BATCH, LENGTH, WIDTH = 50, 3, 7, 16
HIDDEN = {"dims": [16], "dropout": 0.0}


class FromTensors(torch.nn.Module):
    """A model that takes a dictionary, as one that takes tensors in the dictionary's order."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(dict(zip(self.names, tensors, strict=True)))


class Encoder(torch.nn.Module):
    """The part of SASRec that encodes a sequence."""

    def __init__(self, model: SASRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, seq: torch.Tensor) -> torch.Tensor:
        embedded = self.model.item_emb({"seq": seq}, self.model.features[:1])[:, 0]
        return self.model.seq_forward({"seq": seq}, embedded)


def ids(length: int = LENGTH) -> torch.Tensor:
    drawn = torch.randint(1, ITEMS, (BATCH, length))
    drawn[1, -2:] = 0
    return drawn


def features() -> tuple[list[Any], list[Any], list[Any], dict[str, torch.Tensor]]:
    """User, history and target features, and values of them."""
    history = SequenceFeature("history", ITEMS, embed_dim=WIDTH, pooling="concat", shared_with="target", padding_idx=0)
    users, targets = [SparseFeature("user", ITEMS, WIDTH)], [SparseFeature("target", ITEMS, WIDTH, padding_idx=0)]
    single = functools.partial(torch.randint, 1, ITEMS, (BATCH,))
    return users, [history], targets, {"user": single(), "history": ids(), "target": single()}


def hstu() -> Source:
    model = HSTUModel(ITEMS, d_model=32, n_heads=2, n_layers=2, dqk=8, dv=16, max_seq_len=20, num_time_buckets=16)
    axes = {name: {0: "B", 1: "N"} for name in ("ids", "times")}
    return Source(model.eval(), {"ids": ids(), "times": torch.randint(0, 100_000, (BATCH, LENGTH))}, axes, longest=19)


def sasrec() -> Source:
    items = [
        SequenceFeature(name, ITEMS, embed_dim=WIDTH, pooling="concat") for name in ("seq", "positive", "negative")
    ]
    return Source(Encoder(SASRec(items, max_len=LENGTH, num_heads=2)).eval(), {"seq": ids()}, {})


def bst() -> Source:
    users, history, targets, inputs = features()
    model = BST(users, history, targets, HIDDEN, nhead=2, num_layers=2, max_seq_len=LENGTH + 1)
    return Source(FromTensors(model, tuple(inputs)).eval(), inputs, {})


def din() -> Source:
    users, history, targets, inputs = features()
    model = DIN(users, history, targets, HIDDEN, {"dims": [16], "activation": "prelu"})
    return Source(FromTensors(model, tuple(inputs)).eval(), inputs, {})


MODELS: Mapping[str, tuple[Callable[[], Source], dict[str, int]]] = {
    "HSTU": (hstu, {"HSTUHierarchicalAttention": 2}),
    "SASRec": (sasrec, {"FusedAttentionLayerNorm": 2}),
    "BST": (bst, {"FusedAttentionLayerNorm": 2}),
    "DIN": (din, {}),  # its weights come from a network: docs/recommenders.md
}


@functools.cache
def source(name: str) -> Source:
    torch.manual_seed(0)
    return MODELS[name][0]()


@pytest.mark.parametrize(
    ("name", "exporter", "opset"),
    sampled(
        *((name, *exporter) for name in MODELS for exporter in EXPORTERS),
        usual={(name, *exporter) for name in MODELS for exporter in (("script", 17), ("dynamo", 18))},
    ),
)
def test_what_fuses(name: str, exporter: str, opset: int) -> None:
    made = source(name)
    result = onnx_fuse.fuse(made.export(exporter, opset, dynamic=bool(made.axes)))
    assert dict(result.report.fused) == MODELS[name][1]
    assert result.report.verification["passed"] or not MODELS[name][1]
