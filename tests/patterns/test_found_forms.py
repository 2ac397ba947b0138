"""Attention as other tools write it: tf2onnx, Keras, paddle2onnx, einops, int8, opset 23, inside If, Loop and functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

import onnx_fuse
from tests import helpers
from tests.helpers import Array
from tests.patterns.test_attention_layer_norm import NAME, OPERANDS, WHOLE, attention, drawn, fused

RIM = ("projection", "residual", "norm")

VARIANCE = """
    mean = ReduceMean <axes = [2], keepdims = 1> ({})
    centred = Sub({}, mean)
    square = Mul(centred, centred)
    variance = ReduceMean <axes = [2], keepdims = 1> (square)
    above = Add(variance, epsilon)
    std = Sqrt(above)
    inverse = Reciprocal(std)
    factor = Mul(inverse, gamma)"""
BATCH_FORM = f"""{VARIANCE}
    scaled_x = Mul({{}}, factor)
    scaled_mean = Mul(mean, factor)
    shift = Sub(beta, scaled_mean)
    normed = Add(scaled_x, shift)"""
SCALED_FORM = f"{VARIANCE}\nstretched = Mul(centred, factor)\nnormed = Add(stretched, beta)"
EINSUM_CORE = {
    "query": "q4 = Reshape(q, heads)",
    "key": "k4 = Reshape(k, heads)",
    "value": "v4 = Reshape(v, heads)",
    "product": 'product = Einsum <equation = "aecd,abcd->acbe"> (k4, q4)',
    "context": 'context = Einsum <equation = "acbe,aecd->abcd"> ({}, v4)',
    "merge": "merged = Reshape({}, flat)",
}
KERAS = {
    "query": """
        qa = Einsum <equation = "abc,cde->abde"> (q, wq)
        qb = Add(qa, bq)
        q4 = Mul(qb, half)""",
    "key": 'ka = Einsum <equation = "abc,cde->abde"> (k, wk)\nk4 = Add(ka, bk)',
    "value": 'va = Einsum <equation = "abc,cde->abde"> (v, wv)\nv4 = Add(va, bv)',
    "product": EINSUM_CORE["product"],
    "scale": "",
    "context": EINSUM_CORE["context"],
    "merge": "",
    "projection": 'projected = Einsum <equation = "abcd,cde->abe"> ({}, wo)',
    "norm": BATCH_FORM,
    "weights": {
        **{f"w{name}": drawn(8, 2, 4) for name in "qkv"},
        **{f"b{name}": drawn(2, 4) for name in "qkv"},
        "wo": drawn(2, 4, 8),
    },
}
TF_FLAT = {
    "inputs": dict.fromkeys("qkvx", "[2,3,8]"),
    "query": """
        q2 = Reshape(q, rows)
        qm = MatMul(q2, wq)
        qb = Add(qm, bq)
        q4 = Reshape(qb, four)
        qh = Transpose <perm = [0, 2, 1, 3]> (q4)""",
    "merge": "moved = Transpose <perm = [0, 2, 1, 3]> ({})\nmerged = Reshape(moved, rows)",
    "residual": "x2 = Reshape(x, rows)\ntotal = Add({}, x2)",
    "norm": "flatly = LayerNormalization <axis = -1, epsilon = 1e-05> ({}, gamma, beta)\nnormed = Reshape(flatly, back)",
    "weights": {"wq": drawn(8, 8), "bq": drawn(8), "four": np.array([2, 3, 2, 4]), "back": np.array([2, 3, 8])},
}
TF_MASK = {
    "inputs": {"m": "[B,S]"},
    "mask": """
        wide = Unsqueeze(m, axes)
        unseen = Sub(one, wide)
        added = Mul(unseen, tenthousand)
        masked = Add({}, added)""",
    "weights": {"axes": np.array([1, 2])},
}
PADDLE = {
    "query": """
        qs = Mul(q, half)
        qs1 = Add(qs, zero)
        q4 = Reshape(qs1, heads)
        qh = Transpose <perm = [0, 2, 1, 3]> (q4)""",
    "key": """
        k4 = Reshape(k, heads)
        kh = Transpose <perm = [0, 2, 1, 3]> (k4)
        kt = Transpose <perm = [0, 1, 3, 2]> (kh)""",
    "scale": "",
    "bias": "biased = Add({}, bias_3)",
    "weights": {"bias_3": drawn(1, 1, 8)},
}
EINOPS = {
    "inputs": {"q": "[B,S,24]"},
    "query": """
        q5 = Reshape(q, five)
        parts = Transpose <perm = [2, 0, 3, 1, 4]> (q5)
        qh = Gather <axis = 0> (parts, n0)
        kh = Gather <axis = 0> (parts, n1)
        vh = Gather <axis = 0> (parts, n2)
        kt = Transpose <perm = [0, 1, 3, 2]> (kh)""",
    "key": "",
    "value": "",
    "product": "product = MatMul(qh, kt)",
    "weights": {
        "five": np.array([0, 0, 3, 2, 4]),
        "n0": np.array(0),
        "n1": np.array(1),
        "n2": np.array(2),
    },
}


def stacked(name: str) -> str:
    return f"""
        {name}0, {name}1 = Split <axis = 2> ({name})
        {name}0_ = Unsqueeze({name}0, first)
        {name}1_ = Unsqueeze({name}1, first)
        {name}h = Concat <axis = 0> ({name}0_, {name}1_)"""


AUTOINT = {
    "query": stacked("q"),
    "key": stacked("k") + "\nkt = Transpose <perm = [0, 1, 3, 2]> (kh)",
    "value": stacked("v"),
    "merge": """
        c0, c1 = Split <axis = 0> ({})
        side = Concat <axis = -1> (c0, c1)
        merged = Squeeze(side, first)""",
    "weights": {"first": np.array([0])},
}
SASREC = {
    "inputs": {"x": "[B,S,8]"},
    "residual": """
        first_sequence = Transpose <perm = [1, 0, 2]> ({})
        normed_x = LayerNormalization <axis = -1, epsilon = 1e-08> (x, gamma, beta)
        x_first = Transpose <perm = [1, 0, 2]> (normed_x)
        both = Add(first_sequence, x_first)
        total = Transpose <perm = [1, 0, 2]> (both)""",
}
TF_EINSUM = {
    "query": """
        q4 = Reshape(q, heads)
        q_heads = Transpose <perm = [0, 2, 1, 3]> (q4)
        lead = Shape <start = 0, end = 3> (q_heads)
        token = Shape <start = 2, end = 3> (q_heads)
        grouped = Concat <axis = 0> (open, token, depth)
        qh = Reshape(q_heads, grouped)""",
    "key": """
        k4 = Reshape(k, heads)
        k_heads = Transpose <perm = [0, 2, 3, 1]> (k4)
        turned = Concat <axis = 0> (open, depth, token)
        kt = Reshape(k_heads, turned)""",
    "product": """
        grouped_product = MatMul(qh, kt)
        square = Concat <axis = 0> (lead, token)
        product = Reshape(grouped_product, square)""",
    "context": """
        by_token = Concat <axis = 0> (open, token, token)
        grouped_weights = Reshape({}, by_token)
        grouped_values = Reshape(vh, grouped)
        grouped_context = MatMul(grouped_weights, grouped_values)
        whole = Concat <axis = 0> (lead, depth)
        context = Reshape(grouped_context, whole)""",
    "weights": {"open": np.array([-1]), "depth": np.array([4])},
}
FORMS: dict[str, dict[str, Any]] = {
    "tf2onnx: Einsum as products of [B*h, S, d]": TF_EINSUM,
    "tf2onnx: norm in its batch form": {"norm": BATCH_FORM},
    "tf2onnx: the scale goes into 1/std": {"norm": SCALED_FORM},
    "tf2onnx: tokens flattened to two axes": TF_FLAT,
    "tf2onnx: (1 - mask) * -10000": TF_MASK,
    "Einsum: scores and context": EINSUM_CORE,
    "Einsum: bhid,bhjd->bhij": {
        "key": "k4 = Reshape(k, heads)\nkh = Transpose <perm = [0, 2, 1, 3]> (k4)",
        "product": 'product = Einsum <equation = "b h i d, b h j d -> b h i j"> (qh, kh)',
        "context": 'context = Einsum <equation = "bhij,bhjd->bhid"> ({}, vh)',
    },
    "Keras: MultiHeadAttention": KERAS,
    "paddle2onnx: scale as Mul and Add, bias with three axes": PADDLE,
    "einops: b n (qkv h d) -> qkv b h n d": EINOPS,
    "SASRec: a residual with the sequence first": SASREC,
    "AutoInt: heads stacked in the first axis": AUTOINT,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_it_fuses_with_its_rim(form: dict[str, Any]) -> None:
    found = fused(attention(**form))
    assert found.record.parts == RIM
    assert set(found.record.inputs) >= {*OPERANDS, *WHOLE}
    assert found.attributes["scale"] == pytest.approx(0.5)


def test_keras_biases_go_with_the_projections() -> None:
    """The biases per head are added before the heads are split, so that the operator splits them itself."""
    assert fused(attention(**KERAS)).attributes["layout"] == "BSH"


def test_heads_stacked_in_the_first_axis_are_operands_like_any() -> None:
    assert fused(attention(**AUTOINT)).attributes["layout"] == "BSH"
    guarded = attention(**AUTOINT, guard="undefined = IsNaN({})\nguarded = Where(undefined, zero, {})")
    assert fused(guarded).attributes["masked_row"] == "zero"


def test_heads_put_together_in_another_order_are_no_merge() -> None:
    turned = {**AUTOINT, "merge": AUTOINT["merge"].replace("(c0, c1)", "(c1, c0)")}
    result = onnx_fuse.fuse(attention(**turned))
    assert [match.parts for match in result.report.matches if match.operator == NAME] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": BATCH_FORM.replace("Mul(mean, factor)", "Mul(mean, inverse)")},
        {"norm": BATCH_FORM.replace("Sub(beta, scaled_mean)", "Sub(scaled_mean, beta)")},
        {"norm": BATCH_FORM.replace("axes = [2], keepdims = 1> (square)", "axes = [1], keepdims = 1> (square)")},
        {"norm": SCALED_FORM, "weights": {"gamma": drawn(1)}},
    ],
)
def test_what_merely_looks_like_a_norm_stays_outside(changes: dict[str, Any]) -> None:
    assert fused(attention(**changes)).record.parts == ("projection", "residual")


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("abc,cd->abd", ([2, 3, 4], [4, 5])),
        ("cd,abc->abd", ([4, 5], [2, 3, 4])),
        ("abcd,cde->abe", ([2, 3, 4, 5], [4, 5, 6])),
        ("abc,dec->abde", ([2, 3, 4], [5, 6, 4])),
        ("aecd,abcd->acbe", ([2, 3, 4, 5], [2, 6, 4, 5])),
        ("acbe,aecd->abcd", ([2, 4, 6, 3], [2, 3, 4, 5])),
        ("bij,bkj->bki", ([2, 3, 4], [2, 5, 4])),
        ("bid,bjkd->bkij", ([2, 3, 4], [2, 5, 6, 4])),
        ("a,b->ab", ([3], [4])),
        ("ab,ab->a", ([3, 4], [3, 4])),
    ],
)
@pytest.mark.parametrize("constant", [None, 0, 1])
def test_einsum_is_the_same_products(equation: str, shapes: tuple[list[int], list[int]], constant: int | None) -> None:
    left, right, out = equation.replace("->", ",").split(",")
    given = {"x": drawn(*shapes[0]), "z": drawn(*shapes[1])}
    weights = {name: array for place, (name, array) in enumerate(given.items()) if place == constant}
    inputs = ", ".join(f"float{list(array.shape)} {name}" for name, array in given.items() if name not in weights)
    sizes = dict(zip(left + right, shapes[0] + shapes[1], strict=True))
    text = (
        f'({inputs}) => (float{[sizes[letter] for letter in out]} y) {{ y = Einsum <equation = "{equation}"> (x, z) }}'
    )
    made = helpers.model(text, weights=weights)
    view = helpers.view_of(made)
    assert {node.op_type for node in view.all_nodes()} <= {"MatMul", "Transpose", "Reshape", "Expand"}
    assert view.shape("y") == tuple(sizes[letter] for letter in out)
    assert evaluated(view, "y", given) == pytest.approx(np.einsum(equation, given["x"], given["z"]), abs=1e-5)


def evaluated(view: Any, value: str, known: dict[str, Array]) -> Array:
    """A value of the view, computed with numpy."""
    value = view.resolve(value)
    if value in known:
        return known[value]
    array = view.array_of(value)
    if array is not None:
        return np.asarray(array)
    node = view.producer(value)
    inputs = [evaluated(view, name, known) for name in node.inputs]
    if node.op_type == "MatMul":
        return np.asarray(inputs[0] @ inputs[1])
    if node.op_type == "Transpose":
        return np.asarray(inputs[0].transpose(view.attribute(node, "perm")))
    if node.op_type == "Expand":
        return np.broadcast_to(inputs[0], np.broadcast_shapes(inputs[0].shape, tuple(inputs[1])))
    target = [inputs[0].shape[axis] if dim == 0 else int(dim) for axis, dim in enumerate(inputs[1])]
    return inputs[0].reshape(target)


@pytest.mark.parametrize("equation", ["abc,abc->", "aab,bc->ac", "...b,bc->...c", "ab,bc,cd->ad", "ab,cb->ca,"])
def test_other_einsums_stay(equation: str) -> None:
    made = helpers.model(f'(float[3,3,3] x) => (float[k] y) {{ y = Einsum <equation = "{equation}"> (x, x) }}')
    assert [node.op_type for node in helpers.view_of(made).all_nodes()] == ["Einsum"]


# -- int8 --------------------------------------------------------------------------------------------------------------


class Drawn(CalibrationDataReader):
    """A few random inputs to calibrate with."""

    def __init__(self, model: ModelProto) -> None:
        self.given: Iterator[dict[str, Array]] = iter([helpers.feeds(model, seed, B=2, S=5) for seed in range(4)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.given, None)


def quantised(how: str, folder: Path) -> ModelProto:
    """One block with a projection of the query in front, its projections (and more) quantised by ONNX Runtime's tools."""
    query = """
        qp = MatMul(q, wq)
        qb = Add(qp, bq)
        q4 = Reshape(qb, heads)
        qh = Transpose <perm = [0, 2, 1, 3]> (q4)"""
    mask = {"inputs": {"m": "[B,1,1,S]"}, "mask": "masked = Add({}, m)"}
    made = attention(query=query, weights={"wq": drawn(8, 8), "bq": drawn(8)}, **mask)
    source, target = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(made, source)
    core = [node.name for node in made.graph.node if node.output[0] in ("product", "context")]
    if how == "dynamic":
        quantize_dynamic(source, target)
    else:
        style = QuantFormat.QOperator if how == "QOperator" else QuantFormat.QDQ
        exclude = [] if how == "QDQ, the core too" else core
        quantize_static(source, target, Drawn(made), style, op_types_to_quantize=["MatMul"], nodes_to_exclude=exclude)
    return onnx.load(target)


def integers(model: ModelProto) -> Counter[str]:
    return Counter(
        node.op_type
        for node in model.graph.node
        if node.op_type.startswith(("Quantize", "Dequantize", "Dynamic", "QLinear")) or "Integer" in node.op_type
    )


@pytest.mark.parametrize("how", ["dynamic", "QDQ", "QOperator"])
def test_what_remains_float_fuses_and_no_quantisation_goes(how: str, tmp_path: Path) -> None:
    made = quantised(how, tmp_path)
    assert integers(made)
    result = onnx_fuse.fuse(made, fusions=[NAME])
    assert result.report.fused == {NAME: 1}
    (match,) = result.report.matches
    assert match.parts == ()
    assert any("QuantizeLinear" in sentence for sentence in match.left_out)
    assert integers(result.model) == integers(made)


def test_a_quantised_core_is_left_alone_and_says_so(tmp_path: Path) -> None:
    made = quantised("QDQ, the core too", tmp_path)
    result = onnx_fuse.fuse(made, fusions=[NAME])
    assert result.report.fused == {}
    assert any("quantizelinear" in miss.reason.lower() for miss in result.report.near_misses)


def test_a_weight_that_is_dequantised_is_a_weight() -> None:
    projection = "wide = DequantizeLinear(small, step)\nprojected = MatMul({}, wide)"
    small = np.random.default_rng(1).integers(-99, 99, (8, 8)).astype(np.int8)
    made = attention(projection=projection, weights={"small": small, "step": np.array(0.01, np.float32)})
    found = fused(made)
    assert found.record.parts == RIM
    assert integers(found.model) == {"DequantizeLinear": 1}


# -- opset 23 ----------------------------------------------------------------------------------------------------------


def test_rms_normalization_is_the_norm() -> None:
    found = fused(attention(norm="normed = RMSNormalization <axis = -1, epsilon = 1e-05> ({}, gamma)", opset=23))
    assert (found.attributes["norm"], found.record.parts) == ("rms", RIM)


def test_rotary_embedding_stays_outside() -> None:
    rotate = "qh = RotaryEmbedding (qs, cosines, sines, places)"
    key = "k4 = Reshape(k, heads)\nks = Transpose <perm = [0, 2, 1, 3]> (k4)\nkr = RotaryEmbedding (ks, cosines, sines, places)"
    made = attention(
        inputs={"places": "int64[B,S]"},
        query=f"q4 = Reshape(q, heads)\nqs = Transpose <perm = [0, 2, 1, 3]> (q4)\n{rotate}",
        key=f"{key}\nkt = Transpose <perm = [0, 1, 3, 2]> (kr)",
        weights={"cosines": drawn(64, 2), "sines": drawn(64, 2)},
        opset=23,
    )
    found = fused(made)
    assert (found.attributes["layout"], found.record.parts) == ("BHSD", RIM)
    assert [node.op_type for node in found.model.graph.node].count("RotaryEmbedding") == 2


# -- inside other graphs -----------------------------------------------------------------------------------------------


def nested(kind: str) -> ModelProto:
    """One block as the body of an If, a Loop or a function of the model."""
    block = attention()
    nodes, output = list(block.graph.node), block.graph.output[0]
    inputs = list(block.graph.input)
    make = onnx.helper
    y = make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["B", "S", 8])
    functions = []
    if kind == "If":
        other = make.make_graph(
            [make.make_node("Identity", ["x"], ["kept"])], "else", [], [onnx.ValueInfoProto(name="kept")]
        )
        then = make.make_graph(nodes, "then", [], [onnx.ValueInfoProto(name=output.name)])
        inputs.append(make.make_tensor_value_info("yes", onnx.TensorProto.BOOL, []))
        outer = [make.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)]
    elif kind == "Loop":
        carried = make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", "S", 8])
        turn = make.make_tensor_value_info("turn", onnx.TensorProto.INT64, [])
        go = make.make_tensor_value_info("go", onnx.TensorProto.BOOL, [])
        still = make.make_tensor_value_info("still", onnx.TensorProto.BOOL, [])
        body = [*nodes, make.make_node("Identity", ["go"], ["still"])]
        loop = make.make_graph(body, "body", [turn, go, carried], [still, output])
        outer = [make.make_node("Loop", ["times", "", "x0"], ["y"], body=loop)]
        inputs = [value for value in inputs if value.name != "x"]
        inputs.append(make.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, ["B", "S", 8]))
        block.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2), "times"))
    else:
        names = [value.name for value in inputs]
        constants = [make.make_node("Constant", [], [item.name], value=item) for item in block.graph.initializer]
        imports = [make.make_opsetid("", 17)]
        functions = [make.make_function("own", "Block", names, [output.name], [*constants, *nodes], imports)]
        outer = [make.make_node("Block", names, ["y"], domain="own")]
    graph = make.make_graph(outer, "main", inputs, [y], list(block.graph.initializer))
    imports = [make.make_opsetid("", 17), make.make_opsetid("own", 1)]
    return make.make_model(graph, opset_imports=imports, ir_version=10, functions=functions)


@pytest.mark.parametrize("kind", ["If", "Loop", "function"])
def test_attention_inside_another_graph(kind: str) -> None:
    made = nested(kind)
    result = onnx_fuse.fuse(made, fusions=[NAME])
    assert result.report.fused == {NAME: 1}, [miss.reason for miss in result.report.near_misses]
    assert result.report.matches[0].graph
    onnx.checker.check_model(result.model)


def test_a_function_called_with_other_shapes_is_left_alone() -> None:
    """What fits one call need not fit the other: only what they agree on is known."""
    made = nested("function")
    call = made.graph.node[0]
    names = [f"{name}_2" for name in call.input]
    made.graph.node.append(onnx.helper.make_node("Block", names, ["z"], domain="own"))
    made.graph.input.extend(onnx.helper.make_tensor_value_info(name, 1, ["B", "T", "H"]) for name in names)
    made.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["B", "T", 8]))
    result = onnx_fuse.fuse(made, fusions=[NAME], verify=False)
    assert result.report.fused == {}
