"""Random inputs that a model can run on: shapes from its symbolic dimensions, ids within their table, masks that look like masks.

Three steps, usable apart: `input_specs` reads what a model takes, a `Draw` says which shapes and which kind of data, and
`draw_inputs` makes the arrays. The same specs, draw and seed give the same arrays.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnx_fuse.errors import ModelError
from onnx_fuse.passes.graph.inlining import MOST_INLINED, count_inlined
from onnx_fuse.patterns.language.operator import DOMAIN, type_name
from onnx_fuse.runtime.device.memory import available_bytes

Array = np.ndarray[Any, Any]
Dim = int | str
Shape = tuple[Dim | None, ...]

_UNKNOWN_ROWS = 2
_LARGEST_TIME = 100_000
_MOST_PERMUTED = 1 << 22
# Operators whose first input (or those listed) keeps its elements: what comes out holds the same ids.
_VIEWS: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Cast", "Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"), (0,)),
    **dict.fromkeys(("Slice", "Split", "Expand", "Tile", "Pad", "Gather", "GatherElements", "GatherND", "Clip"), (0,)),
    "Where": (1, 2),
    "Concat": None,  # None: all of them
    "Max": None,
    "Min": None,
}
_SAME_SHAPE = {"Cast", "Identity", "Dropout", "DequantizeLinear"}
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}
_PRODUCTS = frozenset({"MatMul", "Einsum"})
_FULL_RANGE = (TensorProto.UINT8, TensorProto.INT8)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class InputSpec:
    """What a model takes under one name.

    Attributes:
        name: name of the graph input.
        elem_type: `TensorProto.DataType` of its elements.
        dims: sizes; a dynamic dimension is its symbol ("name:axis" where the model gives none). None: rank not known.
        role: "ids" (indexes something), "mask" (0/1, 1 = keep), "padding" (0/1, 1 = leave out), "length", "time", else "data".
        rows: sizes of what an "ids" input indexes; the smallest bounds it. Empty: not known.
    """

    name: str
    elem_type: int
    dims: tuple[Dim, ...] | None
    role: str
    rows: tuple[Dim, ...] = ()


@dataclass(frozen=True)
class Draw:
    """Which shapes and which kind of data.

    Attributes:
        batch, length: numbers for batch-like symbols (first axes) and all the others.
        padding: where masks are 0: "none", "right", "left", "inner", or "row" (right, and the first row all 0).
        scale: standard deviation of floating-point data.
        equal: give all batch-like symbols one number, and all others one number; else each symbol has its own.
        narrow: keep ids to 0 and 1.
        ends: the ids of each other entry of the first axis are all those of the first row of their table, the others of the last.
        spread: give each row of floating-point data a magnitude of its own, over many orders.
        reach: magnitudes of floating-point data as parts of the orders that its type has, below 0 for numbers below 1; each entry
            of the first axis has one of them, in turn. Empty: `scale` counts.
        empty: the first length is 0.
        optional: that the original refuses it is no news.
    """

    batch: int
    length: int
    padding: str = "none"
    scale: float = 1.0
    equal: bool = False
    narrow: bool = False
    ends: bool = False
    spread: bool = False
    reach: tuple[float, ...] = ()
    empty: bool = False
    optional: bool = False


# Small data shows a wrong epsilon, large data a wrong softmax; numbers are chosen so that no two axes agree by accident.
DRAWS = (
    Draw(1, 7, "right"),
    Draw(3, 16, "left"),
    Draw(2, 33, "inner"),
    Draw(1, 1),
    Draw(17, 2, "none", 0.01),
    Draw(2, 9, "none", 3.0),
    Draw(3, 5, "row"),
)
# Between the magnitudes whose second, third and fourth powers leave the type, so that it is clear which of them a model
# forms; the most telling first. In float32 they are 1e16, 1e37, 1e11, 1e25, 1e6, 1e-15 and 1e-36.
REACH = (0.42, 0.96, 0.28, 0.65, 0.16, -0.4, -0.95)
# What a model may take, and is not asked for by most users: magnitudes from the smallest to the largest, nothing at all.
EXTREMES = (
    Draw(4, 6, "right", spread=True, optional=True),
    Draw(len(REACH), 3, "right", reach=REACH, optional=True),
    Draw(2, 3, ends=True, optional=True),
    Draw(3, 8, "right", empty=True, optional=True),
    Draw(0, 7, equal=True, optional=True),
    Draw(2, 0, equal=True, optional=True),
)
# The longest lengths to try: those on which a model is done in a moment, or in a part of the time that it takes for DRAWS.
LONG_LENGTHS = (2048, 1024, 512, 256, 128, 64)
_QUICK = 1.5e8
_PART = 0.35
# For each pair of positions that a product of two computed values makes: so many heads, times what is done to each of them.
_PER_PAIR = 32
_LARGEST = 512
# Magnitudes of the rows of spread data, as powers of 10. Beyond them products of four, whose squares a norm sums, overflow.
_SPREAD: dict[int, tuple[float, float]] = {TensorProto.FLOAT16: (-3.0, 1.0)}
_SPREAD_WIDE = (-4.0, 4.0)
_DRAWN_BYTES = 8
"""Of an element while it is drawn, whatever its type."""
# For models that take few sizes (patches, windows, strides): tried when nearly all of DRAWS were refused.
FALLBACK_LENGTHS = (8, 32, 64, 128, 224, 256, 384, 512)


def input_specs(model: ModelProto) -> tuple[InputSpec, ...]:
    """What `model` takes, in its order (initializers that are also inputs are not asked for).

    Raises:
        ModelError: an input is no tensor.
    """
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    dims = {value.name: _dims(value) for value in inputs}
    try:
        indexed = _indexed(model, dims) if count_inlined(model) <= MOST_INLINED else {}
    except (IndexError, RecursionError):  # malformed, or a function that calls itself: running it will say so
        indexed = {}
    return tuple(
        InputSpec(
            value.name,
            value.type.tensor_type.elem_type,
            dims[value.name],
            _role(value.name, value.type.tensor_type.elem_type, value.name in indexed),
            tuple(indexed.get(value.name, ())),
        )
        for value in inputs
    )


def draw_shapes(specs: Sequence[InputSpec], draw: Draw) -> dict[str, tuple[int, ...]]:
    """Input name -> shape: equal symbols get equal numbers, sums such as "past + sequence" follow from their parts.

    Inputs of unknown rank are left out.
    """
    sizes = _assign(specs, draw)
    known = {spec.name: spec.dims for spec in specs if spec.dims is not None}
    return {name: tuple(dim if isinstance(dim, int) else sizes[dim] for dim in dims) for name, dims in known.items()}


def draw_inputs(specs: Sequence[InputSpec], draw: Draw, seed: int | Sequence[int] = 0) -> dict[str, Array]:
    """Input name -> array for one draw, deterministic for a seed.

    Raises:
        ModelError: an input has no shape, or a type for which there is no random data (4 and 8 bit floats, complex); or the inputs
            take more memory than there is.
    """
    sizes = _assign(specs, draw)
    shapes = draw_shapes(specs, draw)
    for spec in specs:
        if spec.dims is None:
            raise ModelError(f"input {spec.name!r} has no shape in the model.", "Give inputs of your own.")
    needed, available = _DRAWN_BYTES * sum(map(math.prod, shapes.values())), available_bytes()
    if available is not None and needed > available:
        raise ModelError(
            f"random inputs of these shapes take about {needed / 1e9:.3g} GB of memory, {available / 1e9:.1f} GB is available.",
            "Choose smaller sizes; a size that the model itself fixes has to be changed there.",
        )
    longest = max((shape[1] for shape in shapes.values() if len(shape) > 1), default=draw.length)
    random = np.random.default_rng(seed)
    return {spec.name: _array(spec, shapes[spec.name], sizes, longest, draw, random) for spec in specs}


def extremes(specs: Sequence[InputSpec], *, nothing: bool) -> tuple[Draw, ...]:
    """Those of `EXTREMES` that mean something to a model; `nothing`: with empty inputs and lengths of 0."""
    lengths, floats = any(spec.role == "length" for spec in specs), has_floats(specs)
    columns = any(spec.role == "ids" and len(spec.dims or ()) > 1 for spec in specs)

    def means_something(draw: Draw) -> bool:
        if draw.ends:
            return columns
        if draw.spread or draw.reach:
            return floats
        return nothing and (lengths or not draw.empty)

    return tuple(filter(means_something, EXTREMES))


def long_lengths(model: ModelProto) -> tuple[int, ...]:
    """Lengths well above those of `DRAWS`, largest first, that cost little to run the model on, as its nodes and weights tell."""
    nodes, weights = model.graph.node, {tensor.name: tensor for tensor in model.graph.initializer}
    looked_up = {node.input[0] for node in nodes if node.op_type == "Gather"}
    used = sum(math.prod(item.dims) for item in weights.values() if len(item.dims) > 1 and item.name not in looked_up)
    pairs = sum(node.op_type in _PRODUCTS and weights.keys().isdisjoint(node.input) for node in nodes)
    pairs += 2 * sum(node.domain == DOMAIN or node.op_type in ("Attention", "MultiHeadAttention") for node in nodes)
    usual = sum(draw.batch * draw.length for draw in DRAWS) * used
    most = max(_QUICK, _PART * usual)
    return tuple(length for length in LONG_LENGTHS if length * used + _PER_PAIR * pairs * length**2 <= most)


def lengths_left(lengths: Iterable[int], tried: int, refusal: str) -> list[int]:
    """Which lengths to try after one that a model refused, best first.

    The refusal often tells what the model takes: the rows of the table that an index ran out of, or the size that a shape in it
    is hard-coded to.
    """
    rows = [int(last) + 1 for last in re.findall(r"range \[-\d+,\s*(\d+)\]", refusal)]
    most = min([tried - 1, *rows])
    told = rows or [int(size) for size in re.findall(r"\b\d{1,4}\b", refusal)]
    first = sorted({size for size in told if 0 < size <= most}, reverse=True)
    return [*first, *sorted((length for length in lengths if length <= most and length not in first), reverse=True)]


def further_draw(random: np.random.Generator) -> Draw:
    """One more draw, of any kind and size: batches up to 8, lengths up to 512."""
    length = round(_LARGEST ** random.random())
    padding = str(random.choice(["none", "right", "left", "inner"]))
    spread = bool(random.random() < 0.25)
    return Draw(int(random.integers(1, 9)), length, padding, float(random.choice([0.01, 1.0, 3.0])), spread=spread)


def has_mask(specs: Iterable[InputSpec]) -> bool:
    """Whether any input is a mask, so that the padding of a draw matters."""
    return any(spec.role in ("mask", "padding") for spec in specs)


def has_floats(specs: Iterable[InputSpec]) -> bool:
    """Whether any input is floating-point data, so that the scale of a draw matters."""
    return any(spec.role == "data" and spec.elem_type in _FLOATS for spec in specs)


# --- what an input is ------------------------------------------------------------------------------------------------


def _dims(value: ValueInfoProto) -> tuple[Dim, ...] | None:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value") or "value without a type"
        raise ModelError(f"input {value.name!r} is a {kind}, and only tensors can be drawn or given.")
    if not tensor.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or f"{value.name}:{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )


def _role(name: str, elem_type: int, indexes: bool) -> str:
    lowered = name.lower()
    floating = elem_type in _FLOATS
    if "mask" in lowered or (not floating and re.search(r"(^|[^a-z])pad(ding)?([^a-z]|$)", lowered)):
        return "padding" if "pad" in lowered else "mask"
    if floating or elem_type in (TensorProto.BOOL, TensorProto.STRING):
        return "data"
    if indexes:
        return "ids"
    if re.search(r"len(gth)?s?($|[^a-z])", lowered):
        return "length"
    return "time" if "time" in lowered else "data"


def _indexed(model: ModelProto, dims: Mapping[str, tuple[Dim, ...] | None]) -> dict[str, list[Dim]]:
    """Graph inputs whose elements are used as indices -> sizes of the axes they index (empty where unknown)."""
    shapes: dict[str, Shape] = {}
    for value in model.graph.value_info:
        if value.type.tensor_type.HasField("shape"):
            dimensions = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dimensions
            )
    shapes.update({name: known for name, known in dims.items() if known is not None})
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer})
    flow = _Flow({(function.domain, function.name): function for function in model.functions})
    flow.walk(model.graph.node, {name: {name} for name in dims}, shapes)
    return flow.rows


@dataclass
class _Flow:
    """Follows graph inputs through value-preserving operators to the operators that index with them."""

    functions: Mapping[tuple[str, str], FunctionProto]
    rows: dict[str, list[Dim]] = field(default_factory=dict)

    def walk(
        self, nodes: Iterable[NodeProto], source: MutableMapping[str, set[str]], shapes: MutableMapping[str, Shape]
    ) -> None:
        """`source`: value -> graph inputs whose elements it holds; both mappings grow as nodes are visited."""
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    inner: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in attribute.g.initializer}
                    self.walk(attribute.g.node, ChainMap({}, source), ChainMap(inner, shapes))
                elif (
                    attribute.name == "value" and attribute.type == AttributeProto.TENSOR and node.op_type == "Constant"
                ):
                    shapes[node.output[0]] = tuple(attribute.t.dims)
            function = self.functions.get((node.domain, node.op_type))
            if function is not None:
                self._call(node, function, source, shapes)
            elif node.domain in ("", "ai.onnx"):
                self._index(node, source, shapes)
                followed = _VIEWS.get(node.op_type, ())
                names = node.input if followed is None else [node.input[i] for i in followed if i < len(node.input)]
                held = set().union(*(source.get(name, ()) for name in names))
                if held:
                    source.update({output: held for output in node.output if output})
                if node.op_type in _SAME_SHAPE and node.input[0] in shapes:
                    shapes.setdefault(node.output[0], shapes[node.input[0]])

    def _call(
        self,
        node: NodeProto,
        function: FunctionProto,
        source: MutableMapping[str, set[str]],
        shapes: MutableMapping[str, Shape],
    ) -> None:
        formal = dict(zip(function.input, node.input, strict=False))
        inner = {name: source[actual] for name, actual in formal.items() if actual in source}
        self.walk(function.node, inner, {name: shapes[actual] for name, actual in formal.items() if actual in shapes})
        for name, actual in zip(function.output, node.output, strict=False):
            if name in inner:
                source[actual] = inner[name]

    def _index(self, node: NodeProto, source: Mapping[str, set[str]], shapes: Mapping[str, Shape]) -> None:
        if node.op_type not in ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"):
            return
        inputs = source.get(node.input[1], ())
        if not inputs:
            return
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        shape = shapes.get(node.input[0], ())
        if node.op_type.endswith("ND"):
            indexed = shape[attributes.get("batch_dims", 0) :]
        else:
            axis = attributes.get("axis", 0)
            indexed = shape[axis : axis + 1 or None]
        for name in sorted(inputs):
            self.rows.setdefault(name, []).extend(dim for dim in indexed if dim is not None)


# --- shapes ----------------------------------------------------------------------------------------------------------


def symbols(specs: Sequence[InputSpec]) -> dict[str, bool]:
    """The symbols that sizes can be chosen for -> whether each is like a batch: only ever a first axis, or called one."""
    first: dict[str, bool] = {}
    for spec in specs:
        for axis, dim in enumerate(spec.dims or ()):
            if not isinstance(dim, str):
                continue
            expression = _expression(dim)
            if expression is None:
                first[dim] = (first.get(dim, True) and axis == 0) or "batch" in dim.lower()
            else:
                for part in ast.walk(expression):
                    if isinstance(part, ast.Name):
                        first.setdefault(part.id, False)
    return first


def with_sums(specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes, with those that follow from them: "past + sequence"."""
    sums: dict[str, int] = {}
    for dim in (dim for spec in specs for dim in spec.dims or () if isinstance(dim, str)):
        expression = _expression(dim)
        if expression is not None:
            sums[dim] = max(_evaluate(expression, sizes), 0)
    return {**sums, **sizes}


def _assign(specs: Sequence[InputSpec], draw: Draw) -> dict[str, int]:
    """Symbol -> size, for every symbol of the inputs."""
    sizes: dict[str, int] = {}
    counts = {True: 0, False: 0}
    for symbol, is_batch in symbols(specs).items():
        sizes[symbol] = (draw.batch if is_batch else draw.length) + (0 if draw.equal else counts[is_batch])
        counts[is_batch] += 1
    return with_sums(specs, sizes)


@cache
def _expression(symbol: str) -> ast.expr | None:
    """The parsed form of "past + sequence" or "2*s0"; None for a plain name, or anything else."""
    try:
        body = ast.parse(symbol, mode="eval").body
    except (SyntaxError, ValueError):
        return None
    allowed = (ast.BinOp, ast.Name, ast.Constant, ast.Load, *_ARITHMETIC)
    parts = list(ast.walk(body))
    if not isinstance(body, ast.BinOp) or not all(isinstance(part, allowed) for part in parts):
        return None
    return body if all(isinstance(part.value, int) for part in parts if isinstance(part, ast.Constant)) else None


def _evaluate(expression: ast.AST, sizes: Mapping[str, int]) -> int:
    if isinstance(expression, ast.BinOp):
        left, right = _evaluate(expression.left, sizes), _evaluate(expression.right, sizes)
        if isinstance(expression.op, ast.FloorDiv) and right == 0:
            return 0
        return int(_ARITHMETIC[type(expression.op)](left, right))
    return sizes[expression.id] if isinstance(expression, ast.Name) else int(getattr(expression, "value", 0))


# --- data ------------------------------------------------------------------------------------------------------------


def numpy_type(spec: InputSpec) -> np.dtype[Any]:
    """The type of the arrays for an input (ml_dtypes' where numpy has none)."""
    if spec.elem_type == TensorProto.STRING:
        return np.dtype(object)
    return helper.tensor_dtype_to_np_dtype(spec.elem_type)


def _array(
    spec: InputSpec,
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
    longest: int,
    draw: Draw,
    random: np.random.Generator,
) -> Array:
    kind = numpy_type(spec)
    if spec.role in ("mask", "padding"):
        keep = _mask(shape, draw.padding, random)
        return np.asarray(~keep if spec.role == "padding" else keep).astype(kind)
    if spec.role == "ids":
        rows = _rows(spec, sizes, draw.narrow)
        if draw.ends:
            columns = np.resize([0, rows - 1], shape[:1] or (1,)).reshape(shape[:1] + (1,) * (len(shape) - 1))
            return np.broadcast_to(columns, shape).astype(kind)
        return _ids(shape, rows, random).astype(kind)
    if spec.role == "length":
        return _lengths(shape, longest, draw.empty, random).astype(kind)
    if spec.role == "time":
        return np.sort(random.integers(0, _LARGEST_TIME, shape), axis=-1 if shape else None).astype(kind)
    if spec.elem_type == TensorProto.STRING:
        return random.integers(0, 10, shape).astype(str).astype(object)
    if spec.elem_type in _FLOATS:
        scale = _row_scales(spec, shape, random) if draw.spread else draw.scale
        data = random.standard_normal(shape) * scale
        if draw.reach:
            limits = ml_dtypes.finfo(kind)
            data = np.clip(data * _magnitudes(limits, draw.reach, shape), float(limits.min), float(limits.max))
        return np.asarray(data).astype(kind)
    if spec.elem_type in _FULL_RANGE:
        return random.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, shape).astype(kind)
    if kind.kind in "bui":
        # An integer that nothing indexes with is most often a mask under another name, and 0 and 1 suit the rest.
        return random.integers(0, 2, shape).astype(kind)
    name = type_name(spec.elem_type)
    raise ModelError(f"input {spec.name!r}: there is no random data of type {name}.", "Give inputs of your own.")


def _ids(shape: tuple[int, ...], rows: int, random: np.random.Generator) -> Array:
    """Ids over the whole table, the last and the first row among them; none comes twice before all have come once."""
    size = math.prod(shape)
    if size == 0:
        return np.zeros(shape, np.int64)
    if rows > _MOST_PERMUTED:
        ids = random.integers(0, rows, size)
    else:
        ids = np.resize(random.permutation(rows), size)
    ends = [rows - 1, 0] if random.random() < 0.5 or size > 1 else [0, rows - 1]
    kept = ids[(ids != 0) & (ids != rows - 1)]
    ids = random.permutation(np.concatenate([ends[:size], np.resize(kept if kept.size else ids, max(size - 2, 0))]))
    return ids.reshape(shape)


def _lengths(shape: tuple[int, ...], longest: int, empty: bool, random: np.random.Generator) -> Array:
    """Lengths from 1 to the longest, both among them where there are two; the first is 0 if there shall be an empty one."""
    lengths = random.integers(min(1, longest), longest + 1, shape)
    if lengths.size > 1:
        lengths.flat[0], lengths.flat[-1] = longest, min(1, longest)
        lengths = random.permutation(lengths.ravel()).reshape(shape)
    if empty and lengths.size:
        lengths.flat[0] = 0
    return np.asarray(lengths)


def _row_scales(spec: InputSpec, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """A magnitude for each row (last axis), the smallest and the largest among them."""
    low, high = _SPREAD.get(spec.elem_type, _SPREAD_WIDE)
    powers = random.uniform(low, high, shape[:-1])
    if powers.size > 1:
        powers.flat[0], powers.flat[-1] = low, high
    return np.asarray(10.0**powers)[..., np.newaxis] if shape else np.asarray(10.0**powers)


def _magnitudes(limits: Any, parts: Sequence[float], shape: tuple[int, ...]) -> Array:
    """A magnitude for each entry of the first axis, of these parts in turn."""
    ends = math.log10(float(limits.max)), -math.log10(float(limits.smallest_normal))
    powers = [part * ends[part < 0] for part in parts]
    first = 10.0 ** np.resize(powers, shape[:1] or (1,))
    return np.asarray(first).reshape(shape[:1] + (1,) * (len(shape) - 1))


def _rows(spec: InputSpec, sizes: Mapping[str, int], narrow: bool) -> int:
    """The first id that is not allowed; 1 at least."""
    known = [dim if isinstance(dim, int) else sizes.get(dim, _UNKNOWN_ROWS) for dim in spec.rows]
    rows = min(known, default=_UNKNOWN_ROWS)
    return max(min(rows, 2) if narrow else rows, 1)


def _mask(shape: tuple[int, ...], padding: str, random: np.random.Generator) -> Array:
    """True = keep. Every row (last axis) keeps at least one element, except the first under "row"; one row keeps all."""
    size = shape[-1] if shape else 1
    rows = math.prod(shape[:-1])
    if padding == "none" or size == 0 or rows == 0:
        return np.ones(shape, dtype=bool)
    position = np.arange(size)
    kept = random.integers(1, max(size, 2), (rows, 1))
    if padding == "inner":
        keep = random.random((rows, size)) < 0.6
        keep[np.arange(rows), random.integers(0, size, rows)] = True
    else:
        keep = position >= size - kept if padding == "left" else position < kept
    if rows > 1:
        keep[-1] = True
    if padding == "row":
        keep[0] = False
    return keep.reshape(shape)
