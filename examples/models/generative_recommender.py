"""A generative recommender: what a user did, read by HSTU layers, gives the next item and three scores of the user.

The sequence model is that of "Actions Speak Louder than Words" (arXiv 2402.17152), with several tasks on top as in its ranking
model: one tower for each (arXiv 1804.07931 names the tasks' dependence; here they share the sequence alone).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from examples.models.hstu import ResearchHSTULayer


class Recommendation(NamedTuple):
    """What the model gives.

    Attributes:
        logits: scores of the next item, [B, N, items].
        hidden_states: what they are made of, [B, N, hidden].
        engagement, retention: probabilities, [B].
        monetisation: an expected amount, [B].
    """

    logits: Tensor
    hidden_states: Tensor
    engagement: Tensor
    retention: Tensor
    monetisation: Tensor


class GenerativeRecommender(nn.Module):
    """Embedding, HSTU layers, and heads for several tasks.

    Args:
        items: number of items.
        dense: number of dense features of the user.
        max_length: longest sequence.
        layers: number of layers; hidden, heads, size and value_size are those of `ResearchHSTULayer`.
    """

    def __init__(
        self,
        items: int,
        dense: int = 6,
        hidden: int = 32,
        layers: int = 2,
        heads: int = 2,
        size: int = 8,
        value_size: int = 16,
        max_length: int = 64,
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(items, hidden)
        self.positions = nn.Embedding(max_length, hidden)
        self.dense = nn.Sequential(nn.Linear(dense, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.layers = nn.ModuleList(
            ResearchHSTULayer(hidden, heads, size, value_size, max_length) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)) for _ in range(3)
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        dense_features: Tensor,
        timestamps: Tensor | None = None,
    ) -> Recommendation:
        """One pass over whole sequences.

        Args:
            input_ids, position_ids: [B, N].
            attention_mask: [B, N], 1 where there is an event, 0 where there is padding.
            dense_features: [B, dense].
            timestamps: [B, N], seconds; left out, positions alone tell the order.
        """
        length = input_ids.shape[1]
        present = attention_mask.bool()
        x = self.items(input_ids) * self.items.embedding_dim**0.5 + self.positions(position_ids)
        x = x + self.dense(dense_features).unsqueeze(1)
        x = x * present.unsqueeze(-1)
        causal = torch.tril(torch.ones(length, length, dtype=torch.bool))
        mask = causal & present.unsqueeze(1)
        for layer in self.layers:
            x = layer(x, mask, timestamps) * present.unsqueeze(-1)
        hidden_states = self.norm(x)
        last = (attention_mask * torch.arange(1, length + 1)).argmax(-1)
        user = hidden_states.gather(1, last.view(-1, 1, 1).expand(-1, 1, hidden_states.shape[-1])).squeeze(1)
        engagement, retention, monetisation = (tower(user).squeeze(-1) for tower in self.towers)
        return Recommendation(
            hidden_states @ self.items.weight.T,
            hidden_states,
            torch.sigmoid(engagement),
            torch.sigmoid(retention),
            nn.functional.softplus(monetisation),
        )
