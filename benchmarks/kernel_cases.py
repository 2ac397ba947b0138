"""The cases that the plugins are measured with, and that the cost report predicts: one operator at one size each.

Nothing here imports torch: the forms of the operators take it as an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import TensorProto

import onnx_fuse

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}
SMALL = {"B": 2, "R": 6, "S": 12, "V": 50}
"""The sizes of a dry run, where those of a case are larger."""


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        sizes: name of a dimension -> its size.
        inputs: name -> shape, in names of dimensions or numbers; "ids_1" and the like are int64, below V.
        attributes: of the node.
        eager: from the inputs and attributes to the outputs, as one writes it in torch.
        flops: of the matrix products, 2 for each multiplication.
        outputs: names and shapes.
        gathered: inputs of which only rows are read -> how many.
        fast: as `eager`, with torch's scaled_dot_product_attention.
    """

    operator: str
    sizes: Mapping[str, int]
    inputs: Mapping[str, Sequence[str | int]]
    attributes: Mapping[str, Any]
    eager: Callable[..., Any]
    outputs: Mapping[str, Sequence[str | int]]
    flops: Callable[[Mapping[str, int]], float] = lambda _: 0.0
    gathered: Mapping[str, Callable[[Mapping[str, int]], int]] = field(default_factory=dict)
    fast: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        return " ".join([self.operator, *(f"{key}={size}" for key, size in self.sizes.items())])

    def shrunk(self) -> Case:
        """The case at the sizes of a dry run."""
        sizes = {name: min(size, SMALL.get(name, size)) for name, size in self.sizes.items()}
        return Case(**{**self.__dict__, "sizes": sizes})

    def shape(self, dims: Sequence[str | int]) -> tuple[int, ...]:
        return tuple(self.sizes[dim] if isinstance(dim, str) else dim for dim in dims)

    def type_of(self, name: str, dtype: str) -> str:
        return "int64" if name.startswith("ids") else dtype

    def onnx_type(self, name: str, dtype: str) -> int:
        return {**TYPES, "int64": TensorProto.INT64}[self.type_of(name, dtype)]

    def node(self) -> onnx.NodeProto:
        """The fused node, whose values have the operator's names."""
        names = ({name: name for name in self.inputs}, {name: name for name in self.outputs})
        return fused_op(self.operator).make_node(*names, self.attributes, "node")

    def bytes(self, dtype: str) -> int:
        """What has to be read and written at least: every input and output once, of tables the rows that are looked up."""
        moved = 0
        for name, dims in {**self.inputs, **self.outputs}.items():
            shape = self.shape(dims)
            count = math.prod(shape)
            if name in self.gathered:
                count = min(count, self.gathered[name](self.sizes) * shape[-1])
            moved += count * BYTES[self.type_of(name, dtype)]
        return moved

    def limit(self, dtype: str, measured: Mapping[str, Any]) -> tuple[float, str]:
        """Seconds that no kernel can go below on a GPU, and what sets them: memory, products or launch."""
        seconds = {
            "memory": self.bytes(dtype) / measured["copy_bytes_per_second"],
            "products": self.flops(self.sizes) / measured["matrix_flops_per_second"][dtype],
            "launch": measured["launch_seconds"],
        }
        what = max(seconds, key=lambda name: seconds[name])
        return seconds[what], what


def fused_op(name: str) -> Any:
    (operator,) = [item.operator for item in onnx_fuse.fusions() if item.operator.name == name]
    return operator


def normed(torch: Any, z: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    return torch.nn.functional.layer_norm(z, z.shape[-1:], gamma, beta, epsilon)


def swish(torch: Any, x: Any, beta: float) -> Any:
    return x * torch.sigmoid(beta * x)


def skip_layer_norm(torch: Any, x: Any, skip: Any, bias: Any, gamma: Any, beta: Any, epsilon: float, **_: Any) -> Any:
    return normed(torch, x + bias + skip, gamma, beta, epsilon)


def embed_layer_norm(torch: Any, ids_1: Any, table_1: Any, ids_2: Any, table_2: Any, **how: Any) -> Any:
    return normed(torch, table_1[ids_1] + table_2[ids_2], how["gamma"], how["beta"], how["epsilon"])


def fm(torch: Any, E: Any, **_: Any) -> Any:  # the operator's name
    return 0.5 * (E.sum(1) ** 2 - (E * E).sum(1))


def interaction(torch: Any, E: Any, **_: Any) -> Any:
    count = E.shape[1]
    rows, columns = torch.tril_indices(count, count, -1, device=E.device)
    return torch.cat([E[:, 0], torch.bmm(E, E.transpose(1, 2))[:, rows, columns]], 1)


def linear_layer_norm(
    torch: Any, x: Any, weight: Any, bias: Any, gamma: Any, beta: Any, epsilon: float, **_: Any
) -> Any:
    return normed(torch, x @ weight + bias, gamma, beta, epsilon)


def heads(x: Any, count: int) -> Any:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def hstu(torch: Any, q: Any, k: Any, v: Any, num_heads: int, alpha: float, **_: Any) -> Any:
    length = q.shape[1]
    scores = torch.nn.functional.silu(alpha * heads(q, num_heads) @ heads(k, num_heads).transpose(2, 3))
    lower = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    weights = torch.where(lower, scores, 0.0) / length
    return (weights.to(v.dtype) @ heads(v, num_heads)).transpose(1, 2).flatten(2)


def attention(torch: Any, query: Any, key: Any, value: Any, num_heads: int, scale: float, **how: Any) -> Any:
    q, k, v = (heads(item, num_heads) for item in (query, key, value))
    weights = torch.softmax(scale * q @ k.transpose(2, 3), -1)
    return rim(torch, weights @ v, **how)


def fast_attention(torch: Any, query: Any, key: Any, value: Any, num_heads: int, scale: float, **how: Any) -> Any:
    q, k, v = (heads(item, num_heads) for item in (query, key, value))
    return rim(torch, torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale), **how)


def rim(torch: Any, context: Any, out_weight: Any, out_bias: Any, residual: Any, **how: Any) -> Any:
    z = context.transpose(1, 2).flatten(2) @ out_weight + out_bias + residual
    return normed(torch, z, how["gamma"], how["beta"], how["epsilon"])


def sequence_fusion(torch: Any, x: Any, level_embeddings: Any, temperature: float, **_: Any) -> Any:
    mixed = torch.softmax(x @ level_embeddings.T / temperature, -1) @ level_embeddings
    gate = torch.sigmoid((mixed * x).sum(-1, keepdim=True) / x.shape[-1])
    return gate * mixed + (1 - gate) * x


def sequence_interaction(torch: Any, items: Any, user: Any, short_window: int, decay: float, **_: Any) -> Any:
    length = items.shape[1]
    steps = torch.arange(length, device=items.device, dtype=torch.float32)
    later = length - steps
    recent = (later <= short_window).float()
    short = recent * (1 + 0.1 * (recent.sum() - later))
    long = 0.5 + 0.5 * torch.exp(-0.1 * (length - 1 - steps))
    distance = steps - steps[:, None]
    near = torch.where(distance > 0, torch.exp(-decay * distance), 0.0).to(items.dtype)
    return (
        (items @ user[:, :, None])[:, :, 0],
        short.to(items.dtype) @ items,
        long.to(items.dtype) @ items,
        (items @ items.transpose(1, 2)) * near,
    )


def hstu_case(batch: int, length: int, count: int, size: int) -> Case:
    settings = {"norm_length": 0.0, "bias_order": "outside_alpha", "norm": "none", "gate_activation": "none"}
    return Case(
        "HSTUHierarchicalAttention",
        {"B": batch, "S": length, "heads": count, "W": count * size},
        dict.fromkeys(("q", "k", "v"), ("B", "S", "W")),
        {
            "num_heads": count,
            "alpha": size**-0.5,
            "causal": 1,
            "epsilon": 1e-6,
            "mode": "silu",
            "num_levels": 1,
            "decay": 1.0,
            **settings,
        },
        hstu,
        {"y": ("B", "S", "W")},
        lambda n: 4 * n["B"] * n["W"] * n["S"] * (n["S"] + 1) / 2,
    )


HSTU = (
    # Batch, length, heads, and the size of one: the ends and the middle first.
    *((64, 512, 4, 64), (1, 512, 4, 64), (8, 4096, 4, 64), (128, 128, 4, 64), (1, 4096, 4, 64), (8, 2048, 4, 128)),
    *((1, 128, 4, 64), (128, 512, 4, 64), (16, 2048, 4, 64), (16, 512, 4, 64), (256, 200, 4, 64), (1, 2048, 4, 64)),
    *((16, 128, 4, 64), (4, 4096, 4, 128), (16, 1024, 8, 32), (4, 1024, 2, 256)),
)


def attention_case(batch: int, length: int, count: int, size: int) -> Case:
    rows, vector = ("B", "S", "W"), ("W",)
    return Case(
        "FusedAttentionLayerNorm",
        {"B": batch, "S": length, "heads": count, "W": count * size},
        {
            "query": rows,
            "key": rows,
            "value": rows,
            "out_weight": ("W", "W"),
            "out_bias": vector,
            "residual": rows,
            "gamma": vector,
            "beta": vector,
        },
        {
            "num_heads": count,
            "num_key_value_heads": count,
            "scale": size**-0.5,
            "mask_value": -10000.0,
            "causal": "none",
            "masked_row": "uniform",
            "norm": "layer",
            "epsilon": 1e-5,
            "layout": "BSH",
        },
        attention,
        {"output": rows},
        lambda n: 4 * n["B"] * n["W"] * n["S"] ** 2 + 2 * n["B"] * n["S"] * n["W"] ** 2,
        fast=fast_attention,
    )


def row_cases() -> list[Case]:
    norm = {"norm": "layer", "epsilon": 1e-5}
    rows, vector = ("R", "W"), ("W",)
    return [
        Case("FusedSwish", {"R": 8192, "W": 4096}, {"x": rows}, {"beta": 1.5}, swish, {"output": rows}),
        *(
            Case(
                "FusedSkipLayerNorm",
                {"R": count, "W": width},
                {"x": rows, "skip": rows, "bias": vector, "gamma": vector, "beta": vector},
                norm,
                skip_layer_norm,
                {"output": rows},
            )
            for count, width in ((32768, 256), (32768, 768), (8192, 4096), (64, 1024))
        ),
        Case(
            "FusedEmbedLayerNorm",
            {"B": 64, "S": 512, "W": 768, "V": 30522},
            {"ids_1": ("B", "S"), "table_1": ("V", "W"), "ids_2": (1, "S"), "table_2": (512, "W"), "gamma": vector, "beta": vector},
            {"num_tables": 2, **norm},
            embed_layer_norm,
            {"output": ("B", "S", "W")},
            gathered={"table_1": lambda n: n["B"] * n["S"], "table_2": lambda n: n["S"]},
        ),
        *(
            Case(
                "FusedLinearLayerNorm",
                {"R": 16384, "K": 1024, "W": width},
                {"x": ("R", "K"), "weight": ("K", "W"), "bias": vector, "gamma": vector, "beta": vector},
                norm,
                linear_layer_norm,
                {"output": rows},
                lambda n: 2 * n["R"] * n["K"] * n["W"],
            )
            for width in (512, 1024)
        ),
    ]  # fmt: skip


def sequence_cases() -> list[Case]:
    return [
        Case(
            "HierarchicalSequenceFusion",
            {"B": 128, "S": 512, "W": 256, "levels": 16},
            {"x": ("B", "S", "W"), "level_embeddings": ("levels", "W")},
            {"temperature": 2.0, "windows": [1], "window_weights": [0.0], "pad": "truncate"},
            sequence_fusion,
            {"y": ("B", "S", "W")},
            lambda n: 4 * n["B"] * n["S"] * n["W"] * n["levels"],
        ),
        Case(
            "SequenceRecommendationInteraction",
            {"B": 512, "S": 200, "W": 64},
            {"items": ("B", "S", "W"), "user": ("B", "W")},
            {"short_window": 10, "decay": 0.1, "normalize": 0},
            sequence_interaction,
            {"scores": ("B", "S"), "short_term": ("B", "W"), "long_term": ("B", "W"), "cooccurrence": ("B", "S", "S")},
            lambda n: 2 * n["B"] * n["S"] ** 2 * n["W"],
        ),
    ]


def interaction_cases() -> list[Case]:
    return [
        Case("FMInteraction", {"B": 16384, "F": 32, "W": 64}, {"E": ("B", "F", "W")}, {"reduce": 0}, fm, {"output": ("B", "W")}),
        *(
            Case(
                "InteractionTritonFast",
                {"B": batch, "F": 27, "W": 128, "out": 128 + 27 * 26 // 2},
                {"E": ("B", "F", "W")},
                {"triangle": "lower", "self_interaction": 0, "concat_dense": "first"},
                interaction,
                {"output": ("B", "out")},
                lambda n: n["B"] * n["F"] * (n["F"] - 1) * n["W"],
            )
            for batch in (4096, 32768)
        ),
    ]  # fmt: skip


CASES = [
    *(hstu_case(*at) for at in HSTU),
    *interaction_cases(),
    *(attention_case(*at) for at in ((128, 128, 8, 64), (32, 512, 12, 64), (4, 2048, 16, 64), (1, 512, 12, 64), (8, 1024, 8, 128))),
    *row_cases(),
    *sequence_cases(),
]  # fmt: skip
"""Those that tell most come first."""
