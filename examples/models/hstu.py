"""HSTU, the Hierarchical Sequential Transduction Unit, in the two forms that its authors published.

"Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations" (arXiv 2402.17152).
A layer projects its input to u, v, q and k, attends with SiLU in place of Softmax, and gates the normed result with u:

    A V = (SiLU(q k^T + rab) / N) v,        y = norm(A V) * u,        x + y W

Written from the paper's equations 2 to 4. Shapes: B sequences, N positions, h heads, d (queries, keys) or dv (values) a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RelativeBias(nn.Module):
    """rab: a learnt bias for the distance of two positions, and one for the time between two events (paper, 3.2).

    Args:
        max_length: longest sequence.
        buckets: number of time buckets; a bucket is log(seconds) / 0.301.
    """

    def __init__(self, max_length: int, buckets: int = 128) -> None:
        super().__init__()
        self.max_length, self.buckets = max_length, buckets
        self.positions = nn.Parameter(torch.randn(2 * max_length - 1) * 0.02)
        self.times = nn.Parameter(torch.randn(buckets + 1) * 0.02)

    def forward(self, length: int, timestamps: Tensor | None = None) -> Tensor:
        """[1 or B, N, N]; `timestamps` [B, N] are seconds."""
        position = torch.arange(length)
        bias = self.positions[self.max_length - 1 + position[None, :] - position[:, None]][None]
        if timestamps is None:
            return bias
        following = torch.cat([timestamps[:, 1:], timestamps[:, -1:]], dim=1)
        between = (following[:, :, None] - timestamps[:, None, :]).abs().clamp(min=1).float()
        bucket = (between.log() / 0.301).long().clamp(0, self.buckets)
        return bias + self.times[bucket]


class ResearchHSTULayer(nn.Module):
    """The layer of the research code: bias shared by the heads, no scale, SiLU over all of u, v, q, k, division by N.

    The norm after attention has no affine part; attention is written with Einsum.

    Args:
        hidden: width of the input.
        heads: h.
        size, value_size: d and dv.
        max_length: longest sequence.
        concat: the published variant in which the output projection sees [u, norm(o), u * norm(o)].
    """

    def __init__(
        self, hidden: int, heads: int, size: int, value_size: int, max_length: int, *, concat: bool = False
    ) -> None:
        super().__init__()
        self.hidden, self.heads, self.size, self.value_size = hidden, heads, size, value_size
        self.concat = concat
        self.uvqk = nn.Parameter(torch.randn(hidden, 2 * heads * (size + value_size)) * 0.2)
        self.bias = RelativeBias(max_length)
        self.out = nn.Linear(heads * value_size * (3 if concat else 1), hidden)

    def forward(self, x: Tensor, mask: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """x [B, N, hidden], mask [N, N] or [B, N, N] of 0 and 1 (or bool) -> [B, N, hidden]."""
        batch, length = x.shape[:2]
        wide, narrow = self.heads * self.value_size, self.heads * self.size
        projected = F.silu(F.layer_norm(x, (self.hidden,), eps=1e-6) @ self.uvqk)
        u, v, q, k = torch.split(projected, [wide, wide, narrow, narrow], dim=-1)
        scores = torch.einsum(
            "bnhd,bmhd->bhnm",
            q.view(batch, length, self.heads, self.size),
            k.view(batch, length, self.heads, self.size),
        )
        scores = scores + self.bias(length, timestamps).unsqueeze(1)
        weights = F.silu(scores) / length
        weights = weights * (mask if mask.dim() == 2 else mask.unsqueeze(1))
        attended = torch.einsum(
            "bhnm,bmhd->bnhd", weights, v.reshape(batch, length, self.heads, self.value_size)
        ).reshape(batch, length, wide)
        normed = F.layer_norm(attended, (wide,), eps=1e-6)
        gated = torch.cat([u, normed, u * normed], dim=-1) if self.concat else u * normed
        return x + self.out(gated)


def valid_mask(length: int, lengths: Tensor, candidates: Tensor | None = None, window: int = 0) -> Tensor:
    """Which keys a position may see, [B or 1, N, N], as the ops code defines it: bool, causal.

    Args:
        length: N.
        lengths: [B], events of each sequence, its candidates included.
        candidates: [B], how many of the last events are candidates: they see the history and themselves, not each other.
        window: how far back a position sees; 0 for all the way.
    """
    positions = torch.arange(length)
    ids = positions.view(1, length)
    if candidates is not None:
        ids = torch.minimum(ids, (lengths - candidates).view(-1, 1))
    distance = ids[:, :, None] - ids[:, None, :]
    valid = (distance > 0) | (positions[:, None] == positions[None, :])
    return valid & (distance <= window) if window else valid


class OpsHSTULayer(nn.Module):
    """The layer of the production kernels: scores scaled by 1/sqrt(d), divided by the longest length, no bias; gate SiLU(u).

    Args:
        hidden: width of the input.
        heads: h.
        size, value_size: d and dv.
        max_length: what the weights are divided by.
        group_norm: a norm for each head, with one scale and shift a head, instead of one over all heads.
    """

    def __init__(
        self, hidden: int, heads: int, size: int, value_size: int, max_length: int, *, group_norm: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.size, self.value_size, self.max_length = heads, size, value_size, max_length
        self.group_norm = group_norm
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.uvqk = nn.Linear(hidden, 2 * heads * (size + value_size))
        width = heads if group_norm else heads * value_size
        self.norm_weight = nn.Parameter(1 + 0.2 * torch.randn(width))
        self.norm_bias = nn.Parameter(0.2 * torch.randn(width))
        self.out = nn.Linear(heads * value_size, hidden, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, N, hidden], mask [1 or B, N, N] (bool, see `valid_mask`) -> [B, N, hidden]."""
        batch, length = x.shape[:2]
        wide, narrow = self.heads * self.value_size, self.heads * self.size
        u, v, q, k = torch.split(self.uvqk(self.norm(x)), [wide, wide, narrow, narrow], dim=-1)
        q, k, v = (
            item.view(batch, length, self.heads, size).transpose(1, 2)
            for item, size in ((q, self.size), (k, self.size), (v, self.value_size))
        )
        scores = torch.einsum("bhxa,bhya->bhxy", q, k) * self.size**-0.5
        weights = F.silu(scores) / self.max_length
        weights = weights * mask.unsqueeze(1)
        attended = torch.einsum("bhxd,bhdv->bhxv", weights, v).transpose(1, 2).flatten(2, 3)
        return x + self.out(F.silu(u) * self._normed(attended))

    def _normed(self, x: Tensor) -> Tensor:
        if not self.group_norm:
            return F.layer_norm(x, self.norm_weight.shape, self.norm_weight, self.norm_bias, 1e-6)
        rows = x.reshape(-1, self.heads, self.value_size)
        normed = F.group_norm(rows, self.heads, self.norm_weight, self.norm_bias, 1e-6)
        return normed.view(x.shape)


class ResearchHSTU(nn.Module):
    """Next-item recommendation with research layers: items and positions embedded, causal, scored against all items.

    Args:
        items: number of items; 0 is padding.
        layers: number of layers; the other arguments are those of `ResearchHSTULayer`.
    """

    def __init__(
        self,
        items: int,
        hidden: int = 32,
        layers: int = 2,
        heads: int = 2,
        size: int = 8,
        value_size: int = 16,
        max_length: int = 64,
        *,
        concat: bool = False,
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(items, hidden)
        self.positions = nn.Embedding(max_length, hidden)
        self.layers = nn.ModuleList(
            ResearchHSTULayer(hidden, heads, size, value_size, max_length, concat=concat) for _ in range(layers)
        )

    def forward(self, input_ids: Tensor, timestamps: Tensor) -> Tensor:
        """input_ids, timestamps [B, N] -> scores of all items [B, N, items]."""
        length = input_ids.shape[1]
        present = (input_ids != 0).unsqueeze(-1)
        x = self.items(input_ids) * self.items.embedding_dim**0.5 + self.positions(torch.arange(length))
        x = x * present
        mask = torch.tril(torch.ones(length, length))
        for layer in self.layers:
            x = layer(x, mask, timestamps) * present
        x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        return x @ self.items.weight.T


class OpsHSTU(nn.Module):
    """A stack of ops layers over embedded events, with lengths and candidates.

    Args:
        layers: number of layers; the other arguments are those of `OpsHSTULayer`.
        window: see `valid_mask`.
    """

    def __init__(
        self,
        hidden: int = 32,
        layers: int = 2,
        heads: int = 2,
        size: int = 8,
        value_size: int = 16,
        max_length: int = 64,
        *,
        group_norm: bool = False,
        window: int = 0,
    ) -> None:
        super().__init__()
        self.window = window
        self.layers = nn.ModuleList(
            OpsHSTULayer(hidden, heads, size, value_size, max_length, group_norm=group_norm) for _ in range(layers)
        )

    def forward(self, x: Tensor, lengths: Tensor, candidates: Tensor) -> Tensor:
        """x [B, N, hidden], lengths, candidates [B] -> [B, N, hidden], 0 beyond the lengths."""
        length = x.shape[1]
        mask = valid_mask(length, lengths, candidates, self.window)
        present = (torch.arange(length)[None, :] < lengths[:, None]).unsqueeze(-1)
        for layer in self.layers:
            x = layer(x * present, mask)
        return x * present
