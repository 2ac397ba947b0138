"""An HSTU recommender as an exporter writes it: an ONNX graph in standard operators, made from a seed. No torch is needed.

The layers are those of the research code of "Actions Speak Louder than Words" (arXiv 2402.17152): norm(SiLU(q k^T + bias) v / N)
times the gate u, under a causal mask. examples/models/hstu.py has them in PyTorch. Shapes: B sequences, N positions, h heads of d.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, checker, numpy_helper, parser

OPSET = 17

_LAYER = """
    {p}normed = LayerNormalization<axis = -1, epsilon = 1e-6>({x}, ones_hidden, zeros_hidden)
    {p}projected = MatMul({p}normed, {p}uvqk)
    {p}opened = Sigmoid({p}projected)
    {p}active = Mul({p}projected, {p}opened)
    {p}u, {p}v, {p}q, {p}k = Split<axis = -1>({p}active, quarters)
    {p}q_split = Reshape({p}q, to_heads)
    {p}k_split = Reshape({p}k, to_heads)
    {p}v_split = Reshape({p}v, to_heads)
    {p}q_heads = Transpose<perm = [0, 2, 1, 3]>({p}q_split)
    {p}k_heads = Transpose<perm = [0, 2, 3, 1]>({p}k_split)
    {p}v_heads = Transpose<perm = [0, 2, 1, 3]>({p}v_split)
    {p}products = MatMul({p}q_heads, {p}k_heads)
    {p}scores = Add({p}products, {p}bias)
    {p}sigmoid = Sigmoid({p}scores)
    {p}silu = Mul({p}scores, {p}sigmoid)
    {p}divided = Div({p}silu, length)
    {p}weights = Mul({p}divided, causal)
    {p}attended = MatMul({p}weights, {p}v_heads)
    {p}moved = Transpose<perm = [0, 2, 1, 3]>({p}attended)
    {p}merged = Reshape({p}moved, to_width)
    {p}ready = LayerNormalization<axis = -1, epsilon = 1e-6>({p}merged, ones_width, zeros_width)
    {p}gated = Mul({p}u, {p}ready)"""
_OUT = """
    {p}out = MatMul({p}gated, {p}o)
    {p}y = Add({x}, {p}out)"""


def block(length: int, heads: int = 4, size: int = 64, seed: int = 0) -> ModelProto:
    """One layer from its input to the gate: x [B, N, h*d] -> y [B, N, h*d]. The bias is shared by the batch."""
    width = heads * size
    text = _LAYER.format(p="l0_", x="x").replace("l0_gated =", "y =")
    weights = _shared(length, heads, size, width) | _layer("l0_", length, width, width, np.random.default_rng(seed))
    weights.pop("l0_o")
    return _model(f"hstu_block (float[B, {length}, {width}] x) => (float[B, {length}, {width}] y) {{{text} }}", weights)


def recommender(
    items: int = 5000, length: int = 256, layers: int = 3, heads: int = 4, size: int = 64, seed: int = 0
) -> ModelProto:
    """Next-item recommendation: history int64 [B, N] of items (0 is padding) -> scores [B, items] of every item."""
    width, random = heads * size, np.random.default_rng(seed)
    weights = _shared(length, heads, size, width)
    weights["items"] = random.normal(0, 1, (items, width)).astype(np.float32)
    weights["positions"] = random.normal(0, 0.1, (length, width)).astype(np.float32)
    body, x = "\n    embedded = Gather(items, history)\n    x0 = Add(embedded, positions)", "x0"
    for layer in range(layers):
        p = f"l{layer}_"
        body += (_LAYER + _OUT).format(p=p, x=x)
        weights |= _layer(p, length, width, width, random)
        x = f"{p}y"
    weights["last_position"] = np.array(length - 1)
    body += f"""
    newest = Gather<axis = 1>({x}, last_position)
    normed = LayerNormalization<axis = -1, epsilon = 1e-6>(newest, ones_hidden, zeros_hidden)
    table = Transpose<perm = [1, 0]>(items)
    scores = MatMul(normed, table) """
    return _model(f"hstu (int64[B, {length}] history) => (float[B, {items}] scores) {{{body}}}", weights)


def histories(items: int, length: int, batch: int, seed: int = 0) -> np.ndarray:
    """Histories [batch, length] in which a few items come again and again."""
    random = np.random.default_rng(seed)
    liked = random.integers(1, items, (batch, 12))
    chosen = liked[np.arange(batch)[:, None], random.integers(0, 12, (batch, length))]
    return np.where(random.random((batch, length)) < 0.3, random.integers(1, items, (batch, length)), chosen)


def _shared(length: int, heads: int, size: int, hidden: int) -> dict[str, np.ndarray]:
    width = heads * size
    return {
        "ones_hidden": np.ones(hidden, np.float32),
        "zeros_hidden": np.zeros(hidden, np.float32),
        "ones_width": np.ones(width, np.float32),
        "zeros_width": np.zeros(width, np.float32),
        "quarters": np.full(4, width),
        "to_heads": np.array([0, 0, heads, size]),
        "to_width": np.array([0, 0, width]),
        "length": np.array(length, np.float32),
        "causal": np.tril(np.ones((length, length), np.float32)),
    }


def _layer(p: str, length: int, hidden: int, width: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    distances = random.normal(0, 0.1, 2 * length - 1).astype(np.float32)
    places = np.arange(length)
    return {
        f"{p}uvqk": random.normal(0, hidden**-0.5, (hidden, 4 * width)).astype(np.float32),
        f"{p}bias": distances[length - 1 + places[None, :] - places[:, None]][None, None],
        f"{p}o": random.normal(0, width**-0.5, (width, hidden)).astype(np.float32),
    }


def _model(text: str, weights: dict[str, np.ndarray]) -> ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {OPSET}]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    checker.check_model(model, full_check=True)
    return model
