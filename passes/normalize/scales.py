"""Rules on scalar factors: one Mul, after the product or move it stood before, so that a scale is in one place."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.split_heads import weighs_values
from onnx_fuse.passes.view.rule import reads
from onnx_fuse.passes.view.view import View

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})


def drop_one(view: View, node: Node) -> bool:
    """x / 1 and x * 1 are x: an output scale that was left at 1."""
    places = ((0, 1),) if node.op_type == "Div" else ((0, 1), (1, 0))
    for value, one in ((node.inputs[index], node.inputs[other]) for index, other in places):
        maker = view.producer(one)
        if maker is not None and maker.key != ("", "Constant"):
            continue  # it would have to be computed first
        if view.scalar(one) == 1.0 and view.dtype(one) in _FLOATS and _keeps_shape(view, value, one):
            view.alias(node.outputs[0], value)
            return True
    return False


def multiply_by_reciprocal(view: View, node: Node) -> bool:
    """x / c is x * (1/c) for a constant float c with one element."""
    divisor = view.scalar(node.inputs[1])
    if not divisor or view.scalar(node.inputs[0]) is not None:
        return False
    dtype = view.dtype(node.inputs[1]) or view.dtype(node.inputs[0])
    if dtype not in _FLOATS or not _keeps_shape(view, node.inputs[0], node.inputs[1]):
        return False
    factor = scalar_like(view, 1.0 / divisor, dtype, node)
    if factor is None:
        return False
    view.replace(node.outputs[0], "Mul", [node.inputs[0], factor], like=node, covers=[node])
    return True


@reads("Mul")
def merge_scales(view: View, node: Node) -> bool:
    """(x * c1) * c2 is x * (c1 * c2)."""
    outer = scaled(view, node)
    if outer is None:
        return False
    inner_node = view.producer(outer[0])
    inner = scaled(view, inner_node)
    if inner is None or inner_node is None:
        return False
    factor = scalar_like(view, inner[1] * outer[1], view.dtype(node.outputs[0]), node)
    if factor is None:
        return False
    view.replace(node.outputs[0], "Mul", [inner[0], factor], like=node, covers=[inner_node, node])
    return True


@reads("Mul")
def scale_after_move(view: View, node: Node) -> bool:
    """move(x * c) is move(x) * c; so it is for a Cast."""
    factor_node = view.producer(node.inputs[0])
    found = scaled(view, factor_node)
    if found is None or factor_node is None:
        return False
    factor = scalar_like(view, found[1], view.dtype(node.outputs[0]), node)
    if factor is None:
        return False
    attributes = {item.name: helper.get_attribute_value(item) for item in node.proto.attribute}
    moved = view.add(node.op_type, [found[0], *node.inputs[1:]], attributes, like=node, covers=[node])
    view.replace(node.outputs[0], "Mul", [moved, factor], like=node, covers=[factor_node])
    return True


@reads("Mul")
def scale_after_matmul(view: View, node: Node) -> bool:
    """(a * c) b and a (b * c) are (a b) * c; weights are left alone."""
    inputs = list(view.inputs(node))
    if any(view.is_constant(value) for value in inputs):
        return False
    factor, covers = 1.0, []
    for index, value in enumerate(inputs):
        producer = view.producer(value)
        found = scaled(view, producer)
        if found is not None and producer is not None:
            inputs[index] = found[0]
            factor *= found[1]
            covers.append(producer)
    scale = scalar_like(view, factor, view.dtype(node.outputs[0]), node) if covers else None
    if scale is None:
        return False
    product = view.add("MatMul", inputs, like=node, covers=[node])
    # What others read as well stays for them, as DeBERTa's query does for the scores of positions.
    own = [maker for maker in covers if len(view.graph.readers.get(maker.outputs[0], ())) < 2]
    view.replace(node.outputs[0], "Mul", [product, scale], like=node, covers=[node, *own])
    return True


@reads("Add", "MatMul")
def scale_into_projection(view: View, node: Node) -> bool:
    """(heads W + b) * c is heads (W * c) + b * c, for constants: a residual that is weighed."""
    found = scaled(view, node)
    inner = None if found is None else view.producer(found[0])
    if found is None or inner is None:
        return False
    product, bias = inner, ""
    if inner.key == ("", "Add"):
        made = [view.producer(value) for value in inner.inputs]
        place = next((place for place, maker in enumerate(made) if maker and maker.key == ("", "MatMul")), None)
        if place is None:
            return False
        product, bias = made[place] or inner, inner.inputs[1 - place]
    if product.key != ("", "MatMul") or not _merges_heads(view, product.inputs[0]):
        return False
    weight = product.inputs[1]
    vectors = [weight, bias] if bias else [weight]
    if view.rank(weight) != 2 or (bias and view.rank(bias) != 1) or not all(map(view.is_constant, vectors)):
        return False
    factor = scalar_like(view, found[1], view.dtype(node.outputs[0]), node)
    if factor is None:
        return False
    weighed = [view.add("Mul", [vector, factor], like=node, covers=[node]) for vector in vectors]
    covers = list({id(item): item for item in (product, inner, node)}.values())
    if not bias:
        view.replace(node.outputs[0], "MatMul", [product.inputs[0], weighed[0]], like=node, covers=covers)
        return True
    projected = view.add("MatMul", [product.inputs[0], weighed[0]], like=node, covers=[product])
    view.replace(node.outputs[0], "Add", [projected, weighed[1]], like=node, covers=covers)
    return True


def _merges_heads(view: View, value: str) -> bool:
    """Whether a value is attention's [B, h, S, d] turned and merged to [B, S, h*d]."""
    merge = view.producer(value)
    turn = None if merge is None or merge.key != ("", "Reshape") else view.producer(merge.inputs[0])
    return turn is not None and turn.key == ("", "Transpose") and weighs_values(view, turn.inputs[0])


def scaled(view: View, node: Node | None) -> tuple[str, float] | None:
    """(x, c) where the node is x * c with a constant float c of one element that does not change the shape."""
    if node is None or node.key != ("", "Mul"):
        return None
    for index in (1, 0):
        factor = view.scalar(node.inputs[index])
        other = node.inputs[1 - index]
        if factor is None or view.scalar(other) is not None:
            continue
        if view.dtype(node.inputs[index]) in _FLOATS and _keeps_shape(view, other, node.inputs[index]):
            return view.resolve(other), factor
    return None


def _keeps_shape(view: View, value: str, factor: str) -> bool:
    factor_rank = view.rank(factor)
    if factor_rank == 0:
        return True
    rank = view.rank(value)
    return rank is not None and factor_rank is not None and factor_rank <= rank


def scalar_like(view: View, number: float, dtype: int, node: Node) -> str | None:
    """The number as a constant; None where the type has no number like it (3.4e38 is no float16)."""
    dtype = dtype or TensorProto.FLOAT
    if dtype not in _FLOATS:
        return None
    with np.errstate(over="ignore", under="ignore"):
        array = np.array(number, dtype=helper.tensor_dtype_to_np_dtype(dtype))
    if not math.isclose(float(array), number, rel_tol=0.01):
        return None
    return view.array(array, node.outputs[0])
