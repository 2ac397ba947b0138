"""DeepFM: a factorization machine and a deep network on the same embeddings.

Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction" (arXiv 1703.04247); the second order is
computed in linear time as in Rendle, "Factorization Machines" (ICDM 2010).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FactorizationMachine(nn.Module):
    """Sum of the products of all pairs of features: 0.5 ((sum e)^2 - sum e^2).

    Args:
        reduce: whether to sum over the width, too. Without, this is NFM's bi-interaction pooling (arXiv 1708.05027).
    """

    def __init__(self, reduce: bool = True) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, features: Tensor) -> Tensor:
        """features [B, F, D] -> [B, 1], or [B, D]."""
        pairs = features.sum(dim=1) ** 2 - (features**2).sum(dim=1)
        return 0.5 * (pairs.sum(dim=1, keepdim=True) if self.reduce else pairs)


class DeepFM(nn.Module):
    """The whole model.

    Args:
        fields: number of categorical fields.
        values: values that each field can take.
        width: D, the size of an embedding.
    """

    def __init__(self, fields: int = 6, values: int = 100, width: int = 8) -> None:
        super().__init__()
        self.first_order = nn.Embedding(fields * values, 1)
        self.embedding = nn.Embedding(fields * values, width)
        self.register_buffer("offsets", torch.arange(fields) * values, persistent=False)
        self.second_order = FactorizationMachine()
        self.deep = nn.Sequential(nn.Linear(fields * width, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, fields] -> probability of a click [B, 1]."""
        rows = ids + self.offsets
        features = self.embedding(rows)
        linear = self.first_order(rows).sum(dim=1)
        return torch.sigmoid(linear + self.second_order(features) + self.deep(features.flatten(1)))
