"""Small models to start from and ways to spoil them: what `tests.trust.fuzz` draws its cases from.

A mutation is a function (model, random) that changes the model in place. It may do nothing where it finds nothing to change, and
what it makes need not be valid: telling the one from the other is the loader's task.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tests import helpers

Random = random.Random
Mutation = Callable[[ModelProto, Random], None]

_HIDDEN, _HEADS = 8, 2
_ODD_NAMES = (
    "",
    " ",
    "é中\U0001f600",
    "a/b:0",
    "x" * 3000,
    "%",
    "..",
    "None",
    "x/constant",
    "normed/LayerNormalization",
)
_ODD_NUMBERS = (0, 1, -1, 2, -2, 3, 7, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63))
_ODD_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-5, 1e-12, 1e30, -1e4, math.inf, -math.inf, math.nan)
# fmt: off
_OPERATORS = (
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sqrt", "Erf", "Tanh", "Sigmoid", "Relu", "Neg", "Abs", "Exp",
    "Log", "Reciprocal", "Softmax", "LogSoftmax", "Identity", "Dropout", "Cast", "Transpose", "Reshape", "Squeeze",
    "Unsqueeze", "Flatten", "MatMul", "Gemm", "LayerNormalization", "ReduceMean", "ReduceSum", "Gather", "Concat",
    "Split", "Slice", "Shape", "Expand", "Where", "Equal", "Not", "Attention", "RMSNormalization", "Gelu",
    "Constant", "If", "Loop", "NoSuchOperator",
)
# fmt: on


def _drawn(seed: int, *shape: int, centre: float = 0.0) -> np.ndarray:
    return (centre + 0.4 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def attention_block() -> ModelProto:
    """Projections, two heads with a mask, merge, projection, residual and LayerNormalization."""
    weights = {f"w{name}": _drawn(number, _HIDDEN, _HIDDEN) for number, name in enumerate("qkvo")}
    weights |= {f"b{name}": _drawn(10 + number, _HIDDEN) for number, name in enumerate("qkvo")}
    weights |= {
        "heads": np.array([0, 0, _HEADS, _HIDDEN // _HEADS]),
        "flat": np.array([0, 0, _HIDDEN]),
        "root": np.array(2.0, np.float32),
        "gamma": _drawn(20, _HIDDEN, centre=1.0),
        "beta": _drawn(21, _HIDDEN),
    }
    return _named(
        helpers.model(
            """(float[B,S,8] x, float[B,1,1,S] mask) => (float[B,S,8] y) {
            q0 = MatMul(x, wq)  q1 = Add(q0, bq)  q2 = Reshape(q1, heads)  q3 = Transpose <perm = [0, 2, 1, 3]> (q2)
            k0 = MatMul(x, wk)  k1 = Add(k0, bk)  k2 = Reshape(k1, heads)  k3 = Transpose <perm = [0, 2, 3, 1]> (k2)
            v0 = MatMul(x, wv)  v1 = Add(v0, bv)  v2 = Reshape(v1, heads)  v3 = Transpose <perm = [0, 2, 1, 3]> (v2)
            product = MatMul(q3, k3)  scaled = Div(product, root)  masked = Add(scaled, mask)
            probabilities = Softmax <axis = -1> (masked)  context = MatMul(probabilities, v3)
            moved = Transpose <perm = [0, 2, 1, 3]> (context)  merged = Reshape(moved, flat)
            projected = MatMul(merged, wo)  biased = Add(bo, projected)  total = Add(biased, x)
            y = LayerNormalization <axis = -1, epsilon = 1e-05> (total, gamma, beta)
            }""",
            weights=weights,
        )
    )


def attention_core() -> ModelProto:
    """Heads split by a hard-coded Reshape, the scale on Q and K, a boolean mask by Where, and no rim."""
    return _named(
        helpers.model(
            """(float[2,3,8] q, float[2,5,8] k, float[2,5,8] v, bool[2,1,1,5] keep) => (float[2,3,8] y) {
            q2 = Reshape(q, qs)  q3 = Transpose <perm = [0, 2, 1, 3]> (q2)  q4 = Mul(q3, half)
            k2 = Reshape(k, ks)  k3 = Transpose <perm = [0, 2, 1, 3]> (k2)  k4 = Transpose <perm = [0, 1, 3, 2]> (k3)
            k5 = Mul(k4, half)  v2 = Reshape(v, ks)  v3 = Transpose <perm = [0, 2, 1, 3]> (v2)
            product = MatMul(q4, k5)  masked = Where(keep, product, low)  p = Softmax <axis = 3> (masked)
            context = MatMul(p, v3)  moved = Transpose <perm = [0, 2, 1, 3]> (context)  y = Reshape(moved, flat)
            }""",
            weights={
                "qs": np.array([2, 3, 2, 4]),
                "ks": np.array([2, -1, 2, 4]),
                "flat": np.array([2, 3, 8]),
                "half": np.array(0.5, np.float32),
                "low": np.array(-1e4, np.float32),
            },
        )
    )


def embedding() -> ModelProto:
    """Words, positions and token types, summed, with the norm written out."""
    return _named(
        helpers.model(
            """(int64[B,S] ids, int64[B,S] types) => (float[B,S,8] y) {
            words = Gather(table, ids)  kinds = Gather(type_table, types)
            shape = Shape(ids)  length = Gather <axis = 0> (shape, one)  end = Unsqueeze(length, zero_1)
            positions = Slice(position_ids, zero_1, end, one_1)  places = Gather(position_table, positions)
            sum = Add(words, kinds)  total = Add(sum, places)
            mean = ReduceMean <axes = [-1]> (total)  centred = Sub(total, mean)  square = Pow(centred, two)
            variance = ReduceMean <axes = [-1]> (square)  shifted = Add(variance, epsilon)  std = Sqrt(shifted)
            normal = Div(centred, std)  scaled = Mul(normal, gamma)  y = Add(scaled, beta)
            }""",
            weights={
                "table": _drawn(1, 5, _HIDDEN),
                "type_table": _drawn(2, 3, _HIDDEN),
                "position_table": _drawn(3, 9, _HIDDEN),
                "position_ids": np.arange(9).reshape(1, 9),
                "one": np.array(1),
                "one_1": np.array([1]),
                "zero_1": np.array([0]),
                "two": np.array(2.0, np.float32),
                "epsilon": np.array(1e-5, np.float32),
                "gamma": _drawn(4, _HIDDEN, centre=1.0),
                "beta": _drawn(5, _HIDDEN),
            },
        )
    )


def swish_and_gelu() -> ModelProto:
    """A feed-forward block: Gemm, x * sigmoid(1.5 x), Gelu by Erf, residual, RMS norm written out."""
    return _named(
        helpers.model(
            """(float[N,8] x, float[N,8] r) => (float[N,8] y, float[N,8] g) {
            h = Gemm <transB = 1> (x, w, b)  hb = Mul(h, beta_1)  s = Sigmoid(hb)  swish = Mul(h, s)
            d = Div(swish, root)  e = Erf(d)  e1 = Add(e, one)  m = Mul(swish, e1)  g = Mul(m, half)
            sum = Add(g, r)  square = Mul(sum, sum)  mean = ReduceMean <axes = [-1]> (square)  me = Add(mean, epsilon)
            std = Sqrt(me)  inverse = Reciprocal(std)  normal = Mul(sum, inverse)  y = Mul(gamma, normal)
            }""",
            weights={
                "w": _drawn(1, _HIDDEN, _HIDDEN),
                "b": _drawn(2, _HIDDEN),
                "beta_1": np.array(1.5, np.float32),
                "root": np.array(math.sqrt(2.0), np.float32),
                "one": np.array(1.0, np.float32),
                "half": np.array(0.5, np.float32),
                "epsilon": np.array([1e-6], np.float32),
                "gamma": _drawn(3, _HIDDEN, centre=1.0),
            },
        )
    )


def branches() -> ModelProto:
    """x * sigmoid(x) inside a branch of an If, captured from outside, and again in a function."""
    return _named(
        helpers.model(
            """(float[N,8] x, bool c) => (float[N,8] y) {
            t = Identity(x)
            u = If (c) <
              then_branch = yes () => (float[N,8] a) { p = Sigmoid(t)  a = Mul(t, p) },
              else_branch = no () => (float[N,8] b) { p = Relu(t)  b = Identity(p) }
            >
            y = local.Block(u)
            }""",
            functions="""<domain: "local", opset_import: ["" : 17]> Block (a) => (b) { s = Sigmoid(a)  m = Mul(a, s)  b = Neg(m) }""",
        )
    )


SEEDS: dict[str, Callable[[], ModelProto]] = {
    seed.__name__: seed for seed in (attention_block, attention_core, embedding, swish_and_gelu, branches)
}


def _named(model: ModelProto) -> ModelProto:
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return model


# -- parts to change ---------------------------------------------------------------------------------------------------


def _nodes(model: ModelProto) -> list[tuple[Any, NodeProto]]:
    """Every node with the list that holds it: of the main graph, of subgraphs, of functions."""
    found: list[tuple[Any, NodeProto]] = []
    pending: list[Any] = [model.graph.node, *(function.node for function in model.functions)]
    while pending:
        field = pending.pop()
        for node in field:
            found.append((field, node))
            pending.extend(item.g.node for item in node.attribute if item.type == AttributeProto.GRAPH)
    return found


def _pick(random: Random, items: Sequence[Any]) -> Any:
    return random.choice(items) if len(items) else None


def _values(model: ModelProto) -> list[str]:
    graph = model.graph
    names = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    return names + [name for node in graph.node for name in node.output if name]


def _readers(model: ModelProto, value: str) -> list[tuple[NodeProto, int]]:
    return [
        (node, place) for _, node in _nodes(model) for place, name in enumerate(node.input) if name and name == value
    ]


def _types(model: ModelProto) -> dict[str, Any]:
    """What ONNX infers of the main graph: name -> (type, dimensions)."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:
        inferred = model.graph
    found: dict[str, Any] = {item.name: (item.data_type, len(item.dims)) for item in inferred.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        found[value.name] = (value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim))
    return found


def _insert(model: ModelProto, random: Random, value: str, nodes: Sequence[NodeProto]) -> None:
    """Puts `nodes` (the last makes `new`) behind a value of the main graph, for some of its readers."""
    readers = _readers(model, value)
    if not readers:
        return
    some = readers if random.random() < 0.5 else random.sample(readers, random.randint(1, len(readers)))
    new = nodes[-1].output[0]
    for reader, place in some:
        reader.input[place] = new
    graph = model.graph
    places = [place for place, node in enumerate(graph.node) if value in node.output]
    after = (places[-1] + 1) if places else 0
    rest = [*nodes, *graph.node[after:]]
    kept = [NodeProto.FromString(node.SerializeToString()) for node in rest]
    del graph.node[after:]
    graph.node.extend(kept)


def _fresh(model: ModelProto, random: Random) -> str:
    return f"m{random.randrange(1 << 30)}"


# -- mutations ---------------------------------------------------------------------------------------------------------


def drop_node(model: ModelProto, random: Random) -> None:
    """A node goes; its readers read what it read, or nothing that exists."""
    found = _pick(random, _nodes(model))
    if found is None:
        return
    field, node = found
    if node.input and random.random() < 0.8:
        for output in node.output:
            for reader, place in _readers(model, output):
                reader.input[place] = node.input[0]
    field.remove(node)


def duplicate_node(model: ModelProto, random: Random) -> None:
    """A node comes twice; with outputs of its own that some readers take, or with the same ones."""
    found = _pick(random, _nodes(model))
    if found is None:
        return
    field, node = found
    copy = NodeProto.FromString(node.SerializeToString())
    if random.random() < 0.8:
        for place, output in enumerate(copy.output):
            copy.output[place] = _fresh(model, random)
            for reader, index in _readers(model, output):
                if random.random() < 0.5:
                    reader.input[index] = copy.output[place]
    rest = list(field)
    place = next((index for index, item in enumerate(rest) if item is node), 0)
    kept = [NodeProto.FromString(item.SerializeToString()) for item in rest[place + 1 :]]
    del field[place + 1 :]
    field.extend([copy, *kept])


def swap_nodes(model: ModelProto, random: Random) -> None:
    """Two nodes change places in the list, or all are shuffled."""
    field = model.graph.node
    copies = [NodeProto.FromString(node.SerializeToString()) for node in field]
    if len(copies) < 2:
        return
    if random.random() < 0.8:
        one = random.randrange(len(copies) - 1)
        copies[one], copies[one + 1] = copies[one + 1], copies[one]
    else:
        random.shuffle(copies)
    del field[:]
    field.extend(copies)


def swap_inputs(model: ModelProto, random: Random) -> None:
    """Two inputs of one node change places."""
    nodes = [node for _, node in _nodes(model) if len(node.input) > 1]
    if nodes:
        node = random.choice(nodes)
        one, other = random.sample(range(len(node.input)), 2)
        node.input[one], node.input[other] = node.input[other], node.input[one]


def rewire(model: ModelProto, random: Random) -> None:
    """A node reads another value, most often one of the same type and rank."""
    nodes = [node for _, node in _nodes(model) if node.input]
    if not nodes:
        return
    node = random.choice(nodes)
    place = random.randrange(len(node.input))
    types = _types(model)
    names = _values(model)
    if random.random() < 0.9:
        names = [name for name in names if types.get(name) == types.get(node.input[place])] or names
    choice = random.random()
    node.input[place] = random.choice(names) if names and choice < 0.94 else ("" if choice < 0.97 else "nowhere")


def change_attribute(model: ModelProto, random: Random) -> None:
    """An attribute gets another value, another type, or goes; or a node gets one."""
    nodes = [node for _, node in _nodes(model) if node.attribute] or [node for _, node in _nodes(model)]
    if not nodes:
        return
    node = random.choice(nodes)
    kept = [item for item in node.attribute if item.type != AttributeProto.GRAPH]
    if not kept or random.random() < 0.1:
        name = random.choice(
            ("axis", "axes", "perm", "keepdims", "transA", "alpha", "to", "allowzero", "epsilon", "zzz")
        )
        value = random.choice((0, 1, -1, [0], [1, 0], [0, 1, 2, 3], 0.5, b"s"))
        node.attribute.append(helper.make_attribute(name, value))
        return
    item = random.choice(kept)
    choice = random.random()
    if choice < 0.08:
        node.attribute.remove(item)
    elif choice < 0.12:
        item.type = random.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9))
    elif item.type == AttributeProto.INTS and item.ints:
        numbers = list(item.ints)
        if choice < 0.6:
            random.shuffle(numbers)
        elif choice < 0.7:
            numbers.pop()
        elif choice < 0.8:
            numbers.append(random.choice(_ODD_NUMBERS))
        else:
            numbers[random.randrange(len(numbers))] = random.choice(_ODD_NUMBERS)
        item.ints[:] = numbers
    elif item.type == AttributeProto.INT:
        item.i = random.choice(_ODD_NUMBERS)
    elif item.type == AttributeProto.FLOAT:
        item.f = random.choice(_ODD_FLOATS[:-6] if choice < 0.9 else _ODD_FLOATS)
    elif item.type == AttributeProto.TENSOR:
        _spoil(item.t, random)
    elif item.type == AttributeProto.STRING:
        item.s = random.choice((b"", b"tanh", b"none", b"\xff\xfe"))


def _spoil(tensor: TensorProto, random: Random) -> None:
    try:
        array = np.array(numpy_helper.to_array(tensor))
    except Exception:
        return
    choice = random.random()
    if choice < 0.05:
        tensor.data_type = random.choice((0, 1, 6, 7, 8, 9, 10, 11, 14, 16, 99))
        return
    if choice < 0.1:
        tensor.dims[:] = random.choice(([], [0], [-1], [1], [2, 4], [1 << 62, 4], [1, 1, 1, 1], [*tensor.dims, 1], [3]))
        return
    if array.size and choice < 0.5:
        place = random.randrange(array.size)
        if array.dtype.kind == "f":
            array.reshape(-1)[place] = random.choice(_ODD_FLOATS[:-5] if choice < 0.45 else _ODD_FLOATS)
        elif array.dtype.kind in "iu":
            number = random.choice(_ODD_NUMBERS)
            array.reshape(-1)[place] = number if abs(number) < 1 << 31 and array.dtype.itemsize > 4 else number % 5
    elif array.size and choice < 0.6:
        array = np.full_like(array, array.reshape(-1)[0])
    elif choice < 0.75:
        array = array.reshape(random.choice(((*array.shape, 1), (1, *array.shape), (-1,)))) if array.size else array
    elif choice < 0.85:
        array = array.astype(random.choice((np.float16, np.float32, np.float64, np.int64, np.int32)))
    elif choice < 0.92 and array.ndim:
        array = array[..., : max(array.shape[-1] - 1, 0)]
    elif array.ndim:
        array = np.concatenate([array, array], axis=random.randrange(array.ndim))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), tensor.name))


def change_constant(model: ModelProto, random: Random) -> None:
    """An initializer gets other numbers, another shape or another type."""
    tensor = _pick(random, model.graph.initializer)
    if tensor is not None:
        _spoil(tensor, random)


def change_declaration(model: ModelProto, random: Random) -> None:
    """An input or output is declared with other dimensions or another type, or with none."""
    graph = model.graph
    value = _pick(random, [*graph.input, *graph.output, *graph.value_info])
    if value is None:
        return
    kind = value.type.tensor_type
    choice = random.random()
    if choice < 0.15:
        value.ClearField("type")
    elif choice < 0.25:
        kind.ClearField("shape")
    elif choice < 0.35:
        kind.elem_type = random.choice((0, 1, 6, 7, 8, 9, 10, 11, 16, 99))
    elif kind.shape.dim:
        dim = random.choice(kind.shape.dim)
        if choice < 0.5:
            dim.dim_value = random.choice((0, 1, 2, 3, 8, -1, 1 << 40))
        elif choice < 0.8:
            dim.dim_param = random.choice(("B", "S", "N", "other"))
        elif choice < 0.9:
            dim.Clear()
        else:
            kind.shape.dim.add().dim_value = 1


def change_every_batch(model: ModelProto, random: Random) -> None:
    """A named dimension becomes a number wherever it stands."""
    graph = model.graph
    dims = [dim for value in (*graph.input, *graph.output) for dim in value.type.tensor_type.shape.dim]
    names = sorted({dim.dim_param for dim in dims if dim.dim_param})
    if names:
        name, size = random.choice(names), random.choice((0, 1, 1, 2, 3, 4, 8))
        for dim in dims:
            if dim.dim_param == name:
                dim.dim_value = size


def change_operator(model: ModelProto, random: Random) -> None:
    """A node becomes another operator, or one of another domain."""
    found = _pick(random, _nodes(model))
    if found is not None:
        if random.random() < 0.9:
            found[1].op_type = random.choice(_OPERATORS)
        else:
            found[1].domain = random.choice(("ai.onnx", "com.microsoft", "gr.ml.infra", "other"))


def insert_move(model: ModelProto, random: Random) -> None:
    """Something that does nothing, or that turns a value and does not turn it back, comes in between."""
    values = _values(model)
    if not values:
        return
    value = random.choice(values)
    rank = _types(model).get(value, (1, 3))[1]
    new, middle = _fresh(model, random), _fresh(model, random)
    axes = list(range(rank))
    random.shuffle(axes)
    inverse = [axes.index(axis) for axis in range(rank)]
    choice = random.randrange(10)
    make = helper.make_node
    if choice == 0:
        nodes = [make("Identity", [value], [new])]
    elif choice == 1:
        nodes = [make("Transpose", [value], [middle], perm=axes), make("Transpose", [middle], [new], perm=inverse)]
    elif choice == 2:
        nodes = [make("Transpose", [value], [new], perm=axes)]
    elif choice == 3:
        there, back = random.choice(((11, 1), (1, 1), (10, 1), (6, 1), (1, 7), (7, 7)))
        nodes = [make("Cast", [value], [middle], to=there), make("Cast", [middle], [new], to=back)]
    elif choice == 4:
        nodes = [make(random.choice(("Neg", "Relu", "Abs", "Tanh", "Not")), [value], [new])]
    elif choice == 5:
        nodes = [make("Dropout", [value], [new])]
    elif choice == 6:
        shape = _fresh(model, random)
        nodes = [make("Shape", [value], [shape]), make("Reshape", [value, shape], [new])]
    elif choice == 7:
        target = random.choice(([-1], [0, -1], [0, 0, -1], [-1, 8], [1, -1, 8], [0, 0, 2, 4], [0, 0, 8], [2, 3, 8]))
        model.graph.initializer.append(numpy_helper.from_array(np.array(target), f"{new}_shape"))
        nodes = [make("Reshape", [value, f"{new}_shape"], [new])]
    elif choice == 8:
        axis = random.randint(-1, rank)
        model.graph.initializer.append(numpy_helper.from_array(np.array([axis]), f"{new}_axes"))
        nodes = [make("Unsqueeze", [value, f"{new}_axes"], [middle])]
        nodes.append(
            make(random.choice(("Squeeze", "Identity")), [middle, f"{new}_axes"][: random.randint(1, 2)], [new])
        )
    else:
        number = np.array(random.choice(_ODD_FLOATS[:7]), np.float32).reshape((1,) * random.randrange(4))
        model.graph.initializer.append(numpy_helper.from_array(number, f"{new}_number"))
        pair = [value, f"{new}_number"]
        random.shuffle(pair)
        nodes = [make(random.choice(("Mul", "Add", "Sub", "Div", "Max")), pair, [new])]
    _insert(model, random, value, nodes)


def expose(model: ModelProto, random: Random) -> None:
    """A value inside becomes a graph output too, or an input does, or an output goes."""
    graph = model.graph
    choice = random.random()
    if choice < 0.2 and graph.output:
        graph.output.remove(random.choice(graph.output))
        return
    types = _types(model)
    names = _values(model)
    if names:
        name = random.choice(names)
        dtype, rank = types.get(name, (1, 3))
        dims = [f"{name[:20]}_{axis}" for axis in range(rank)]
        graph.output.append(
            helper.make_tensor_value_info(name, dtype, dims) if choice < 0.9 else ValueInfoProto(name=name)
        )


def read_elsewhere(model: ModelProto, random: Random) -> None:
    """A value gets another reader, whose result is an output or is lost."""
    names = [name for node in model.graph.node for name in node.output if name]
    if not names:
        return
    name, new = random.choice(names), _fresh(model, random)
    model.graph.node.append(helper.make_node("Abs", [name], [new]))
    if random.random() < 0.6:
        dtype, rank = _types(model).get(name, (1, 3))
        model.graph.output.append(helper.make_tensor_value_info(new, dtype, [f"{new}_{axis}" for axis in range(rank)]))


def share_name(model: ModelProto, random: Random) -> None:
    """Two values get one name, or a value gets an odd one, everywhere."""
    names = _values(model)
    if len(names) < 2:
        return
    old = random.choice(names)
    new = random.choice(names) if random.random() < 0.3 else random.choice(_ODD_NAMES)
    _rename(model, old, new)


def _rename(model: ModelProto, old: str, new: str) -> None:
    graph = model.graph
    for _, node in _nodes(model):
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if item.name == old:
            item.name = new


def rename_nodes(model: ModelProto, random: Random) -> None:
    """All nodes lose their names, or have one name, or one has an odd one."""
    choice = random.random()
    name = random.choice(_ODD_NAMES)
    for node in model.graph.node:
        if choice < 0.7 or random.random() < 0.2:
            node.name = "" if choice < 0.4 else name


def change_version(model: ModelProto, random: Random) -> None:
    """Another IR version or opset."""
    if random.random() < 0.4:
        model.ir_version = random.choice((1, 3, 4, 7, 8, 10, 11, 99))
    elif model.opset_import:
        model.opset_import[0].version = random.choice((1, 6, 9, 11, 12, 13, 14, 16, 18, 20, 21, 23, 24, 99))


def overridable(model: ModelProto, random: Random) -> None:
    """An initializer becomes a graph input with a default."""
    tensor = _pick(random, model.graph.initializer)
    if tensor is not None and all(value.name != tensor.name for value in model.graph.input):
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def make_input(model: ModelProto, random: Random) -> None:
    """An initializer becomes something the caller gives, or goes."""
    tensor = _pick(random, model.graph.initializer)
    if tensor is not None:
        if random.random() < 0.8:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        model.graph.initializer.remove(tensor)


def make_node_constant(model: ModelProto, random: Random) -> None:
    """An initializer becomes a Constant node."""
    tensor = _pick(random, model.graph.initializer)
    if tensor is None:
        return
    copy = TensorProto.FromString(tensor.SerializeToString())
    model.graph.initializer.remove(tensor)
    nodes = [helper.make_node("Constant", [], [copy.name], value=copy), *model.graph.node]
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def into_branch(model: ModelProto, random: Random) -> None:
    """A node moves into both branches of an If, where it captures what it reads."""
    nodes = [node for node in model.graph.node if len(node.output) == 1 and node.op_type not in ("If", "Constant")]
    if not nodes:
        return
    chosen = random.choice(nodes)
    inner = NodeProto.FromString(chosen.SerializeToString())
    inner.output[0] = _fresh(model, random)
    branch = helper.make_graph([inner], "branch", [], [ValueInfoProto(name=inner.output[0])])
    branch.output[0].type.tensor_type.elem_type = _types(model).get(chosen.output[0], (1, 0))[0]
    flag = _fresh(model, random)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), flag))
    moved = helper.make_node("If", [flag], list(chosen.output), then_branch=branch, else_branch=branch)
    chosen.CopyFrom(moved)


MUTATIONS: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        drop_node,
        duplicate_node,
        swap_nodes,
        swap_inputs,
        rewire,
        change_attribute,
        change_constant,
        change_declaration,
        change_every_batch,
        change_operator,
        insert_move,
        expose,
        read_elsewhere,
        share_name,
        rename_nodes,
        change_version,
        overridable,
        make_input,
        make_node_constant,
        into_branch,
    )
}


def flip_bytes(data: bytes, random: Random) -> bytes:
    """The bytes of a file with some of them changed, inserted or gone."""
    spoiled = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        place = random.randrange(len(spoiled)) if spoiled else 0
        choice = random.random()
        if choice < 0.6 and spoiled:
            spoiled[place] = random.randrange(256)
        elif choice < 0.75:
            spoiled.insert(place, random.randrange(256))
        elif choice < 0.9:
            del spoiled[place : place + random.choice((1, 1, 4, 30))]
        else:
            del spoiled[place:]
    return bytes(spoiled)
