"""Models of one block, for which plugins pay, or do not."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from tests import helpers


def attention(hidden: int = 256, heads: int = 4, *, dtype: int = TensorProto.FLOAT16) -> ModelProto:
    """Projections, softmax attention, output projection, residual sum and norm, with static hidden size."""
    name = {TensorProto.FLOAT16: "float16", TensorProto.FLOAT: "float"}[dtype]
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    random = np.random.default_rng(0)
    weights: dict[str, Any] = {
        f"w{item}": (random.standard_normal((hidden, hidden)) / hidden**0.5).astype(kind) for item in "qkvo"
    }
    weights |= {"split": np.array([0, 0, heads, hidden // heads]), "flat": np.array([0, 0, hidden])}
    weights |= {"root": np.array((hidden // heads) ** 0.5, kind)}
    weights |= {"gamma": np.ones(hidden, kind), "beta": np.zeros(hidden, kind)}
    split = "  ".join(
        f"{n}0 = MatMul(x, w{n})  {n}1 = Reshape({n}0, split)  {n}2 = Transpose <perm = {perm}> ({n}1)"
        for n, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
    )
    return helpers.model(
        f"""({name}[batch,length,{hidden}] x) => ({name}[batch,length,{hidden}] y) {{ {split}
        product = MatMul(q2, k2)  scaled = Div(product, root)  p = Softmax <axis = -1> (scaled)  context = MatMul(p, v2)
        moved = Transpose <perm = [0, 2, 1, 3]> (context)  merged = Reshape(moved, flat)
        projected = MatMul(merged, wo)  total = Add(projected, x)
        y = LayerNormalization <axis = -1, epsilon = 1e-05> (total, gamma, beta) }}""",
        weights=weights,
    )


def feed_forward() -> ModelProto:
    """A linear layer with x * sigmoid(x), the sum with x and a norm: what TensorRT chains by itself."""
    return helpers.model(
        """(float[batch,length,64] x) => (float[batch,length,64] y) { h = MatMul(x, w)  s = Sigmoid(h)  a = Mul(h, s)
        total = Add(a, x)  y = LayerNormalization <axis = -1, epsilon = 1e-05> (total, gamma, beta) }""",
        weights={
            "w": np.eye(64, dtype=np.float32) + 0.1,
            "gamma": np.ones(64, np.float32),
            "beta": np.zeros(64, np.float32),
        },
    )
