"""SASRec: next-item recommendation with causal self-attention.

"Self-Attentive Sequential Recommendation" (arXiv 1808.09781). Written from the paper; as in its published code the query is the
normed input, key and value are the input itself, and the residual is the normed query.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 1e-8


class SASRecBlock(nn.Module):
    """Causal attention and a position-wise network, each after a LayerNorm whose output is the residual.

    Args:
        hidden: width.
        heads: number of heads; they divide the width.
    """

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(hidden, eps=EPSILON)
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.out = nn.Linear(hidden, hidden)
        self.network_norm = nn.LayerNorm(hidden, eps=EPSILON)
        self.network = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))

    def forward(self, x: Tensor, causal: Tensor) -> Tensor:
        """x [B, N, hidden], causal [N, N] (bool: which keys a position sees) -> [B, N, hidden]."""
        normed = self.attention_norm(x)
        query, key, value = (
            layer(item).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, item in ((self.query, normed), (self.key, x), (self.value, x))
        )
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = scores.masked_fill(~causal, float("-inf")).softmax(-1)
        x = normed + self.out((weights @ value).transpose(1, 2).flatten(2))
        normed = self.network_norm(x)
        return normed + self.network(normed)


class SASRec(nn.Module):
    """Items and positions embedded, blocks, and scores of all items.

    Args:
        items: number of items; 0 is padding.
        max_length: longest sequence.
    """

    def __init__(self, items: int, hidden: int = 32, heads: int = 2, layers: int = 2, max_length: int = 64) -> None:
        super().__init__()
        self.items = nn.Embedding(items, hidden, padding_idx=0)
        self.positions = nn.Embedding(max_length, hidden)
        self.blocks = nn.ModuleList(SASRecBlock(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden, eps=EPSILON)

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, N] -> scores of the next item [B, N, items]."""
        length = input_ids.shape[1]
        present = (input_ids != 0).unsqueeze(-1)
        x = self.items(input_ids) * self.items.embedding_dim**0.5 + self.positions(torch.arange(length))
        causal = torch.tril(torch.ones(length, length, dtype=torch.bool))
        x = x * present
        for block in self.blocks:
            x = block(x, causal) * present
        return self.norm(x) @ self.items.weight.T
