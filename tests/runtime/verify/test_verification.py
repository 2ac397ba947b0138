"""Verification: equal models pass, every planted error is found and named, and nothing passes without evidence."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, parser

import onnx_fuse
from onnx_fuse.errors import ModelError, UsageError, VerificationError
from onnx_fuse.runtime.verify.record import Case
from onnx_fuse.runtime.verify.reference import Evidence
from onnx_fuse.runtime.verify.verification import Suspects, Verification, bisect, verify
from tests import helpers
from tests.trust import mutations

HIDDEN, IDS = 16, 13


def text(body: str, inputs: str = "float[n,4] x", outputs: str = "float[n,4] y", functions: str = "") -> ModelProto:
    header = '<ir_version: 9, opset_import: ["" : 18, "gr.ml.infra" : 1]>'
    return parser.parse_model(f"{header} g ({inputs}) => ({outputs}) {{ {body} }} {functions}")


def weights(model: ModelProto, kind: Any = np.float32, **more: np.ndarray) -> ModelProto:
    random = np.random.default_rng(7)
    shapes = {"table": (IDS, HIDDEN), "beta": (HIDDEN,)}
    shapes |= {f"w{i}": (HIDDEN, HIDDEN) for i in range(4)}
    arrays = {name: random.normal(0, 0.4, shape) for name, shape in shapes.items()}
    arrays["gamma"] = random.normal(1, 0.2, HIDDEN)
    arrays |= more
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(kind), name) for name, a in arrays.items())
    return model


def layer(
    *,
    epsilon: float = 1e-5,
    scale: float = 0.5,
    mask_value: float = -1e4,
    heads: int = 4,
    gamma: float = 1.0,
    layers: int = 1,
    kind: str = "float",
) -> ModelProto:
    """Ids and a padding mask, embedded, through post-LN self-attention, with what may go wrong as a parameter."""
    to = {"float": 1, "float16": 10, "bfloat16": 16}[kind]
    body = f"""
        heads_apart = Constant <value_ints = [0, 0, {heads}, {HIDDEN // heads}]> ()
        together = Constant <value_ints = [0, 0, {HIDDEN}]> ()
        axes = Constant <value_ints = [1, 2]> ()
        f_scale = Constant <value_float = {scale}> ()  scale = Cast <to = {to}> (f_scale)
        f_low = Constant <value_float = {mask_value!r}> ()  low = Cast <to = {to}> (f_low)
        f_one = Constant <value_float = 1.0> ()  one = Cast <to = {to}> (f_one)
        f_gain = Constant <value_float = {gamma}> ()  gain = Cast <to = {to}> (f_gain)
        gammas = Mul(gamma, gain)
        keep = Cast <to = {to}> (attention_mask)  keep4 = Unsqueeze(keep, axes)
        leave = Sub(one, keep4)  bias = Mul(leave, low)
        x0 = Gather(table, input_ids)
    """
    for i in range(layers):
        for part, weight in (("q", "w0"), ("k", "w1"), ("v", "w2")):
            turned = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
            body += f"""
                {part}{i}_a = MatMul(x{i}, {weight})  {part}{i}_b = Reshape({part}{i}_a, heads_apart)
                {part}{i} = Transpose <perm = {turned}> ({part}{i}_b)
            """
        body += f"""
            s{i} = MatMul(q{i}, k{i})  t{i} = Mul(s{i}, scale)  u{i} = Add(t{i}, bias)
            p{i} = Softmax <axis = -1> (u{i})  z{i} = MatMul(p{i}, v{i})
            m{i}_a = Transpose <perm = [0, 2, 1, 3]> (z{i})  m{i} = Reshape(m{i}_a, together)
            o{i} = MatMul(m{i}, w3)  r{i} = Add(o{i}, x{i})
            x{i + 1} = LayerNormalization <axis = -1, epsilon = {epsilon}> (r{i}, gammas, beta)
        """
    body += f"y = Identity(x{layers})"
    model = text(
        body,
        "int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask",
        f"{kind}[batch,sequence,{HIDDEN}] y",
    )
    return weights(model, onnx.helper.tensor_dtype_to_np_dtype(to))


def norm(epsilon: float = 1e-5) -> ModelProto:
    return weights(
        text(
            f"y = LayerNormalization <axis = -1, epsilon = {epsilon}> (x, gamma, beta)",
            f"float[n,{HIDDEN}] x",
            f"float[n,{HIDDEN}] y",
        )
    )


def problem(original: ModelProto, fused: ModelProto, **options: Any) -> str:
    found = verify(original, fused, **options)
    assert not found.passed
    with pytest.raises(VerificationError) as error:
        found.raise_if_failed()
    assert error.value.remedy
    assert "\n" not in error.value.cause
    return error.value.cause


# --- equal and unequal -----------------------------------------------------------------------------------------------


def test_equal_models_pass_on_several_shapes_and_paddings() -> None:
    found = verify(layer(), layer())
    assert found.passed
    found.raise_if_failed()
    assert found.skipped is found.problem is found.culprit is None
    assert {case.shapes["input_ids"][0] for case in found.cases} >= {1, 2, 3}
    assert {case.shapes["input_ids"][1] for case in found.cases} >= {1, 7, 16, 33}
    assert all(case.shapes["input_ids"] == case.shapes["attention_mask"] for case in found.cases)
    names = " ".join(case.name for case in found.cases)
    assert all(kind in names for kind in ("left padding", "right padding", "inner padding", "a row masked out"))
    assert found.seconds > 0
    assert found.bytes_needed > 0


def test_the_record_is_json_and_text() -> None:
    found = verify(layer(), layer(scale=0.6))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(data) >= {"passed", "skipped", "problem", "culprit", "cases", "rejected", "worst", "seconds"}
    assert data["worst"]["y"]["max_abs"] > 0
    assert data["cases"][0]["shapes"]["input_ids"] == [1, 7]
    assert verify(text("y = Unheard(x)"), text("y = Exp(x)")).summary()[0].startswith("not proven")
    lines = found.summary()
    assert lines[0].startswith("NOT equal: 11 cases")
    assert any(line.startswith("  y: differs, max abs") for line in lines)
    assert verify(layer(), layer()).summary()[0].startswith("equal: 11 cases")


def test_the_seed_decides_everything() -> None:
    def record(seed: int) -> dict[str, Any]:
        data = verify(layer(), layer(scale=0.6), seed=seed).to_dict()
        return {key: data[key] for key in ("cases", "worst", "problem")}

    assert record(3) == record(3)
    assert record(3) != record(4)


@pytest.mark.parametrize("kind", ["float", "bfloat16"])
@pytest.mark.parametrize(
    "mistake",
    [{"epsilon": 1e-3}, {"scale": 1.0}, {"scale": 0.51}, {"mask_value": -1.0}, {"heads": 2}, {"gamma": 1.01}],
    ids=str,
)
def test_planted_errors_are_found(mistake: dict[str, Any], kind: str) -> None:
    assert problem(layer(kind=kind), layer(kind=kind, **mistake)).startswith("output 'y' differs by")


def test_a_wrong_epsilon_is_found_in_small_data() -> None:
    assert verify(norm(), norm()).passed
    assert "data x 0.01" in problem(norm(1e-5), norm(2e-5))


def test_minus_infinity_and_a_large_number_differ_where_a_row_is_masked_out() -> None:
    infinite = layer(mask_value=-3e38)
    low = next(node for node in infinite.graph.node if "f_low" in node.output)
    low.attribute[0].f = -np.inf
    # 0 * inf is NaN: where the mask keeps all, the bias must be 0 as it is with a finite value.
    for model in (infinite, guarded := layer(mask_value=-3e38)):
        bias = next(node for node in model.graph.node if "bias" in node.output)
        bias.op_type, bias.input[:] = "Where", ["masked", "low", "zero"]
        model.graph.node.insert(
            list(model.graph.node).index(bias), onnx.helper.make_node("Cast", ["leave"], ["masked"], to=9)
        )
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "zero"))
    assert verify(infinite, infinite).passed  # NaN in the same places is right
    assert "NaN or infinite" in problem(infinite, guarded)
    assert "a row masked out" in problem(infinite, guarded)


def attended(mask: str, form: str) -> ModelProto:
    return parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[2, 1, s, 4] q, bool[2, 1, s, s] attention_mask) => (float[2, 1, s, 4] y)
        <float low = {{-3.4028234663852886e38}}, float none = {{0.0}}>
        {{ added = Where(attention_mask, none, low) {form.format(mask=mask)} }}
    """)


def test_what_onnx_runtime_gives_for_a_row_masked_by_the_lowest_number_counts_for_nothing() -> None:
    attention = "y = Attention <scale = 1.0> (q, q, q, {mask})"
    parts = """
        t = Transpose <perm = [0, 1, 3, 2]> (q)  s = MatMul(q, t)  m = Add(s, {mask})
        p = Softmax <axis = -1> (m)  y = MatMul(p, q)
    """
    found = verify(attended("added", attention), attended("added", parts))
    assert found.passed and not any("a row masked" in case.name for case in found.cases)
    assert found.notes and "a row masked out" in found.notes[0]
    boolean = attended("attention_mask", attention)
    found = verify(boolean, boolean)
    assert found.passed and any("a row masked" in case.name for case in found.cases) and found.notes == []
    assert "a row masked out" in problem(boolean, attended("added", parts))


def test_half_precision_has_its_own_tolerance() -> None:
    found = verify(layer(kind="float16"), layer(kind="float16", gamma=1.002))
    assert found.passed
    assert 1e-4 < found.worst["y"].relative < found.rtol
    assert "differs by" in problem(layer(kind="float16"), layer(kind="float16", heads=2))
    assert "differs by" in problem(layer(), layer(gamma=1.002))


def test_bfloat16_is_compared_in_float32() -> None:
    found = verify(layer(kind="bfloat16"), layer(kind="bfloat16"))
    assert found.passed
    assert "float32" in found.notes[0]
    assert found.rtol < 1e-3


def test_an_output_of_zeros_fails() -> None:
    assert "100 % of its largest" in problem(text("y = Exp(x)"), text("z = Sub(x, x) y = Mul(z, x)"))


def test_integers_and_flags_must_be_equal() -> None:
    body = "z = Constant <value_float = {}> () y = {} (x, z)"
    argmax = "t = {}(x) y = ArgMax <axis = 1, keepdims = 0> (t)"
    kept = verify(
        text(argmax.format("Identity"), outputs="int64[n] y"), text(argmax.format("Exp"), outputs="int64[n] y")
    )
    assert kept.passed
    assert "int64 must be equal" in problem(
        text(argmax.format("Identity"), outputs="int64[n] y"), text(argmax.format("Neg"), outputs="int64[n] y")
    )
    flags = [text(body.format(0.0, op), outputs="bool[n,4] y") for op in ("Greater", "Less")]
    assert "bool must be equal" in problem(*flags)


def test_shape_type_and_names_of_outputs_must_be_equal() -> None:
    original = text("y = Exp(x)")
    assert "was float32[1, 4]" in problem(original, text("t = Exp(x) y = Transpose(t)", outputs="float[a,b] y"))
    double = text("t = Exp(x) y = Cast <to = 11> (t)", outputs="double[n,4] y")
    assert "is float64" in problem(original, double)
    assert "outputs ['z']" in problem(original, text("z = Exp(x)", outputs="float[n,4] z"))
    assert "inputs ['x', 'u']" in problem(original, text("y = Exp(x)", inputs="float[n,4] x, float[n] u"))


def test_a_fused_model_that_does_not_load_or_run_fails() -> None:
    original = text("y = Exp(x)")
    assert "cannot be loaded: " in problem(original, text("y = Unheard(x)"))
    shape = "s = Constant <value_ints = [3, 4]> () t = Reshape(x, s) y = Exp(t)"
    assert "does not run (x [1, 4]): " in problem(original, text(shape))


def test_an_error_that_later_layers_hide_is_found_inside() -> None:
    """Two layers in fused nodes; the first is wrong by 1 %, and the second takes almost all of it away."""

    def fused(factor: float) -> ModelProto:
        bodies = "".join(
            f'<domain: "gr.ml.infra", opset_import: ["" : 18]> {name} (a) => (b) '
            f"{{ f = Constant <value_float = {value}> () b = Mul(a, f) }}"
            for name, value in (("First", factor), ("Second", 1e-6))
        )
        return text("t = gr.ml.infra.First(x) u = gr.ml.infra.Second(t) y = Add(x, u)", functions=bodies)

    plain = "f = Constant <value_float = 2.0> () s = Constant <value_float = 1e-6> ()"
    original = text(f"{plain} t = Mul(x, f) u = Mul(t, s) y = Add(x, u)")
    right = verify(original, fused(2.0))
    assert right.passed
    assert {name for name, one in right.worst.items() if one.inner} == {"t", "u"}
    assert problem(original, fused(2.02)).startswith("inner value 't' differs by")
    assert any("worst of 2 inner values" in line for line in verify(original, fused(2.02)).summary())
    cause = problem(original, fused(1e5))
    assert cause.startswith("output 'y' differs by")
    assert "; the first fused node that differs is gr.ml.infra::First t, whose value 't' differs by" in cause


# --- no evidence, no pass --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("z = Sub(x, x) o = Cos(z) y = Identity(o)", "constant, empty or not finite"),
        ("a = Abs(x) z = Neg(a) y = Sqrt(z)", "constant, empty or not finite"),
        ("s = Constant <value_ints = [-1, 5, 7919]> () t = Reshape(x, s) y = Identity(x)", "runs on none of"),
        ("y = Unheard(x)", "cannot be run"),
    ],
)
def test_without_evidence_the_result_is_inconclusive(body: str, sentence: str) -> None:
    cause = problem(text(body), text(body))
    assert cause.startswith("inconclusive")
    assert sentence in cause


def test_inputs_that_are_no_tensors_are_inconclusive() -> None:
    model = text("y = SequenceLength(x)", "seq(float[n]) x", "int64 y")
    assert problem(model, model).startswith("inconclusive: input 'x' is a sequence_type")


def test_outputs_that_tell_nothing_are_noted() -> None:
    body = "y = Exp(x) z = Sub(x, x)"
    model = text(body, outputs="float[n,4] y, float[n,4] z")
    found = verify(model, model)
    assert found.passed
    assert found.notes == ["constant, empty or not finite in all cases: z."]


def test_integer_outputs_alone_are_no_evidence_for_floating_point_ones() -> None:
    model = text("y = Identity(i) s = Sub(x, x)", "float[n,4] x, int64[n,4] i", "int64[n,4] y, float[n,4] s")
    assert "constant" in problem(model, model)


def test_draws_that_the_original_refuses_are_dropped_and_reported() -> None:
    body = "s = Constant <value_ints = [0, 2, -1]> () y = Reshape(x, s)"
    model = text(body, "float[batch,sequence] x", "float[a,b,c] y")
    found = verify(model, model)
    assert found.passed
    assert len(found.cases) >= 2
    assert all(case.shapes["x"][1] % 2 == 0 for case in found.cases)
    assert found.rejected
    assert "Reshape" in found.rejected[0].reason
    assert any("draws that the original cannot run on" in line for line in found.summary())


def test_a_length_that_the_exporter_wrote_down_is_found() -> None:
    body = "s = Constant <value_ints = [0, 52]> () t = Reshape(x, s) y = Exp(t)"
    model = text(body, "float[batch,sequence] x", "float[a,b] y")
    found = verify(model, model)
    assert found.passed
    assert [case.shapes["x"] for case in found.cases][:2] == [(1, 52), (3, 52)]


def test_names_that_must_agree_are_made_to() -> None:
    model = text("y = Add(x, z)", "float[batch,s] x, float[batch_1,t] z", "float[a,b] y")
    found = verify(model, model)
    assert found.passed
    assert (3, 16) in {case.shapes["z"] for case in found.cases}


def test_ids_out_of_an_unknown_table_are_narrowed() -> None:
    """The first of two features has a table of two rows inside one table; only 0 and 1 are allowed."""
    body = "offset = Constant <value_ints = [0, 11]> () j = Add(ids, offset) t = Identity(ids) e = Gather(table, j) "
    body += "f = Gather(table, t) y = Add(e, f)"
    model = weights(text(body, "int64[n,2] ids", f"float[n,2,{HIDDEN}] y"))
    found = verify(model, model)
    assert found.passed
    assert found.rejected
    assert "out of data bounds" in found.rejected[0].reason


def test_a_model_of_one_shape_is_compared_on_other_data() -> None:
    """Twice, and once with the ends of the table alone."""
    model = weights(text("y = Gather(table, ids)", "int64[2,5] ids", f"float[2,5,{HIDDEN}] y"))
    assert len(verify(model, model).cases) == 3


# --- the user's inputs -----------------------------------------------------------------------------------------------


def test_given_inputs_are_compared_first(tmp_path: Path) -> None:
    arrays = {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.array([[1, 1, 0]])}
    np.savez(tmp_path / "x.npz", **arrays)
    for inputs in (arrays, tmp_path / "x.npz", str(tmp_path / "x.npz"), {k: v.tolist() for k, v in arrays.items()}):
        found = verify(layer(), layer(), inputs=inputs)
        assert found.passed
        assert found.cases[0].name == "given inputs"
        assert found.cases[0].shapes == {"input_ids": (1, 3), "attention_mask": (1, 3)}
        assert len(found.cases) > 1
    assert "(given inputs)" in problem(layer(), layer(heads=2), inputs=arrays)


def test_given_inputs_rescue_a_model_that_no_draw_fits() -> None:
    body = "s = Constant <value_ints = [7, 11, 13]> () y = Reshape(x, s)"
    model = text(body, "float[n] x", "float[a,b,c] y")
    assert problem(model, model).startswith("inconclusive")
    found = verify(model, model, inputs={"x": np.arange(1001, dtype=np.float32)})
    assert found.passed
    assert found.rejected


@pytest.mark.parametrize(
    ("inputs", "cause", "remedy"),
    [
        ({"x": np.ones((2, 4), np.float32), "y": 1}, "no input 'y'", "x float32[n, 4]"),
        ({}, "'x' is not among", "x float32[n, 4]"),
        ({"x": np.ones((2, 4))}, "float64[2, 4]", "float32[n, 4]"),
        ({"x": np.ones((2, 5), np.float32)}, "float32[2, 5]", "float32[n, 4]"),
        ({"x": np.ones(4, np.float32)}, "float32[4]", "float32[n, 4]"),
        ("nowhere.npz", "nowhere.npz: cannot be read", "numpy.savez"),
    ],
)
def test_given_inputs_that_do_not_fit(inputs: Any, cause: str, remedy: str) -> None:
    with pytest.raises(UsageError) as error:
        verify(text("y = Exp(x)"), text("y = Exp(x)"), inputs=inputs)
    assert cause in error.value.cause
    assert remedy in error.value.remedy


def test_given_files_that_are_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    for name in ("one.npy", "text.npz", "objects.npz"):
        with pytest.raises(UsageError, match=name):
            verify(text("y = Exp(x)"), text("y = Exp(x)"), inputs=tmp_path / name)


def test_given_inputs_that_the_original_refuses() -> None:
    model = text("y = Add(x, z)", "float[n,4] x, float[m,4] z")
    with pytest.raises(UsageError, match=r"does not run on the given inputs: .*Add"):
        verify(model, model, inputs={"x": np.ones((2, 4), np.float32), "z": np.ones((3, 4), np.float32)})


# --- models ----------------------------------------------------------------------------------------------------------


def test_external_data_is_used_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, temporary = tmp_path / "model", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    path = folder / "m.onnx"
    onnx.save(layer(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    original = onnx.load(path, load_external_data=False)
    before = original.SerializeToString()
    fused = onnx.load(path, load_external_data=False)
    monkeypatch.chdir(tmp_path)
    files = [sorted(os.listdir(place)) for place in (folder, temporary, tmp_path)]
    assert verify(original, fused, original_dir="model").passed
    assert verify(original, fused, original_dir=folder, fused_dir=folder).passed
    assert verify(path, fused).passed
    assert verify(path, path).passed
    assert problem(path, layer(heads=2)).startswith("output 'y'")
    assert [sorted(os.listdir(place)) for place in (folder, temporary, tmp_path)] == files
    assert original.SerializeToString() == before


def test_a_bfloat16_model_keeps_its_weights_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(layer(kind="bfloat16"), path, save_as_external_data=True, location="m.data", size_threshold=0)
    before = path.read_bytes()
    assert verify(path, path).passed
    assert "'y' differs" in problem(path, layer(kind="bfloat16", heads=2))
    assert path.read_bytes() == before


def test_unreadable_models_are_model_errors(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_text("no model")
    for path in (tmp_path / "nothing.onnx", tmp_path / "bad.onnx"):
        with pytest.raises(ModelError):
            verify(path, layer())
        with pytest.raises(ModelError):
            verify(layer(), path)


def test_too_little_memory_skips_with_the_reason() -> None:
    found = verify(layer(), layer(heads=2), memory_limit=1 << 20)
    assert not found.passed
    assert found.skipped is not None
    assert "of memory, 0.0 GB is available" in found.skipped
    assert found.cases == ()
    found.raise_if_failed()  # no failure: nothing was compared
    assert found.summary() == [f"not verified: {found.skipped}"]


def test_weights_larger_than_memory_are_not_even_opened() -> None:
    model = text("y = MatMul(x, w)", "float[n,4] x", "float[n,m] y")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 1 << 50], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="not.there")
    model.graph.initializer.append(tensor)
    assert verify(model, model).skipped is not None


# --- who is to blame -------------------------------------------------------------------------------------------------


def chain(wrong: Sequence[str], built: list[int] | None = None) -> Callable[[Sequence[str]], ModelProto]:
    """A model of ten steps; a "rewrite" of a step in `wrong` gives it another factor."""

    def build(names: Sequence[str]) -> ModelProto:
        if built is not None:
            built.append(len(names))
        body = "t0 = Identity(x) "
        for i in range(10):
            factor = 1.3 if f"step{i}" in names and f"step{i}" in wrong else 1.1
            body += f"c{i} = Constant <value_float = {factor}> () t{i + 1} = Mul(t{i}, c{i}) "
        return text(body + "y = Identity(t10)")

    return build


NAMES = [f"step{i}" for i in range(10)]


@pytest.mark.parametrize("wrong", [["step0"], ["step4"], ["step9"]])
def test_the_culprit_is_found_with_few_models(wrong: list[str]) -> None:
    built: list[int] = []
    build = chain(wrong, built)
    found = verify(build([]), build(NAMES), suspects=Suspects(NAMES, build))
    assert found.culprit == wrong[0]
    assert len(built) <= 2 + 2 + 4
    with pytest.raises(VerificationError, match=f"{wrong[0]}: output 'y' differs.*\n.*Leave that rewrite out"):
        found.raise_if_failed()


def test_of_several_culprits_one_is_named() -> None:
    build = chain(["step2", "step7"])
    assert verify(build([]), build(NAMES), suspects=Suspects(NAMES, build)).culprit in ("step2", "step7")


def test_no_culprit_among_the_suspects() -> None:
    build = chain([])
    found = verify(build([]), chain(["step1"])(["step1"]), suspects=Suspects(NAMES, build))
    assert found.culprit is None
    assert not found.passed
    assert any("no single rewrite" in note for note in found.notes)
    assert verify(build([]), build(NAMES), suspects=Suspects(NAMES, build)).culprit is None


def test_a_rewrite_that_makes_the_model_unloadable_is_a_culprit() -> None:
    def build(names: Sequence[str]) -> ModelProto:
        return text("y = Unheard(x)" if "bad" in names else "y = Exp(x)")

    found = verify(build([]), build(["good", "bad"]), suspects=Suspects(["good", "bad"], build))
    assert found.culprit == "bad"
    assert found.problem is not None
    assert found.problem.startswith("bad: the fused model cannot be loaded")


def test_bisect_alone_on_given_evidence() -> None:
    x = np.ones((1, 4), np.float32)
    evidence = Evidence(Case("mine", {"x": (1, 4)}), {"x": x}, {"y": x * np.float32(1.1) ** 10}, {})
    assert bisect(evidence, Suspects(NAMES, chain(["step6"]))) == "step6"
    assert bisect(evidence, Suspects([], chain([]))) is None


def test_a_verification_of_nothing_is_a_failure() -> None:
    with pytest.raises(VerificationError):
        Verification().raise_if_failed()


def test_with_little_memory_the_largest_magnitudes_alone_count() -> None:
    columns = {"s": np.float32([1e-4] * 8 + [1e4] * 8), "w": np.float32([1.2e-4] * 8 + [1e4] * 8)}
    original, wrong = (
        helpers.model(f"(float[B,16] x) => (float[B,16] y) {{ y = Mul(x, {name}) }}", weights=columns) for name in "sw"
    )
    needed = verify(original, wrong).bytes_needed
    assert not verify(original, wrong).passed
    found = verify(original, wrong, memory_limit=needed)
    assert found.passed and any("no memory to measure" in note for note in found.notes)


def test_two_fused_models_without_bodies_are_compared_too() -> None:
    fused = onnx_fuse.fuse(mutations.attention_block(), verify=False, functions="none").model
    wrong = helpers.copied(fused)
    next(item for item in wrong.graph.node[-1].attribute if item.name == "scale").f *= 1.1
    assert verify(fused, fused).passed
    assert verify(fused, wrong).problem is not None
