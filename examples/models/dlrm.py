"""DLRM: embeddings of sparse features and a dense feature, interacting by their dot products.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems" (arXiv 1906.00091).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Triangle = Literal["lower", "upper"]


class DotInteraction(nn.Module):
    """Dot products of all pairs of features, beside the dense feature.

    Args:
        features: F, the dense one included.
        triangle: "lower" lists the pairs as (1,0), (2,0), (2,1), ...; "upper" as (0,1), (0,2), ..., (1,2), ...
        self_interaction: whether a feature's product with itself is among them.
    """

    def __init__(self, features: int, triangle: Triangle = "lower", self_interaction: bool = False) -> None:
        super().__init__()
        indices = {
            "lower": torch.tril_indices(features, features, offset=0 if self_interaction else -1),
            "upper": torch.triu_indices(features, features, offset=0 if self_interaction else 1),
        }[triangle]
        self.register_buffer("rows", indices[0], persistent=False)
        self.register_buffer("columns", indices[1], persistent=False)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """dense [B, D], sparse [B, F-1, D] -> [B, D + P]."""
        features = torch.cat([dense.unsqueeze(1), sparse], dim=1)
        products = torch.bmm(features, features.transpose(1, 2))
        return torch.cat([dense, products[:, self.rows, self.columns]], dim=1)


class DLRM(nn.Module):
    """The whole model.

    Args:
        tables: number of rows of each embedding table.
        dense: number of dense inputs.
        width: D, the size of an embedding.
    """

    def __init__(
        self,
        tables: tuple[int, ...] = (100, 200, 50),
        dense: int = 13,
        width: int = 16,
        triangle: Triangle = "lower",
        self_interaction: bool = False,
    ) -> None:
        super().__init__()
        features = len(tables) + 1
        pairs = features * (features + 1) // 2 if self_interaction else features * (features - 1) // 2
        self.embeddings = nn.ModuleList(nn.Embedding(rows, width) for rows in tables)
        self.bottom = nn.Sequential(nn.Linear(dense, 32), nn.ReLU(), nn.Linear(32, width), nn.ReLU())
        self.interaction = DotInteraction(features, triangle, self_interaction)
        self.top = nn.Sequential(nn.Linear(width + pairs, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """dense [B, inputs], ids [B, tables] -> probability of a click [B, 1]."""
        looked_up = [table(ids[:, number]) for number, table in enumerate(self.embeddings)]
        crossed = self.interaction(self.bottom(dense), torch.stack(looked_up, dim=1))
        return torch.sigmoid(self.top(crossed))
