"""FusedEmbedLayerNorm: sums of look-ups fuse with the norm behind them, other sums do not, and the result is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper

import onnx_fuse
from onnx_fuse.errors import ModelError
from onnx_fuse.runtime.onnxruntime import sessions
from tests import helpers
from tests.helpers import Array

NAME = "FusedEmbedLayerNorm"
RANDOM = np.random.default_rng(3)


def drawn(*shape: int, centre: float = 0.0) -> Array:
    return (centre + 0.4 * RANDOM.standard_normal(shape)).astype(np.float32)


CONSTANTS: dict[str, Array] = {
    "words": drawn(11, 8),
    "positions": drawn(9, 8),
    "kinds": drawn(3, 8),
    "rows": drawn(1, 5, 8),
    "gamma": drawn(8, centre=1.0),
    "beta": drawn(8),
    "odd": drawn(5, 8, centre=1.0),
    "arange": np.arange(5)[None],
    "epsilon": np.array(1e-5, np.float32),
    "two": np.array(2.0, np.float32),
    "last": np.array([-1]),
}
INPUTS = {"ids": "int64[B,S]", "pos": "int64[B,S]", "kind": "int64[B,S]"}
WORD = "w = Gather(words, ids)"
POSITION = "p = Gather(positions, pos)"
KIND = "k = Gather(kinds, kind)"
NORM = "y = LayerNormalization <axis = -1, epsilon = 1e-05> (s, gamma, beta)"
BERT = f"{WORD}\n{POSITION}\n{KIND}\nwk = Add(w, k)\ns = Add(wk, p)"


def embedding(
    text: str,
    norm: str = NORM,
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    opset: int = 17,
    dtype: Any = np.float32,
) -> ModelProto:
    """A model of look-ups, their sum `s` and the norm behind it; inputs are those that the text reads."""
    body = f"{text}\n{norm}"
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    taken = {name: type_ for name, type_ in {**INPUTS, **(inputs or {})}.items() if name in words}
    constants = {
        name: array.astype(dtype) if array.dtype.kind == "f" else array
        for name, array in CONSTANTS.items()
        if name in words and name not in taken
    }
    float_type = {np.float32: "float", np.float16: "float16"}[dtype]
    declared = ", ".join(f"{type_} {name}" for name, type_ in taken.items())
    made = ", ".join(f"{type_} {name}" for name, type_ in {"y": f"{float_type}[B,S,8]", **(outputs or {})}.items())
    model = helpers.model(f"({declared}) => ({made}) {{\n{body}\n}}", opset=opset, weights=constants)
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return model


def attributes(node: NodeProto) -> dict[str, Any]:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def fused(model: ModelProto) -> tuple[ModelProto, NodeProto, onnx_fuse.Report]:
    """The fused model, proven equal, its one fused node, and the report."""
    result = onnx_fuse.fuse(model, fusions=[NAME])
    assert result.report.fused == {NAME: 1}, [miss.reason for miss in result.report.near_misses]
    assert result.report.warnings == []
    onnx.checker.check_model(result.model, full_check=True)
    return result.model, next(node for node in result.model.graph.node if node.op_type == NAME), result.report


def refused(model: ModelProto) -> list[str]:
    result = onnx_fuse.fuse(model, fusions=[NAME], verify=False)
    assert result.report.fused == {}
    assert result.report.warnings == []
    assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    return [miss.reason for miss in result.report.near_misses]


DECOMPOSED = """
    mean = ReduceMean <axes = [-1]> (s)
    centred = Sub(s, mean)
    square = Pow(centred, two)
    variance = ReduceMean <axes = [-1]> (square)
    shifted = Add(variance, epsilon)
    std = Sqrt(shifted)
    bare = Div(centred, std)
    scaled = Mul(bare, gamma)
    y = Add(scaled, beta)"""
FIXED = dict.fromkeys(INPUTS, "int64[B,5]")

# name -> (text, norm, options, the fused node's inputs after its attribute `inputs`, what they are)
FORMS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "one table": (WORD.replace("w =", "s ="), NORM, {}, "ids words"),
    "two tables": (f"{WORD}\n{POSITION}\ns = Add(w, p)", NORM, {}, "ids words pos positions"),
    "three tables": (BERT, NORM, {}, "ids words kind kinds pos positions"),
    "three tables, summed from the right": (
        f"{WORD}\n{POSITION}\n{KIND}\npk = Add(p, k)\ns = Add(w, pk)",
        NORM,
        {},
        "ids words pos positions kind kinds",
    ),
    "one table twice": ("a = Gather(words, ids)\nb = Gather(words, pos)\ns = Add(a, b)", NORM, {}, "ids words pos words"),
    "shared positions": (
        f"{WORD}\n{POSITION}\ns = Add(w, p)",
        NORM,
        {"inputs": {"pos": "int64[1,S]"}},
        "ids words pos positions",
    ),
    "axis written out": (
        "w = Gather <axis = 0> (words, ids)\np = Gather <axis = -2> (positions, pos)\ns = Add(w, p)",
        NORM,
        {},
        "ids words pos positions",
    ),
    "int32": (f"{WORD}\n{POSITION}\ns = Add(w, p)", NORM, {"inputs": {"ids": "int32[B,S]"}}, "ids words pos positions"),
    "decomposed norm": (f"{WORD}\n{POSITION}\ns = Add(w, p)", DECOMPOSED, {}, "ids words pos positions"),
    "a table that is an input": (
        f"{WORD}\n{POSITION}\ns = Add(w, p)",
        NORM,
        {"inputs": {"words": "float[V,8]"}},
        "ids words pos positions",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "norm", "options", "inputs"), FORMS.values(), ids=FORMS)
def test_a_sum_of_look_ups_is_fused_with_its_norm(text: str, norm: str, options: dict[str, Any], inputs: str) -> None:
    model, node, report = fused(embedding(text, norm, **options))
    expected = inputs.split()
    assert list(node.input) == [*expected, "gamma", "beta"]
    tables = len(expected) // 2
    found = attributes(node)
    pairs = [name for number in range(1, tables + 1) for name in (f"ids_{number}", f"table_{number}")]
    assert found["inputs"] == ",".join([*pairs, "gamma", "beta"])
    assert found["outputs"] == "output"
    assert (found["num_tables"], found["norm"]) == (tables, "layer")
    assert found["epsilon"] == pytest.approx(1e-5)
    assert [node.op_type for node in model.graph.node] == [NAME]
    assert report.near_misses == []
    assert report.matches[0].left_out == ()


def test_positions_that_the_exporter_looked_up_become_a_table_again() -> None:
    original = embedding(f"{WORD}\ns = Add(w, rows)", inputs=FIXED)
    model, node, _ = fused(original)
    names = attributes(node)["inputs"].split(",")
    assert names == ["ids_1", "table_1", "ids_2", "table_2", "gamma", "beta"]
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert np.array_equal(held[node.input[2]], np.arange(5)[None])
    helpers.assert_same_results(original, model)


def test_positions_that_are_constant_stay_constant() -> None:
    _, node, _ = fused(embedding(f"{WORD}\np = Gather(positions, arange)\ns = Add(w, p)", inputs=FIXED))
    assert list(node.input) == ["ids", "words", "arange", "positions", "gamma", "beta"]


OTHER_FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "ids of one axis": (f"{WORD}\n{POSITION}\ns = Add(w, p)", {"inputs": {"pos": "int64[S]"}}),
    "ids of one axis first": (f"{POSITION}\n{WORD}\ns = Add(p, w)", {"inputs": {"pos": "int32[S]"}}),
    "times a constant": (f"{WORD}\n{POSITION}\nc = Mul(w, two)\ns = Add(c, p)", {}),
    "both times constants": (f"{WORD}\n{POSITION}\nc = Mul(two, w)\nd = Div(p, epsilon)\ns = Add(c, d)", {}),
    "one table with a factor and without": ("a = Gather(words, ids)\nb = Gather(words, pos)\nc = Mul(a, two)\ns = Add(c, b)", {}),
    "one table with a factor twice": (
        "a = Gather(words, ids)\nb = Gather(words, pos)\nc = Mul(a, two)\nd = Mul(b, two)\ns = Add(c, d)",
        {},
    ),
    "a factor in float16": (f"{WORD}\n{POSITION}\nc = Mul(w, two)\ns = Add(c, p)", {"dtype": np.float16}),
    "ids of eight bits": (f"i = Cast <to = 7> (small)\nw = Gather(words, i)\n{POSITION}\ns = Add(w, p)", {"inputs": {"small": "uint8[B,S]"}}),
    "GatherND": (f"i = Unsqueeze(ids, last)\nw = GatherND(words, i)\n{POSITION}\ns = Add(w, p)", {}),
    "GatherND of ids with an axis more": (f"w = GatherND(words, more)\n{POSITION}\ns = Add(w, p)", {"inputs": {"more": "int64[B,S,1]"}}),
}  # fmt: skip


@pytest.mark.parametrize(("text", "options"), OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_look_ups_in_other_words(text: str, options: dict[str, Any]) -> None:
    original = embedding(text, **options)
    model, _, report = fused(original)
    assert not {"Add", "GatherND", "LayerNormalization"} & {node.op_type for node in model.graph.node}
    assert report.near_misses == []
    tolerance = 2e-2 if "dtype" in options else 1e-5
    for sizes in ({"B": 2, "S": 3}, {"B": 1, "S": 1}, {"B": 3, "S": 1}):
        helpers.assert_same_results(original, model, tolerance=tolerance, **sizes)


def test_a_look_up_that_is_read_without_its_factor_stays_for_it() -> None:
    text = f"{WORD}\n{POSITION}\nc = Mul(w, two)\ns = Add(c, p)"
    original = embedding(text, NORM.replace("y =", "n =") + "\ny = Add(n, w)")
    model, _, _ = fused(original)
    helpers.assert_same_results(original, model)


def test_a_sum_that_is_a_residual_further_on() -> None:
    """A pre-LN model: the sum goes on beside its norm."""
    text = (
        NORM.replace("y =", "n =")
        + "\nr = Relu(n)\nt = Add(s, r)\nm = LayerNormalization(t, gamma, beta)\ny = Add(t, m)"
    )
    original = embedding(BERT, text)
    result = onnx_fuse.fuse(original, enable=["FusedSkipLayerNorm"])
    assert result.report.fused[NAME] == 1
    node = next(node for node in result.model.graph.node if node.op_type == NAME)
    assert list(node.output) == ["n", "s"]


NORMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "no shift": ("y = LayerNormalization(s, gamma)", {"epsilon": 1e-5}, 17),
    "no epsilon attribute": ("y = LayerNormalization <axis = 2> (s, gamma, beta)", {"epsilon": 1e-5}, 17),
    "another epsilon": ("y = LayerNormalization <epsilon = 0.25> (s, gamma, beta)", {"epsilon": 0.25}, 17),
    "RMS": ("y = RMSNormalization <axis = -1, epsilon = 0.001> (s, gamma)", {"epsilon": 1e-3, "norm": "rms"}, 23),
}


@pytest.mark.parametrize(("norm", "expected", "opset"), NORMS.values(), ids=NORMS)
def test_the_norm_in_other_words(norm: str, expected: dict[str, Any], opset: int) -> None:
    _, node, _ = fused(embedding(BERT, norm, opset=opset))
    found = attributes(node)
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value)
    assert found["inputs"].endswith("gamma,beta" if "beta" in norm else "gamma")


@pytest.mark.parametrize("opset", [13, 14, 17])
def test_every_opset(opset: int) -> None:
    fused(embedding(BERT, DECOMPOSED, opset=opset))


def test_float16() -> None:
    _, node, _ = fused(embedding(BERT, dtype=np.float16))
    assert len(node.input) == 8


@pytest.mark.parametrize("how", ["read", "output"])
def test_the_sum_becomes_an_output_where_it_is_needed(how: str) -> None:
    if how == "read":
        original = embedding(BERT, NORM.replace("y =", "n =") + "\nr = Relu(s)\ny = Add(n, r)")
    else:
        original = embedding(BERT, outputs={"s": "float[B,S,8]"})
    model, node, report = fused(original)
    assert list(node.output) == ["n" if how == "read" else "y", "s"]
    assert attributes(node)["outputs"] == "output,embedding_sum"
    assert report.matches[0].outputs == ("output", "embedding_sum")
    helpers.assert_same_results(original, model)


def test_a_look_up_that_something_else_reads_stays_for_it() -> None:
    original = embedding(BERT, NORM.replace("y =", "n =") + "\ny = Add(n, w)")
    model, _, _ = fused(original)
    assert sorted(node.op_type for node in model.graph.node) == ["Add", NAME, "Gather"]
    helpers.assert_same_results(original, model)


def test_ids_wrap_and_ids_beyond_the_table_are_errors() -> None:
    original = embedding(BERT)
    model, _, _ = fused(original)
    feeds = {name: np.array([[0, 1, 1]]) for name in INPUTS}
    feeds["ids"] = np.array([[-1, -11, 10]])
    want, got = helpers.run(original, feeds), helpers.run(model, feeds)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
    for wrong in (11, -12):
        feeds["ids"] = np.array([[0, wrong, 0]])
        for made in (original, model):
            with pytest.raises(ModelError):
                sessions.run(sessions.session(made), feeds)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "norm over another axis": (
        "attribute axis is -2, pattern wants -1",
        {"norm": "y = LayerNormalization <axis = 1> (s, odd, odd)", "inputs": FIXED},
    ),
    "scale of two axes": (
        "the scale odd has shape [5, 8], pattern wants [8]",
        {"norm": "y = LayerNormalization(s, odd, beta)", "inputs": FIXED},
    ),
    "shift of two axes": (
        "the shift odd has shape [5, 8], pattern wants [8]",
        {"norm": "y = LayerNormalization(s, gamma, odd)", "inputs": FIXED},
    ),
    "look-up along another axis": (
        "attribute axis is 1, pattern wants 0",
        {
            "text": "w = Gather <axis = 1> (words, ids)\nv = Gather <axis = 1> (words, ids)\ns = Add(w, v)",
            "inputs": {"ids": "int64[B,8]"},
            "outputs": {"y": "float[11,B,8]"},
        },
    ),
    "look-up in another domain": (
        "found other::Gather Gather_w, pattern wants Gather",
        {"text": f"w = other.Gather(words, ids)\n{POSITION}\n{KIND}\nwk = Add(w, k)\ns = Add(wk, p)"},
    ),
    "a summand that is no look-up": (
        "found the graph input x, pattern wants Gather",
        {"text": f"{WORD}\ns = Add(w, x)", "inputs": {"x": "float[B,S,8]"}},
    ),
    "ids of three axes": (
        "the sum s has shape [B, S, T, 8], pattern wants [B, S, H]",
        {"text": "s = Gather(words, ids)", "inputs": {"ids": "int64[B,S,T]"}, "outputs": {"y": "float[B,S,T,8]"}},
    ),
    "ids of one axis alone": (
        "the sum s has shape [S, 8], pattern wants [B, S, H]",
        {"text": "s = Gather(words, ids)", "inputs": {"ids": "int64[S]"}, "outputs": {"y": "float[S,8]"}},
    ),
    "ids of one axis that is 1": (
        "the ids pos have shape [1], pattern wants [B or 1, S]",
        {"text": f"{WORD}\n{POSITION}\ns = Add(w, p)", "inputs": {"pos": "int64[1]"}},
    ),
    "a look-up times something computed": (
        "found Mul Mul_c, pattern wants Gather",
        {"text": f"{WORD}\n{POSITION}\nc = Mul(w, f)\ns = Add(p, c)", "inputs": {"f": "float[1]"}},
    ),
    "a look-up times a vector": (
        "found Mul Mul_c, pattern wants Gather",
        {"text": f"{WORD}\n{POSITION}\nc = Mul(w, gamma)\ns = Add(p, c)"},
    ),
    "a look-up times a number, in a table that is no constant": (
        "found Mul Mul_c, pattern wants Gather",
        {"text": f"{WORD}\n{POSITION}\nc = Mul(w, two)\ns = Add(p, c)", "inputs": {"words": "float[V,8]"}},
    ),
    "GatherND of two columns": (
        "found GatherND GatherND_w, pattern wants Gather",
        {
            "text": f"{POSITION}\nw = GatherND(blocks, pairs)\ns = Add(p, w)",
            "inputs": {"pairs": "int64[B,S,2]", "blocks": "float[V,3,8]"},
        },
    ),
    "GatherND by batch": (
        "found GatherND GatherND_w, pattern wants Gather",
        {
            "text": f"{POSITION}\nw = GatherND <batch_dims = 1> (blocks, pairs)\ns = Add(p, w)",
            "inputs": {"pairs": "int64[B,S,1]", "blocks": "float[B,3,8]"},
        },
    ),
    "ids of one column": (
        "the ids pos have shape [B, 1], pattern wants [B or 1, S]",
        {"text": f"{WORD}\n{POSITION}\ns = Add(w, p)", "inputs": {"pos": "int64[B,1]"}},
    ),
}


@pytest.mark.parametrize(("sentence", "options"), REFUSED.values(), ids=REFUSED)
def test_other_sums_stay_and_are_explained(sentence: str, options: dict[str, Any]) -> None:
    assert refused(embedding(**{"text": BERT, **options})) == [sentence]


def test_there_is_an_end_to_the_look_ups() -> None:
    text = "\n".join(f"g{i} = Gather(words, ids)\nt{i} = Add({f't{i - 1}' if i else 'w'}, g{i})" for i in range(8))
    fused(embedding(f"{WORD}\n{text.replace('t6 =', 's =').split('g7')[0]}"))
    sentence = "9 look-ups are summed, the operator takes 8 tables"
    assert refused(embedding(f"{WORD}\n{text.replace('t7 =', 's =')}")) == [sentence]


def test_a_decomposed_norm_that_is_none_stays() -> None:
    for sentence, text in (
        ("attribute axes is [-2], pattern wants [-1]", DECOMPOSED.replace("[-1]", "[-2]")),
        ("the constant is 3, pattern wants 2", DECOMPOSED.replace("two", "three")),
        ("the scale odd has shape [5, 8], pattern wants [8]", DECOMPOSED.replace("gamma", "odd")),
    ):
        model = embedding(BERT, text, inputs=FIXED)
        if "three" in text:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(3.0, np.float32), "three"))
        assert sentence in refused(model)


CONTRIB_INPUTS = {"ids": "int32[B,S]", "kind": "int32[B,S]", "m": "int32[B,S]", "pos": "int32[B,S]"}
CONTRIB = "n, counts, sum = com.microsoft.EmbedLayerNormalization({})"
# name -> (inputs of the node, the look-ups that are fused)
CONTRIB_FORMS: dict[str, tuple[str, int]] = {
    "words, positions and kinds": ("ids, kind, words, positions, kinds, gamma, beta", 3),
    "without kinds": ('ids, "", words, positions, "", gamma, beta', 2),
    "with a mask": ("ids, kind, words, positions, kinds, gamma, beta, m", 3),
    "with positions": ('ids, kind, words, positions, kinds, gamma, beta, "", pos', 3),
}


@pytest.mark.parametrize("summed", [False, True], ids=["norm", "norm and sum"])
@pytest.mark.parametrize(("inputs", "count"), CONTRIB_FORMS.values(), ids=CONTRIB_FORMS)
def test_embed_layer_normalization_of_onnx_runtime(inputs: str, count: int, summed: bool) -> None:
    text = CONTRIB.format(inputs) if summed else CONTRIB.format(inputs).replace(", sum", "")
    original = embedding(text, "y = Add(n, sum)" if summed else "y = Identity(n)", inputs=CONTRIB_INPUTS)
    _, node, _ = fused(original)
    assert attributes(node)["num_tables"] == count
    assert len(node.output) == 1 + summed


def test_a_mask_index_that_is_read_is_named() -> None:
    text = CONTRIB.format(CONTRIB_FORMS["with a mask"][0]).replace(", sum", "")
    original = embedding(text, "y = Identity(n)", inputs=CONTRIB_INPUTS, outputs={"counts": "int32[B]"})
    assert refused(original) == ["its output counts is a graph output"]
