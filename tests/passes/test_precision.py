"""Converting a float32 model: what computes in the narrow type, what stays float32, and that the result is valid and close."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.passes.precision import Converted, convert, precision_of, quantized_types, rounded
from onnx_fuse.runtime.verify.accuracy import measure
from tests.helpers import copied, model

RANDOM = np.random.default_rng(0)
WEIGHTS = {"W": RANDOM.normal(size=(8, 8)).astype(np.float32)}
OPERATORS = {fusion.operator.name: fusion.operator for fusion in onnx_fuse.fusions()}
TYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


def converted(made: ModelProto, precision: str = "float16") -> Converted:
    """The converted model, which must be valid, types included, and have the interface of the model, which must not change."""
    before = made.SerializeToString(deterministic=True)
    done = convert(made, precision)
    assert made.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(done.model, full_check=True)
    assert done.model.graph.input == made.graph.input and done.model.graph.output == made.graph.output
    return done


def computes_in(made: ModelProto) -> dict[str, str]:
    """Original name of what each node makes -> the type that it is made in; casts left out."""
    inferred = onnx.shape_inference.infer_shapes(made, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    return {
        name.split("__")[0]: TYPES.get(types[name], "other")
        for node in made.graph.node
        if not node.name.endswith(".cast")
        for name in node.output
    }


def test_products_are_narrow_and_what_is_between_them() -> None:
    made = model(
        "(float[n, 8] x) => (float[n, 8] y) { h = MatMul(x, W) r = Relu(h) s = Sigmoid(r) g = Mul(r, s) y = MatMul(g, W) }",
        weights=WEIGHTS,
    )
    for precision in ("float16", "bfloat16"):
        done = converted(made, precision)
        assert set(computes_in(done.model).values()) == {precision}
        assert (done.narrow, done.wide, done.kept) == (5, 0, {})


def test_norms_and_softmax_stay_float32_whole_or_written_out() -> None:
    made = model(
        """(float[n, 8] x) => (float[n, 8] y) {
            h = MatMul(x, W)
            mean = ReduceMean<axes=[-1]>(h)  centred = Sub(h, mean)
            two = Constant<value_float=2.0>()  square = Pow(centred, two)  variance = ReduceMean<axes=[-1]>(square)
            tiny = Constant<value_float=1e-12>()  shifted = Add(variance, tiny)  root = Sqrt(shifted)
            normed = Div(centred, root)  scaled = Mul(normed, gamma)
            p = MatMul(scaled, W)
            soft = Softmax(p)
            q = MatMul(soft, W)
            ln = LayerNormalization(q, gamma)
            sum = Add(q, ln)
            y = MatMul(sum, W)
        }""",
        weights={**WEIGHTS, "gamma": np.ones(8, np.float32)},
    )
    done = converted(made)
    kinds = computes_in(done.model)
    narrow = {name for name, kind in kinds.items() if kind == "float16"}
    assert narrow == {"h", "p", "q", "sum", "y"}
    assert measure(made, done, "float16").worst < 1e-2


def test_constants_that_do_not_fit_keep_their_node_in_float32() -> None:
    made = model(
        """(float[n, 8] x, bool[n, 8] keep) => (float[n, 8] y, float[n, 8] z) {
            s = MatMul(x, W)
            low = Constant<value_float=-3.4e38>()  masked = Where(keep, s, low)
            out = Constant<value_float=-1e4>()  fine = Where(keep, s, out)
            tiny = Constant<value_float=1e-9>()  z = Add(s, tiny)
            y = Add(masked, fine)
        }""",
        weights=WEIGHTS,
    )
    kinds = computes_in(converted(made).model)
    assert kinds["masked"] == kinds["z"] == "float32" and kinds["fine"] == kinds["s"] == "float16"
    kinds = computes_in(converted(made, "bfloat16").model)
    assert (kinds["masked"], kinds["z"]) == ("float32", "bfloat16")  # it reaches to 3.39e38


def test_numbers_made_of_integers_stay_exact() -> None:
    made = model(
        "(int64[n] ids, float[n] x) => (float[n] y, int64[n] place) { f = Cast<to=1>(ids) y = Mul(f, x) t = Neg(x) place = Cast<to=7>(t) }"
    )
    kinds = computes_in(converted(made).model)
    assert (kinds["f"], kinds["y"], kinds["t"]) == ("float32", "float32", "float16")


def test_quantised_nodes_are_left_as_they_are() -> None:
    made = model(
        """(float[n, 8] x) => (float[n, 8] y) {
            q = QuantizeLinear(x, scale, zero)  d = DequantizeLinear(q, scale, zero)
            w = DequantizeLinear(Wq, scale, zero)  wt = Transpose<perm=[1, 0]>(w)
            h = MatMul(d, wt)
            r = Relu(h)
            y = MatMul(r, W)
        }""",
        weights={
            **WEIGHTS,
            "Wq": RANDOM.integers(-9, 9, (8, 8)).astype(np.int8),
            "scale": np.array(0.1, np.float32),
            "zero": np.array(0, np.int8),
        },
    )
    done = converted(made)
    assert [node for node in done.model.graph.node if "Linear" in node.op_type] == [
        node for node in made.graph.node if "Linear" in node.op_type
    ]
    kinds = computes_in(done.model)
    assert kinds["h"] == kinds["wt"] == "float32" and kinds["y"] == "float16"
    assert (
        quantized_types(made) == {"int8"}
        and quantized_types(model("(float[n] x) => (float[n] y) { y = Relu(x) }")) == set()
    )


def test_subgraphs_read_float32() -> None:
    made = model(
        """(float[n, 8] x, bool c) => (float[n, 8] y) {
            h = MatMul(x, W)
            y = If (c) <then_branch = yes () => (float[n, 8] a) { a = Relu(h) }, else_branch = no () => (float[n, 8] b) { b = Neg(h) }>
        }""",
        weights=WEIGHTS,
    )
    done = converted(made)
    assert done.narrow == 1 and measure(made, done, "float16").worst < 1e-2


def test_operators_without_the_type_are_counted() -> None:
    text = "(float[n, 1, 5, 5] x) => (float[n, 1, 5, 5] y) { h = Conv<pads=[1, 1, 1, 1]>(x, K) y = Relu(h) }"
    kernel = {"K": np.ones((1, 1, 3, 3), np.float32)}
    assert converted(model(text, weights=kernel)).narrow == 2
    done = converted(model(text, weights=kernel), "bfloat16")
    assert done.narrow == 0 and dict(done.kept) == {"ONNX has no Conv in bfloat16 in opset 17": 1}
    assert converted(model(text, weights=kernel, opset=22), "bfloat16").narrow == 2


def test_resize_keeps_its_scales() -> None:
    made = model(
        '(float[1, 1, n, 4] x) => (float[1, 1, m, k] y) { y = Resize<mode="nearest">(x, "", scales) }',
        weights={"scales": np.array([1, 1, 2, 2], np.float32)},
    )
    assert computes_in(converted(made).model)["y"] == "float16"


def fused(name: str, shapes: dict[str, list[object]], attributes: dict[str, object], opset: int = 17) -> ModelProto:
    """One fused node with its body; inputs of fewer than two axes are weights."""
    operator = OPERATORS[name]
    weights = {key: np.ones(dims, np.float32) for key, dims in shapes.items() if len(dims) < 2}
    inputs = [helper.make_tensor_value_info(key, 1, dims) for key, dims in shapes.items() if key not in weights]
    node = operator.make_node({key: key for key in shapes}, {operator.outputs[0]: "y"}, attributes, "node")
    body = operator.make_function(list(shapes), operator.outputs[:1], attributes, {"": opset}, TensorProto.FLOAT)
    out = helper.make_tensor_value_info("y", 1, next(dims for dims in shapes.values() if len(dims) > 1))
    held = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    graph = helper.make_graph([node], "g", inputs, [out], held)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("gr.ml.infra", 1)]
    return helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=10)


ATTENTION = {
    "num_heads": 2,
    "num_key_value_heads": 2,
    "scale": 0.5,
    "mask_value": -3.4e38,
    "causal": "none",
    "masked_row": "uniform",
    "norm": "layer",
    "epsilon": 1e-12,
    "layout": "BSH",
}


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_fused_nodes_keep_their_float32_parts(precision: str) -> None:
    sizes: dict[str, list[object]] = {name: ["n", "s", 8] for name in ("query", "key", "value")}
    made = fused("FusedAttentionLayerNorm", {**sizes, "residual": ["n", "s", 8], "gamma": [8], "beta": [8]}, ATTENTION)
    done = converted(made, precision)
    node = next(node for node in done.model.graph.node if node.op_type == "FusedAttentionLayerNorm")
    assert [name.split("__")[-1] for name in node.input] == [precision] * 4 + ["gamma", "beta"]
    assert node.attribute == made.graph.node[0].attribute
    assert measure(made, done, precision).worst < 3e-2


def test_a_bias_in_float32_is_not_narrowed() -> None:
    """The -3.4e38 of a mask made at run time would become -inf, and a row that is masked whole NaN."""
    sizes: dict[str, list[object]] = {name: ["n", "s", 8] for name in ("query", "key", "value")}
    made = fused(
        "FusedAttentionLayerNorm", {**sizes, "attention_bias": ["n", 1, 1, "s"]}, {**ATTENTION, "norm": "none"}
    )
    made.graph.input[3].CopyFrom(helper.make_tensor_value_info("mask", TensorProto.INT64, ["n", 1, 1, "s"]))
    low = numpy_helper.from_array(np.array(-3.4e38, np.float32), "low")
    one = numpy_helper.from_array(np.array(1, np.int64), "one")
    made.graph.initializer.extend([low, one])
    steps = [
        ("Sub", ["one", "mask"], "drop", {}),
        ("Cast", ["drop"], "drop_f", {"to": 1}),
        ("Mul", ["drop_f", "low"], "attention_bias", {}),
    ]
    node = copied(made).graph.node[0]
    del made.graph.node[:]
    made.graph.node.extend([*(helper.make_node(op, inputs, [out], **more) for op, inputs, out, more in steps), node])
    done = converted(made)
    assert "attention_bias" in done.model.graph.node[-2].input  # the last one casts the output
    accuracy = measure(made, done, "float16")
    assert accuracy.skipped is None and accuracy.broken == () and accuracy.worst < 1e-2


def test_a_body_written_for_float32_stays() -> None:
    """Before opset 15 there is no CastLike, so the type is written into the body."""
    done = converted(fused("FusedSwish", {"x": ["n", 8]}, {"beta": 1.0}, opset=13))
    assert done.narrow == 0 and dict(done.kept) == {"FusedSwish is not known to take another type": 1}
    assert converted(fused("FusedSwish", {"x": ["n", 8]}, {"beta": 1.0}, opset=15)).narrow == 1


def test_weights_in_external_data_are_not_read(tmp_path: Path) -> None:
    made = model(
        "(float[n, 512] x) => (float[n, 600] y) { y = MatMul(x, W) }", weights={"W": np.ones((512, 600), np.float32)}
    )
    onnx.save_model(made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
    unread = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    (tmp_path / "w.bin").unlink()
    done = convert(unread, "float16", base_dir=tmp_path)
    assert done.narrow == 1 and done.model.graph.initializer == unread.graph.initializer


def test_bfloat16_is_emulated_to_the_bit() -> None:
    made = model("(float[n] x, float[n] w) => (float[n] y) { y = Mul(x, w) }")
    x, w = RANDOM.normal(size=(2, 1000)).astype(np.float32)
    session = ort.InferenceSession(rounded(converted(made, "bfloat16"), "bfloat16").SerializeToString())
    expected = (x.astype(ml_dtypes.bfloat16) * w.astype(ml_dtypes.bfloat16)).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x, "w": w})[0], expected)


def test_overflow_is_told() -> None:
    made = model(
        "(float[n, 8] x) => (float[n, 8] y) { h = MatMul(x, W) y = Mul(h, h) }", weights={"W": WEIGHTS["W"] * 1e3}
    )
    accuracy = measure(made, converted(made), "float16")
    assert accuracy.skipped is None and "output y has other NaN or infinite values" in accuracy.broken[0]
    assert measure(made, converted(made, "bfloat16"), "bfloat16").broken == ()


def test_a_model_that_cannot_be_run_is_not_measured() -> None:
    made = model("(float[n] x) => (float[n] y) { h = Neg(x) y = my.ops.Unknown(h) }")
    accuracy = measure(made, convert(made, "float16"), "float16")
    assert accuracy.cases == 0 and accuracy.skipped is not None and "Unknown" in accuracy.skipped


def test_models_of_another_type() -> None:
    half = model(
        "(float16[n, 2] x) => (float16[n, 2] y) { y = MatMul(x, W) }", weights={"W": np.ones((2, 2), np.float16)}
    )
    assert precision_of(half) == "float16"
    with pytest.raises(UsageError, match="is in float16, which is not converted to bfloat16"):
        convert(half, "bfloat16")
    assert convert(half, "float16").model == half
