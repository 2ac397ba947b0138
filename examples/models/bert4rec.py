"""BERT4Rec: recommendation as a cloze task, with attention in both directions.

"BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer" (arXiv 1904.06690), written from
the paper's section 3: post-LN Transformer layers with GELU, and an output layer that shares the item embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BERT4RecLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + network(x)).

    Args:
        hidden: width.
        heads: number of heads; they divide the width.
    """

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.out = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden)
        self.network = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))
        self.network_norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, N, hidden], bias [B, 1, 1, N] (0, or a large negative number for padding) -> [B, N, hidden]."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
        attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.out(attended))
        return self.network_norm(x + self.network(x))


class BERT4Rec(nn.Module):
    """Items (one of them the mask) and positions embedded, layers, and scores of all items.

    Args:
        items: number of items; 0 is padding.
        max_length: longest sequence.
    """

    def __init__(self, items: int, hidden: int = 32, heads: int = 2, layers: int = 2, max_length: int = 64) -> None:
        super().__init__()
        self.items = nn.Embedding(items, hidden, padding_idx=0)
        self.positions = nn.Embedding(max_length, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.layers = nn.ModuleList(BERT4RecLayer(hidden, heads) for _ in range(layers))
        self.projection = nn.Linear(hidden, hidden)
        self.bias = nn.Parameter(torch.zeros(items))

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, N] -> scores of the item at each position [B, N, items]."""
        x = self.norm(self.items(input_ids) + self.positions(torch.arange(input_ids.shape[1])[None]))
        bias = (input_ids == 0)[:, None, None, :].float() * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        return F.gelu(self.projection(x)) @ self.items.weight.T + self.bias
