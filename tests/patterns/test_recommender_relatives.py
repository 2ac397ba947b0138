"""Interaction layers that docs/recommenders.md speaks of: those that are an operator here fuse, the others stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import onnx_fuse
from tests.torch_export import SCRIPT, exported

F, D = 5, 8
FEATURES = torch.randn(3, F, D)
PAIRS = torch.triu_indices(F, F, offset=1)


class AutoInt(nn.Module):
    """Self-attention over the features with a linear residual (arXiv 1810.11921), heads split by a view."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.residual = (nn.Linear(D, D, bias=False) for _ in range(4))

    def forward(self, features: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.view(x.shape[0], F, self.heads, -1).transpose(1, 2)

        q, k, v = split(self.query(features)), split(self.key(features)), split(self.value(features))
        weights = torch.softmax(q @ k.transpose(-2, -1) * (D // self.heads) ** -0.5, dim=-1)
        merged = (weights @ v).transpose(1, 2).reshape(features.shape[0], F, D)
        return torch.relu(merged + self.residual(features))


class CrossNetwork(nn.Module):
    """DCN-v2 (arXiv 2008.13535)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(F * D, F * D) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        first = x = features.flatten(1)
        for layer in self.layers:
            x = first * layer(x) + x
        return x


class Bilinear(nn.Module):
    """FiBiNET (arXiv 1905.09433), one weight for all fields; `summed` as dot products."""

    def __init__(self, summed: bool) -> None:
        super().__init__()
        self.weight, self.summed = nn.Linear(D, D, bias=False), summed

    def forward(self, features: Tensor) -> Tensor:
        products = self.weight(features)[:, PAIRS[0]] * features[:, PAIRS[1]]
        return products.sum(-1) if self.summed else products


class BilinearProduct(nn.Module):
    """The same as one product: not symmetric."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(D, D, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return torch.bmm(self.weight(features), features.transpose(1, 2))[:, PAIRS[0], PAIRS[1]]


class CompressedInteraction(nn.Module):
    """xDeepFM's CIN (arXiv 1803.05170)."""

    def __init__(self) -> None:
        super().__init__()
        self.compress = nn.Conv1d(F * F, 4, 1)

    def forward(self, features: Tensor) -> Tensor:
        products = (features.unsqueeze(2) * features.unsqueeze(1)).view(-1, F * F, D)
        return torch.relu(self.compress(products)).sum(-1)


LAYERS: dict[str, tuple[nn.Module, dict[str, int]]] = {
    "AutoInt": (AutoInt(), {"FusedAttentionLayerNorm": 1}),
    "DCN-v2": (CrossNetwork(), {}),
    "FiBiNET": (Bilinear(summed=False), {}),
    "FiBiNET, summed": (Bilinear(summed=True), {}),
    "FiBiNET, as one product": (BilinearProduct(), {}),
    "CIN": (CompressedInteraction(), {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_as_documented(name: str) -> None:
    module, expected = LAYERS[name]
    model = exported(module, {"features": FEATURES}, {"features": {0: "B"}}, SCRIPT, 17)
    result = onnx_fuse.fuse(model, enable=["FMInteraction", "FusedLinearLayerNorm"])
    assert result.report.fused == expected


def test_a_product_that_is_not_symmetric_is_explained() -> None:
    model = exported(BilinearProduct(), {"features": FEATURES}, {"features": {0: "B"}}, SCRIPT, 17)
    reasons = [miss.reason for miss in onnx_fuse.explain(model).near_misses]
    assert any("transposed" in reason for reason in reasons), reasons
