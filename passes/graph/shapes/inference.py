"""Element types, symbolic shapes and the contents of small integer tensors, worked out on demand, value by value.

ONNX's own shape inference gives every unknown dimension a new name and leaves `-1` in a Reshape target open, so that it cannot
tell that [B, S, -1, 16] made from [B, S, 64] has 4 heads. The rules (one file for each family of operators, joined in
`rules.py`) keep dimension names and do the arithmetic on them; operators without a rule fall back to ONNX's inference
(`fallback`), which runs at most once and only if it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, TypeProto

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.axes import MOST_AXES
from onnx_fuse.passes.graph.dims import Dim, Product, Shape
from onnx_fuse.passes.graph.node import Node

CONTENT_LIMIT = 64
"""Integer tensors of rank 0 or 1 with at most this many elements are followed element by element."""

Content = tuple["Dim | None", ...]

WHOLE_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE})
"""Float types that hold every size as it is: contents of theirs are followed where they are whole numbers."""
_LARGEST_FLOAT = 1 << 24
"""Up to here every whole number is one in float32."""

_LIMITS: dict[int, tuple[int, int]] = {
    TensorProto.BOOL: (0, 1),
    **{
        kind: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        for kind, dtype in (
            (TensorProto.INT8, np.int8),
            (TensorProto.INT16, np.int16),
            (TensorProto.INT32, np.int32),
            (TensorProto.INT64, np.int64),
            (TensorProto.UINT8, np.uint8),
            (TensorProto.UINT16, np.uint16),
            (TensorProto.UINT32, np.uint32),
            (TensorProto.UINT64, np.uint64),
        )
    },
}
"""Least and greatest number of each integer type."""


class Info(NamedTuple):
    """What is known of a value.

    Attributes:
        dtype: TensorProto.DataType, or 0 where unknown.
        shape: one `Dim` per axis, or None where the rank is unknown.
        content: the elements of a small integer tensor, None for each that is unknown; None where not followed.
    """

    dtype: int = 0
    shape: Shape | None = None
    content: Content | None = None


UNKNOWN = Info()

Rule = Callable[["Inference", Node], "Info | tuple[Info, ...] | None"]
"""What a node's outputs are: one `Info` for all of them, or one for each; None for what is not known."""


class Inference:
    """Works out and remembers `Info` for values.

    Args:
        rules: operator type, with the domain in front unless it is ONNX's -> its rule.
        definition: value -> the node that makes it, or None for inputs and constants.
        leaf: value -> what is known of a value that no node makes.
        fallback: value -> declared or ONNX-inferred type.
        attribute: (node, name) -> attribute value, with the schema's defaults.
        array: value -> array of a value that no node with inputs makes.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        definition: Callable[[str], Node | None],
        leaf: Callable[[str], Info],
        fallback: Callable[[str], Info],
        attribute: Callable[[Node, str], Any],
        array: Callable[[str], np.ndarray | None],
    ) -> None:
        self._rules = rules
        self._definition = definition
        self._leaf = leaf
        self._fallback = fallback
        self.attribute = attribute
        self.array = array
        self._memo: dict[str, Info] = {}
        self.equalities: dict[str, int] = {}

    def info(self, value: str) -> Info:
        """What is known of a value; computing it never recurses, so deep graphs are fine."""
        if not value:
            return UNKNOWN
        found = self._memo.get(value)
        if found is None:
            self._compute(value)
            found = self._memo[value]
        return self._substituted(value, found) if self.equalities else found

    def declare(self, value: str, info: Info) -> None:
        """Records what is known of a value for which there is no rule."""
        self._memo[value] = info

    def equate(self, dim: Dim, size: int) -> None:
        """Records that a symbol must have this size in every run that does not fail (a hard-coded Reshape says so)."""
        if isinstance(dim, Product) and len(dim.symbols) == 1 and dim.factor == 1:
            self.equalities[dim.symbols[0]] = size

    def _substituted(self, value: str, info: Info) -> Info:
        def swap(dim: Any) -> Any:
            if not isinstance(dim, Product) or not any(name in self.equalities for name in dim.symbols):
                return dim
            return d.multiply(
                dim.factor, d.product(self.equalities.get(name) or d.symbol(name) for name in dim.symbols)
            )

        shape = None if info.shape is None else tuple(swap(dim) for dim in info.shape)
        content = None if info.content is None else tuple(swap(dim) for dim in info.content)
        if shape != info.shape or content != info.content:
            info = Info(info.dtype, shape, content)
            self._memo[value] = info
        return info

    def _compute(self, value: str) -> None:
        memo = self._memo
        stack = [value]
        active: set[str] = set()
        while stack:
            name = stack[-1]
            if name in memo:
                stack.pop()
                continue
            node = self._definition(name)
            if node is None:
                memo[name] = self._leaf(name)
                continue
            rule = self._rules.get(node.qualified)
            if rule is None:
                for output in node.outputs:
                    memo[output] = self._fallback(output)
                continue
            missing = []
            for item in node.inputs:
                if item and item not in memo:
                    if self._definition(item) is None:
                        memo[item] = self._leaf(item)
                    else:
                        missing.append(item)
            if missing and name not in active:
                active.add(name)
                stack.extend(missing)
                continue
            for item in missing:  # only a cyclic graph gets here
                memo[item] = UNKNOWN
            self._store(node, rule)

    def _store(self, node: Node, rule: Rule) -> None:
        try:
            result = rule(self, node)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            # A malformed node, or an attribute known only when a function is called: nothing can be said.
            result = None
        if isinstance(result, Info):
            if result.shape is not None and len(result.shape) > MOST_AXES:
                result = Info(result.dtype)
            if result.content is None and result.shape is not None and result.dtype and "" not in node.outputs:
                self._memo.update(dict.fromkeys(node.outputs, result))
                return
            result = (result,) * len(node.outputs)
        infos = result or ()
        for number, output in enumerate(node.outputs):
            if not output:
                continue
            info = infos[number] if number < len(infos) else None
            if info is not None and info.shape is not None and len(info.shape) > MOST_AXES:
                info = Info(info.dtype)
            if info is not None and info.content is not None:
                info = Info(info.dtype, info.shape, _held(info))
            if info is None or info.shape is None or not info.dtype:
                declared = self._fallback(output)
                info = info or UNKNOWN
                shape = info.shape if info.shape is not None else declared.shape
                info = Info(info.dtype or declared.dtype, shape, info.content)
            self._memo[output] = info

    def fresh(self, node: Node, axis: int, output: int = 0) -> Dim:
        """A dimension of which only its identity is known (the declared one, where there is one)."""
        value = node.outputs[output]
        declared = self._fallback(value).shape
        if declared is not None and axis < len(declared):
            return declared[axis]
        return d.symbol(f"{value}#{axis}")

    def named(self, node: Node, dims: Sequence[Dim | None] | None) -> Shape | None:
        """A shape for the node's first output, unknown dimensions being `fresh`; None where the rank is unknown."""
        if dims is None:
            return None
        if isinstance(dims, tuple) and None not in dims:
            return dims  # the same object for all values of a shape
        return tuple([self.fresh(node, axis) if dim is None else dim for axis, dim in enumerate(dims)])

    def shape(self, value: str) -> Shape | None:
        """Shape of a value, or None where its rank is unknown."""
        return self.info(value).shape

    def content(self, value: str) -> Content | None:
        """Elements of a small integer tensor."""
        return self.info(value).content

    def integers(self, value: str) -> list[int] | None:
        """Elements of a small integer tensor where all of them are known numbers."""
        content = self.content(value)
        if content is None or not all(isinstance(item, int) for item in content):
            return None
        return [item for item in content if isinstance(item, int)]


def _held(info: Info) -> Content | None:
    """The content without the numbers that its type does not hold (ONNX wraps them); None where it does not fit the shape."""
    if info.content is None or (
        info.shape is not None and (len(info.shape) > 1 or math.prod(map(_size, info.shape)) != len(info.content))
    ):
        return None
    lowest, highest = _LIMITS.get(info.dtype, _LIMITS[TensorProto.INT64])
    return tuple(item if not isinstance(item, int) or lowest <= item <= highest else None for item in info.content)


def _size(dim: Dim) -> int:
    return dim if isinstance(dim, int) else -1


def held_as_float(content: Content) -> Content:
    """The content of a float tensor without 0, which may be -0, and without what float32 rounds."""
    return tuple(item if not isinstance(item, int) or 0 < abs(item) <= _LARGEST_FLOAT else None for item in content)


def whole_numbers(inference: Inference, value: str) -> Content | None:
    """The elements of a small tensor that are whole numbers; for a constant of floats too."""
    info = inference.info(value)
    if info.content is not None or info.dtype not in WHOLE_FLOATS or info.shape not in ((), (1,)):
        return info.content
    array = inference.array(value)
    number = None if array is None else float(array.reshape(-1)[0])
    if number is None or not number.is_integer() or abs(number) > _LARGEST_FLOAT:
        return None
    return (int(number),)


def array_info(array: np.ndarray, dtype: int) -> Info:
    """What a constant array tells."""
    content: Content | None = None
    if array.ndim <= 1 and array.size <= CONTENT_LIMIT and array.dtype.kind in "iub":
        content = tuple(int(item) for item in array.reshape(-1))
    return Info(dtype, tuple(array.shape), content)


def type_info(kind: TypeProto, value: str) -> Info:
    """What a declared type tells; an unnamed dimension is a symbol of its own."""
    tensor = kind.tensor_type
    if not kind.HasField("tensor_type"):
        return UNKNOWN
    if not tensor.HasField("shape"):
        return Info(tensor.elem_type, None)
    shape: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value"):
            shape.append(dim.dim_value)
        elif dim.dim_param:
            shape.append(d.symbol(dim.dim_param))
        else:
            shape.append(d.symbol(f"{value}#{axis}"))
    return Info(tensor.elem_type, tuple(shape))


def from_front(axis: int, rank: int) -> int:
    """An axis counted from the first one."""
    return axis + rank if axis < 0 else axis
