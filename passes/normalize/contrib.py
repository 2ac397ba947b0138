"""ONNX Runtime's own operators (domain com.microsoft) as the maths they are, for models that it has optimised already.

Each becomes the products, sums and norms an exporter would have written, so that one pattern serves both. What the kernels do
with masks was read off ONNX Runtime itself: a masked key adds `mask_filter_value` (-10000 unless said otherwise) to its scores,
so that a row without any key attends to all of them. `unidirectional` hides what lies after the diagonal from the upper left, but
never a key from the last query, which differs where there are more keys than queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.shapes.inference import Info
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import VIEW_DOMAIN

_MASK_FILTER = -10000.0
# Next to a mask value beyond this, any score is lost: what else is added to it, and when, makes no difference.
_ABSORBS = 1e30


class _Maths:
    """Writes the view-only nodes that stand for one contrib node."""

    def __init__(self, view: View, node: Node) -> None:
        self.view, self.node = view, node

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        return self.view.add(op_type, inputs, attributes, like=self.node, covers=[self.node])

    def make(self, output: str, op_type: str, *inputs: str, **attributes: Any) -> None:
        """The same, as what makes a value of the original."""
        self.view.replace(output, op_type, inputs, attributes, like=self.node, covers=[self.node])

    def ints(self, *values: int) -> str:
        return self.view.array(np.array(values, dtype=np.int64), self.node.outputs[0])

    def number(self, value: float, like: str) -> str:
        """A scalar of the type of `like`."""
        kind = helper.tensor_dtype_to_np_dtype(self.view.dtype(like) or TensorProto.FLOAT)
        return self.view.array(np.array(value, dtype=kind), self.node.outputs[0])

    def part(self, value: str, axis: int, start: int, end: int) -> str:
        """value[start:end] along an axis."""
        return self("Slice", value, self.ints(start), self.ints(end), self.ints(axis))


def _input(node: Node, index: int) -> str:
    return node.inputs[index] if index < len(node.inputs) else ""


def _number(node: Node, name: str, default: float) -> float:
    found = node.attribute(name)
    return default if found is None else float(found)


def _read(view: View, node: Node, outputs: Sequence[int]) -> bool:
    """Whether any of these outputs of the node is read."""
    names = [node.outputs[index] for index in outputs if index < len(node.outputs)]
    return any(map(view.is_read, names))


# -- attention ---------------------------------------------------------------------------------------------------------


def packed_attention(view: View, node: Node) -> bool:
    """Attention(x, W [K, q+k+v], b, mask): attention of the three parts of x W + b."""
    problem = _beyond(view, node, (4, 6), _input(node, 3), _input(node, 5), node.inputs[0])
    if problem is None and node.attribute("do_rotary"):
        problem = "it rotates query and key"
    if problem is None and _read(view, node, (1,)):
        problem = "its present keys and values are read"
    shape, heads = view.shape(_input(node, 1)), node.attribute("num_heads")
    whole = shape[-1] if shape else None
    sizes = node.attribute("qkv_hidden_sizes") or ([whole // 3] * 3 if isinstance(whole, int) else [])
    if problem is None and (len(sizes) != 3 or not heads or any(size % heads for size in sizes)):
        problem = "its head sizes are unknown"
    bias = "" if problem else _score_bias(view, node, _input(node, 3), _input(node, 5), node.inputs[0], node.inputs[0])
    if problem is not None or bias is None:
        view.refusals.append((node, problem or _mask_problem(view, _input(node, 3))))
        return False
    op = _Maths(view, node)
    product = op("MatMul", node.inputs[0], node.inputs[1])
    if _input(node, 2):
        product = op("Add", product, node.inputs[2])
    ends = [sum(sizes[: number + 1]) for number in range(3)]
    query, key, value = (op.part(product, -1, end - size, end) for size, end in zip(sizes, ends, strict=True))
    _attend(op, (query, key, value), heads, [size // heads for size in sizes], bias)
    return True


def multi_head_attention(view: View, node: Node) -> bool:
    """MultiHeadAttention(q, k, v, b, mask, attention_bias): attention of q, k and v, each plus its part of b."""
    problem = _beyond(view, node, (6, 7, 8, 9), _input(node, 4), _input(node, 5), _input(node, 1))
    if problem is None and _read(view, node, (1, 2, 3)):
        problem = "its further outputs are read, and its first alone can be made"
    operands = [_input(node, index) for index in range(3)]
    widths = [(view.shape(value) or (None,))[-1] for value in operands]
    heads = node.attribute("num_heads")
    if problem is None and any(not value or view.rank(value) != 3 for value in operands):
        problem = "its query, key and value are not [batch, sequence, hidden] each"
    if problem is None and (not heads or not all(isinstance(size, int) and size % heads == 0 for size in widths)):
        problem = "its head sizes are unknown"
    bias = "" if problem else _score_bias(view, node, _input(node, 4), _input(node, 5), operands[0], operands[1])
    if problem is not None or bias is None:
        view.refusals.append((node, problem or _mask_problem(view, _input(node, 4))))
        return False
    op = _Maths(view, node)
    sizes = [size for size in widths if isinstance(size, int)]
    if _input(node, 3):
        ends = [sum(sizes[: number + 1]) for number in range(3)]
        parts = [op.part(node.inputs[3], 0, end - size, end) for size, end in zip(sizes, ends, strict=True)]
        operands = [op("Add", value, part) for value, part in zip(operands, parts, strict=True)]
    _attend(op, operands, heads, [size // heads for size in sizes], bias)
    return True


def _beyond(view: View, node: Node, past: Sequence[int], mask: str, bias: str, keys: str) -> str | None:
    """What of the node no fused operator does; None for nothing."""
    if any(_input(node, index) for index in past):
        return "it has a key-value cache, which no fused operator has"
    value = _number(node, "mask_filter_value", _MASK_FILTER)
    if mask and bias and abs(value) < _ABSORBS:
        # (score + bias) + mask and score + (bias + mask) differ by their rounding in rows where no key counts.
        return f"it adds {value:g} for the mask {mask} and then the bias {bias}, a fused operator takes one of the two"
    shape, whole = view.shape(node.inputs[0]), view.shape(keys)
    if node.attribute("unidirectional") and (shape is None or whole is None or shape[1:2] != whole[1:2]):
        return "it is causal, and its queries and keys are not equally many"
    return None


def _attend(op: _Maths, operands: Sequence[str], heads: int, sizes: Sequence[int], bias: str) -> None:
    """softmax(scale q k^T + bias) v, of operands [B, S, h*d], their heads of these sizes side by side."""
    view, node = op.view, op.node
    query, key, value = (
        op("Transpose", op("Reshape", item, op.ints(0, 0, heads, size)), perm=[0, 2, 1, 3])
        for item, size in zip(operands, sizes, strict=True)
    )
    scores = op("MatMul", query, op("Transpose", key, perm=[0, 1, 3, 2]))
    scale = _number(node, "scale", 0.0) or 1.0 / math.sqrt(sizes[0])
    scores = op("Mul", scores, op.number(scale, node.inputs[0]))
    if bias:
        scores = op("Add", scores, bias)
    if node.attribute("unidirectional"):
        info = view.info(scores)
        scores = view.add("Causal", [scores], {"causal": "upper_left"}, like=node, covers=[node], domain=VIEW_DOMAIN)
        view.declare(scores, Info(info.dtype, info.shape))
    context = op("MatMul", op("Softmax", scores, axis=-1), value)
    op.make(node.outputs[0], "Reshape", op("Transpose", context, perm=[0, 2, 1, 3]), op.ints(0, 0, heads * sizes[2]))


def _score_bias(view: View, node: Node, mask: str, attention_bias: str, query: str, keys: str) -> str | None:
    """What is added to the scores: "" for nothing, None where the mask is of a kind that is not read."""
    if not mask:
        return attention_bias
    value = _number(node, "mask_filter_value", _MASK_FILTER)
    # Layers share their mask: so do they what is made of it.
    key = ("contrib mask", view.resolve(mask), value, view.dtype(query))
    made = view.shared.get(key) or _mask_bias(view, node, mask, value, query, keys)
    if made is None:
        return None
    view.shared[key] = made
    return _Maths(view, node)("Add", made, attention_bias) if attention_bias else made


def _mask_bias(view: View, node: Node, mask: str, value: float, query: str, keys: str) -> str | None:
    """0 where a key counts and the mask's value where it does not: [B, 1, 1 or Sq, Sk].

    A mask with one axis has the number of keys that count in each sequence.
    """
    shape, whole = view.shape(mask), view.shape(keys)
    if shape is None or whole is None or len(shape) not in (1, 2, 3):
        return None
    if (len(shape) == 1 and shape[0] != whole[0]) or (len(shape) == 3 and node.attribute("unidirectional")):
        return None
    op = _Maths(view, node)
    dtype = view.dtype(mask) or TensorProto.INT32
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    if len(shape) == 1:
        length = op("Squeeze", op.part(op("Shape", keys), 0, 1, 2), op.ints(0))
        first, step = (view.array(np.array(number, dtype=np.int64), node.outputs[0]) for number in (0, 1))
        mask = op("Less", op("Cast", op("Range", first, length, step), to=dtype), op("Unsqueeze", mask, op.ints(1)))
    elif dtype != TensorProto.BOOL:
        mask = op("Greater", mask, view.array(np.array(0, dtype=kind), node.outputs[0]))
    bias = op("Where", mask, op.number(0.0, query), op.number(value, query))
    return op("Unsqueeze", bias, op.ints(*((1,) if len(shape) == 3 else (1, 2))))


def _mask_problem(view: View, mask: str) -> str:
    shape = view.shape(mask)
    found = "an unknown shape" if shape is None else f"shape [{', '.join(map(str, shape))}]"
    return f"its mask {mask} has {found}; only 0 and 1 for each key, [batch, keys], and lengths, [batch], are read"


def _refusal(reason: str) -> Callable[[View, Node], bool]:
    def unread_attention(view: View, node: Node) -> bool:
        """An attention operator that stays as it is, with the reason."""
        view.refusals.append((node, f"{node.op_type} of {node.domain} {reason}"))
        return False

    return unread_attention


# -- norms -------------------------------------------------------------------------------------------------------------


def skip_layer_norm(view: View, node: Node) -> bool:
    """SkipLayerNormalization: norm(input + skip + bias), and that sum as a fourth output."""
    if _read(view, node, (1, 2)):
        return False
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    gamma, beta = _input(node, 2), "" if simplified else _input(node, 3)
    bias = _input(node, 3 if simplified else 4)
    first, skip = node.inputs[:2]
    op = _Maths(view, node)
    if bias:
        # The bias is that of the linear layer before it, on whichever side that stands.
        if _is_product(view, skip) and not _is_product(view, first):
            first, skip = skip, first
        first = op("Add", first, bias)
    if len(node.outputs) > 3 and node.outputs[3]:
        total = node.outputs[3]
        op.make(total, "Add", first, skip)
    else:
        total = op("Add", first, skip)
    inputs = [name for name in (total, gamma, beta) if name]
    norm = "RMSNormalization" if simplified else "LayerNormalization"
    op.make(node.outputs[0], norm, *inputs, axis=-1, epsilon=_number(node, "epsilon", 1e-12))
    return True


def _is_product(view: View, value: str) -> bool:
    """Whether a value is a linear layer without its bias, moved or not."""
    producer = view.producer(value)
    for _ in range(4):
        if producer is None or producer.domain != "" or producer.op_type not in ("Reshape", "Transpose", "Cast"):
            break
        producer = view.producer(producer.inputs[0])
    return producer is not None and producer.key == ("", "MatMul")


def simplified_layer_norm(view: View, node: Node) -> bool:
    """SimplifiedLayerNormalization is RMSNormalization."""
    rank, axis = view.rank(node.inputs[0]), node.attribute("axis")
    if _read(view, node, (1,)) or axis not in (None, -1, None if rank is None else rank - 1):
        return False
    epsilon = _number(node, "epsilon", 1e-5)
    _Maths(view, node).make(node.outputs[0], "RMSNormalization", *node.inputs[:2], axis=-1, epsilon=epsilon)
    return True


def embed_layer_norm(view: View, node: Node) -> bool:
    """EmbedLayerNormalization: norm(words[ids] + positions[position_ids or 0, 1, ...] + segments[segment_ids])."""
    ids, segments = node.inputs[:2]
    if view.rank(ids) != 2 or not _input(node, 6):
        return False
    op = _Maths(view, node)
    positions = _input(node, 8)
    if not positions:
        length = op("Squeeze", op.part(op("Shape", ids), 0, 1, 2), op.ints(0))
        first, step = (view.array(np.array(number, dtype=np.int64), node.outputs[0]) for number in (0, 1))
        positions = op("Unsqueeze", op("Range", first, length, step), op.ints(0))
    terms = [op("Gather", node.inputs[2], ids, axis=0), op("Gather", node.inputs[3], positions, axis=0)]
    if segments:
        terms.append(op("Gather", node.inputs[4], segments, axis=0))
    total = op("Add", terms[0], terms[1]) if segments else terms[0]
    if len(node.outputs) > 2 and node.outputs[2]:
        op.make(node.outputs[2], "Add", total, terms[-1])
        total = node.outputs[2]
    else:
        total = op("Add", total, terms[-1])
    epsilon = _number(node, "epsilon", 1e-12)
    op.make(node.outputs[0], "LayerNormalization", total, *node.inputs[5:7], axis=-1, epsilon=epsilon)
    return True


# -- products and activations ------------------------------------------------------------------------------------------


def fused_matmul(view: View, node: Node) -> bool:
    """FusedMatMul: alpha a b, either of them transposed in its last two axes."""
    if node.attribute("transBatchA") or node.attribute("transBatchB"):
        return False
    turned = [bool(node.attribute(name)) for name in ("transA", "transB")]
    ranks = [view.rank(value) for value in node.inputs]
    if any(turn and rank is None for turn, rank in zip(turned, ranks, strict=True)):
        return False
    op = _Maths(view, node)
    operands = []
    for value, turn, rank in zip(node.inputs, turned, ranks, strict=True):
        # One axis has nothing to turn.
        if turn and rank is not None and rank > 1:
            value = op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])
        operands.append(value)
    alpha = _number(node, "alpha", 1.0)
    if alpha == 1.0:
        op.make(node.outputs[0], "MatMul", *operands)
    else:
        op.make(node.outputs[0], "Mul", op("MatMul", *operands), op.number(alpha, node.inputs[0]))
    return True


def activation(view: View, node: Node) -> bool:
    """Gelu and FastGelu (its tanh form), of x + bias where there is one; QuickGelu is x sigmoid(alpha x)."""
    op = _Maths(view, node)
    value = op("Add", *node.inputs) if _input(node, 1) else node.inputs[0]
    if node.op_type == "QuickGelu":
        op.make(node.outputs[0], "Swish", value, alpha=_number(node, "alpha", 1.702))
    else:
        form = "tanh" if node.op_type == "FastGelu" else "none"
        op.make(node.outputs[0], "Gelu", value, approximate=form)
    return True


_CACHED = _refusal("works on a key-value cache, which no fused operator has")
_PACKED = _refusal("works on sequences packed without padding, which no fused operator does")
_SPARSE = _refusal("does not attend to all keys by one softmax of scaled products, so it is not read as attention")
_QUANTIZED = _refusal("computes in int8; a quantisation is never dropped")

RULES: dict[str, tuple[Callable[[View, Node], bool], ...]] = {
    "SimplifiedLayerNormalization": (simplified_layer_norm,),
    "com.microsoft.SimplifiedLayerNormalization": (simplified_layer_norm,),
    "com.microsoft.Attention": (packed_attention,),
    "com.microsoft.MultiHeadAttention": (multi_head_attention,),
    "com.microsoft.SkipLayerNormalization": (skip_layer_norm,),
    "com.microsoft.SkipSimplifiedLayerNormalization": (skip_layer_norm,),
    "com.microsoft.EmbedLayerNormalization": (embed_layer_norm,),
    "com.microsoft.FusedMatMul": (fused_matmul,),
    **{f"com.microsoft.{name}": (activation,) for name in ("Gelu", "BiasGelu", "FastGelu", "QuickGelu")},
    **{
        f"com.microsoft.{name}": (_CACHED,)
        for name in (
            "DecoderAttention",
            "DecoderMaskedMultiHeadAttention",
            "DecoderMaskedSelfAttention",
            "GroupQueryAttention",
            "PagedAttention",
            "SparsePagedAttention",
        )
    },
    **{f"com.microsoft.{name}": (_PACKED,) for name in ("PackedAttention", "PackedMultiHeadAttention")},
    **{
        f"com.microsoft.{name}": (_SPARSE,)
        for name in (
            "DisentangledAttention_TRT",
            "DynamicSparseAttention",
            "LinearAttention",
            "LongformerAttention",
            "SparseAttention",
        )
    },
    **{
        f"com.microsoft.{name}": (_QUANTIZED,)
        for name in ("QAttention", "QLinearSoftmax", "QOrderedAttention", "QOrderedLongformerAttention")
    },
}
"""By operator, its domain in front unless it is ONNX's."""
