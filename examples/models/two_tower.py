"""A two-tower retrieval model whose user tower pools the user's history by recency.

Two towers after "Deep Neural Networks for YouTube Recommendations" (Covington et al., RecSys 2016) and "Sampling-Bias-Corrected
Neural Modeling for Large Corpus Item Recommendations" (Yi et al., RecSys 2019). Short-term and long-term interest are pooled
apart, as in SDM (arXiv 1909.00385), here with weights that fall with age instead of a learned Softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SequenceInteraction(nn.Module):
    """A user against a sequence of items.

    Args:
        short_window: how many of the latest items are of the short-term interest.
        decay: how fast co-occurrence falls with distance.
        outputs: which of "scores", "short_term", "long_term", "cooccurrence" to make, in this order.
    """

    def __init__(
        self,
        short_window: int = 5,
        decay: float = 0.2,
        outputs: tuple[str, ...] = ("scores", "short_term", "long_term", "cooccurrence"),
    ) -> None:
        super().__init__()
        self.short_window = short_window
        self.decay = decay
        self.outputs = outputs

    def forward(
        self, items: Tensor, user: Tensor, mask: Tensor, time_weights: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """items [B, S, D], user [B, D], mask [B, S] bool (true = an item), time_weights [B, S]."""
        return tuple(getattr(self, name)(items, user, mask, time_weights) for name in self.outputs)

    def scores(self, items: Tensor, user: Tensor, mask: Tensor, time_weights: Tensor | None) -> Tensor:
        """[B, S]: mask * time_weight * <user, item>."""
        scores = torch.bmm(items, user.unsqueeze(2)).squeeze(2)
        if time_weights is not None:
            scores = scores * time_weights
        return scores * mask.to(items.dtype)

    def short_term(self, items: Tensor, user: Tensor, mask: Tensor, time_weights: Tensor | None) -> Tensor:
        """[B, D]: the last `short_window` items, each weighted by 1 + 0.1 * its rank among them, the oldest having rank 0."""
        later = mask.to(torch.int64).flip(1).cumsum(1).flip(1)  # items from here on, this one included
        recent = mask & (later <= self.short_window)
        rank = recent.to(torch.int64).sum(1, keepdim=True) - later
        weights = recent.to(items.dtype) * (1 + 0.1 * rank.to(items.dtype))
        if time_weights is not None:
            weights = weights * time_weights
        return (weights.unsqueeze(2) * items).sum(1)

    def long_term(self, items: Tensor, user: Tensor, mask: Tensor, time_weights: Tensor | None) -> Tensor:
        """[B, D]: all items, weighted by 0.5 + 0.5 * exp(-0.1 * age), the last one having age 0."""
        position = torch.arange(items.shape[1], device=items.device)
        last = torch.where(mask, position, -1).amax(1, keepdim=True)
        fading = 0.5 + 0.5 * torch.exp(-0.1 * (last - position).to(items.dtype))
        weights = mask.to(items.dtype) * fading
        if time_weights is not None:
            weights = weights * time_weights
        return torch.bmm(weights.unsqueeze(1), items).squeeze(1)

    def cooccurrence(self, items: Tensor, user: Tensor, mask: Tensor, time_weights: Tensor | None) -> Tensor:
        """[B, S, S]: exp(-decay * distance) * <item i, item j> for i < j, else 0."""
        position = torch.arange(items.shape[1], device=items.device)
        distance = (position - position.unsqueeze(1)).abs().to(items.dtype)
        nearness = torch.triu(torch.exp(-self.decay * distance), diagonal=1)
        kept = mask.to(items.dtype)
        return torch.bmm(items, items.transpose(1, 2)) * nearness * kept.unsqueeze(2) * kept.unsqueeze(1)


class TwoTower(nn.Module):
    """User and item towers; the user tower reads the history through its short-term and long-term interest.

    Args:
        items: number of items; 0 is padding.
        width: size of an embedding.
    """

    def __init__(self, items: int = 1000, width: int = 32, short_window: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(items, width, padding_idx=0)
        self.interest = SequenceInteraction(short_window, outputs=("short_term", "long_term"))
        self.user_tower = nn.Sequential(nn.Linear(3 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.item_tower = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, history: Tensor, time_weights: Tensor, profile: Tensor, candidates: Tensor) -> Tensor:
        """history [B, S] and candidates [B, C] item ids, time_weights [B, S], profile [B, width] -> scores [B, C]."""
        items = self.embedding(history)
        short, long = self.interest(items, profile, history > 0, time_weights)
        user = nn.functional.normalize(self.user_tower(torch.cat([short, long, profile], dim=1)), dim=1)
        item = nn.functional.normalize(self.item_tower(self.embedding(candidates)), dim=2)
        return torch.bmm(item, user.unsqueeze(2)).squeeze(2)
