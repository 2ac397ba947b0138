"""A verification that cannot be fooled: fused models that were changed a little all fail, models that are equal all pass.

The changes are made systematically: each function of `CHANGES` lists all that it can do to a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import onnx_fuse
from onnx_fuse.errors import VerificationError
from onnx_fuse.patterns import Fusion, pattern
from onnx_fuse.runtime.verify.verification import Verification, verify
from tests import helpers
from tests.helpers import copied
from tests.trust import edits, mutations

Change = tuple[str, Callable[[ModelProto], None]]
DOMAIN = "gr.ml.infra"


def dot_interaction() -> ModelProto:
    """Dense features and ids of three tables, the products of all pairs below the diagonal, and a layer on top."""
    random = np.random.default_rng(3)
    rows, columns = np.tril_indices(4, -1)
    weights = {f"t{i}": random.normal(0, 1, (11, 8)).astype(np.float32) for i in range(3)}
    weights |= {
        "wd": random.normal(0, 0.4, (5, 8)).astype(np.float32),
        "wo": random.normal(0, 0.4, (14, 2)).astype(np.float32),
        "pairs": (rows * 4 + columns).astype(np.int64),
        "flat": np.array([0, 16]),
        "two": np.array([1]),
    }
    taken = "  ".join(
        f"i{i} = Gather <axis = 1> (ids, n{i})  e{i} = Gather(t{i}, i{i})  f{i} = Unsqueeze(e{i}, two)"
        for i in range(3)
    )
    weights |= {f"n{i}": np.array(i) for i in range(3)}
    return helpers.model(
        f"""(float[B,5] dense, int64[B,3] ids) => (float[B,2] y) {{
        d = MatMul(dense, wd)  fd = Unsqueeze(d, two)  {taken}
        all = Concat <axis = 1> (fd, f0, f1, f2)  turned = Transpose <perm = [0, 2, 1]> (all)
        products = MatMul(all, turned)  listed = Reshape(products, flat)  chosen = Gather <axis = 1> (listed, pairs)
        joined = Concat <axis = 1> (d, chosen)  y = MatMul(joined, wo)
        }}""",
        weights=weights,
    )


SEEDS = {
    "attention": mutations.attention_block,
    "embedding": mutations.embedding,
    "swish": mutations.swish_and_gelu,
    "dot": dot_interaction,
}


@cache
def pair(seed: str) -> tuple[ModelProto, ModelProto]:
    original = SEEDS[seed]()
    fused = onnx_fuse.fuse(original, enable=["FusedSwish"], verify=False).model
    assert any(node.domain == DOMAIN for node in fused.graph.node), helpers.operators(fused)
    return original, fused


# --- changes that must be noticed ------------------------------------------------------------------------------------


def floats(model: ModelProto) -> list[TensorProto]:
    return [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]


def replaced(name: str, change: Callable[[np.ndarray], None], rename: bool) -> Callable[[ModelProto], None]:
    """A weight with other values; `rename`: under another name, so that only what is computed can tell."""

    def apply(model: ModelProto) -> None:
        tensor = next(item for item in model.graph.initializer if item.name == name)
        array = np.array(numpy_helper.to_array(tensor))
        change(array)
        tensor.CopyFrom(numpy_helper.from_array(array, f"{name}_other" if rename else name))
        for node in model.graph.node:
            for place, read in enumerate(node.input):
                if read == name and rename:
                    node.input[place] = f"{name}_other"

    return apply


def weight_bits(model: ModelProto) -> Iterator[Change]:
    """The last bit of one element: no output shows it."""

    def flip(array: np.ndarray) -> None:
        array.reshape(-1).view(np.uint8)[0] ^= 1

    for tensor in model.graph.initializer:
        yield tensor.name, replaced(tensor.name, flip, rename=False)


def weight_rows_and_columns(model: ModelProto) -> Iterator[Change]:
    """One row, or one column, a hundredth larger, in a weight of another name."""
    for tensor in floats(model):
        if len(tensor.dims) != 2:
            continue
        for what, place in (("first row", np.s_[0]), ("last row", np.s_[-1]), ("last column", np.s_[:, -1])):

            def grow(array: np.ndarray, place: object = place) -> None:
                array[place] *= 1.01

            yield f"{what} of {tensor.name}", replaced(tensor.name, grow, rename=True)


def vectors(model: ModelProto) -> Iterator[Change]:
    """One element of a bias, of a norm's weight."""
    for tensor in floats(model):
        # What is added to all keys alike is added to all scores of a query alike: Softmax takes it away again.
        if len(tensor.dims) == 1 and tensor.dims[0] > 1 and tensor.name != "bk":

            def shift(array: np.ndarray) -> None:
                array[3] += 0.01

            yield tensor.name, replaced(tensor.name, shift, rename=True)


def number_attributes(model: ModelProto) -> Iterator[Change]:
    """A scale, an epsilon: what a body reads from its node."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.domain != DOMAIN or attribute.type != AttributeProto.FLOAT or not np.isfinite(attribute.f):
                continue
            factor = 1000.0 if attribute.name == "epsilon" else 1.1

            def change(
                made: ModelProto, name: str = attribute.name, output: str = node.output[0], factor: float = factor
            ) -> None:
                attribute_of(node_of(made, output), name).f *= factor

            yield f"{attribute.name} of {node.op_type}", change


WORDS = {"triangle": ("lower", "upper"), "norm": ("layer", "rms"), "order": ("dense_first", "dense_last")}


def word_attributes(model: ModelProto) -> Iterator[Change]:
    """What only a plugin reads: the body has it built in."""
    for node in model.graph.node:
        for attribute in node.attribute:
            words = WORDS.get(attribute.name, ())
            value = attribute.s.decode() if attribute.type == AttributeProto.STRING else ""
            if node.domain != DOMAIN or value not in words:
                continue

            def change(
                made: ModelProto,
                name: str = attribute.name,
                output: str = node.output[0],
                word: str = words[words[0] == value],
            ) -> None:
                attribute_of(node_of(made, output), name).s = word.encode()

            yield f"{attribute.name} of {node.op_type}", change


def bodies(model: ModelProto) -> Iterator[Change]:
    """Another operator in a body."""
    for number, function in enumerate(model.functions):
        for place, node in enumerate(function.node):
            other = {"Softmax": "LogSoftmax", "Sigmoid": "Tanh", "Sqrt": "Identity"}.get(node.op_type)
            if other is None:
                continue

            def change(made: ModelProto, number: int = number, place: int = place, other: str = other) -> None:
                made.functions[number].node[place].op_type = other

            yield f"{node.op_type} in {function.name}", change


def outputs(model: ModelProto) -> Iterator[Change]:
    """What the output is in the end: zeros, a thousandth more, one element wrong."""
    name = model.graph.output[0].name
    size = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    last = np.ones(size, np.float32)
    last[-1] = 1.01
    factors = {"zeros": np.zeros(1, np.float32), "a thousandth": np.float32([1.001]), "one element": last}
    for what, factor in factors.items():

        def change(made: ModelProto, factor: np.ndarray = factor) -> None:
            node_of(made, name).output[0] = "before"
            made.graph.initializer.append(numpy_helper.from_array(factor, "factor"))
            made.graph.node.append(helper.make_node("Mul", ["before", "factor"], [name]))

        yield what, change


CHANGES = (weight_bits, weight_rows_and_columns, vectors, number_attributes, word_attributes, bodies, outputs)


def node_of(model: ModelProto, output: str) -> NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def attribute_of(node: NodeProto, name: str) -> AttributeProto:
    return next(item for item in node.attribute if item.name == name)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: str(changes.__name__))
def test_every_change_is_noticed(seed: str, changes: Callable[[ModelProto], Iterator[Change]]) -> None:
    original, fused = pair(seed)
    missed = []
    for what, change in changes(fused):
        spoiled = copied(fused)
        change(spoiled)
        found = verify(original, spoiled)
        if found.passed or found.problem is None or found.inconclusive:
            missed.append((what, found.summary()))
    assert not missed


def test_every_kind_of_change_was_made() -> None:
    for changes in CHANGES:
        assert any(list(changes(pair(seed)[1])) for seed in SEEDS), changes.__name__


# --- models that are equal -------------------------------------------------------------------------------------------


def renamed(model: ModelProto) -> None:
    """Weights and nodes under other names."""
    names = {tensor.name: f"{tensor.name}_other" for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        node.name = f"{node.output[0]}_other"
        node.input[:] = [names.get(name, name) for name in node.input]


def listed(model: ModelProto) -> None:
    """Weights as lists of numbers in place of bytes."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.ravel().tolist()))


def inlined(model: ModelProto) -> None:
    """Bodies in the place of the fused nodes."""
    model.CopyFrom(onnx.inliner.inline_local_functions(model))


def rewritten(model: ModelProto) -> None:
    """Bodies as another release may write them: with other names and an operator more."""
    for function in model.functions:
        last = function.output[0]
        for node in function.node:
            node.output[:] = [f"{name}_last" if name == last else name for name in node.output]
        function.node.append(helper.make_node("Identity", [f"{last}_last"], [last]))


def without_bodies(model: ModelProto) -> None:
    """As `--functions none` leaves it, which ONNX Runtime cannot run as it is."""
    del model.functions[:]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "change", [renamed, listed, inlined, rewritten, without_bodies], ids=lambda change: str(change.__name__)
)
def test_equal_models_pass(seed: str, change: Callable[[ModelProto], None]) -> None:
    original, fused = pair(seed)
    other = copied(fused)
    change(other)
    found = verify(original, other)
    assert found.passed, found.summary()
    if change in (rewritten, without_bodies):
        assert any("body" in note for note in found.notes)


def test_weights_beside_the_model_and_in_it(tmp_path: Path) -> None:
    original, fused = pair("attention")
    onnx.save(copied(fused), tmp_path / "f.onnx", save_as_external_data=True, location="f.bin", size_threshold=0)
    assert verify(original, tmp_path / "f.onnx").passed
    data = bytearray((tmp_path / "f.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "f.bin").write_bytes(data)
    found = verify(original, tmp_path / "f.onnx")
    assert not found.passed and re.match(r"the weight '\w+' has other bytes than in the original", str(found.problem))


# --- magnitudes ------------------------------------------------------------------------------------------------------


def compared(original: str, fused: str, inputs: str, outputs: str, **weights: np.ndarray) -> Verification:
    one, other = (
        helpers.model(f"({inputs}) => ({outputs}) {{ {body} }}", weights=weights) for body in (original, fused)
    )
    return verify(one, other)


MASKED = "column = Equal(places, first)  y = Where(column, low, z)"
COLUMN = {"places": np.arange(8), "first": np.array(0), "low": np.array(-1e9, np.float32), "one": np.float32([1.0])}


def test_one_column_of_masked_logits_hides_nothing() -> None:
    def of(factor: str) -> Verification:
        return compared(f"z = Mul(x, one)  {MASKED}", f"z = Mul(x, {factor})  {MASKED}", "float[B,S,8] x", "float[B,S,8] y",
                        **COLUMN, other=np.float32([1.001]), minus=np.float32([-1.0]))  # fmt: skip

    assert of("one").passed
    assert not of("minus").passed and not of("other").passed


def test_a_mask_that_is_added_hides_nothing() -> None:
    """-1e9 in padded positions, other ones in each row."""

    def of(factor: str) -> Verification:
        body = "k = Cast <to = 1> (mask)  o = Sub(unit, k)  b = Mul(o, low)  z = Mul(x, {})  y = Add(z, b)"
        weights = {
            "unit": np.array(1.0, np.float32),
            "low": COLUMN["low"],
            "one": COLUMN["one"],
            "other": np.float32([1.01]),
        }
        return compared(
            body.format("one"), body.format(factor), "float[B,S] x, int64[B,S] mask", "float[B,S] y", **weights
        )

    assert of("one").passed
    assert not of("other").passed


def test_columns_of_very_different_magnitudes_are_judged_by_their_own() -> None:
    sizes = np.float32([1e-4] * 8 + [1e4] * 8)
    wrong = sizes.copy()
    wrong[2] *= 1.001
    body = "y = Mul(x, {})"
    inputs, result = "float[B,S,16] x", "float[B,S,16] y"
    assert compared(body.format("s"), body.format("s"), inputs, result, s=sizes).passed
    assert not compared(body.format("s"), body.format("w"), inputs, result, s=sizes, w=wrong).passed


def test_what_cancels_may_be_off_by_the_rounding_of_its_terms() -> None:
    """Two products of 1000 that cancel in some columns to 1e-4: other orders of the sums give other digits there, all of them."""
    random = np.random.default_rng(1)
    first = (100 * random.standard_normal((64, 16))).astype(np.float32)
    second = (100 * random.standard_normal((64, 16))).astype(np.float32)
    second[:, :4] = first[:, :4] * np.float32(1 + 1e-6)
    halves = {"a0": first[:32], "a1": first[32:], "b0": second[:32], "b1": second[32:]}
    plain = "p = MatMul(x, a)  q = MatMul(x, b)  y = Sub(p, q)"
    parts = (
        "u, v = Split <axis = -1> (x)  p0 = MatMul(u, a0)  p1 = MatMul(v, a1)  q0 = MatMul(u, b0)  q1 = MatMul(v, b1)"
    )
    split = f"{parts}  p = Add(p1, p0)  q = Add(q1, q0)  y = Sub(p, q)"
    found = compared(plain, split, "float[B,64] x", "float[B,16] y", a=first, b=second, **halves)
    assert found.passed, found.summary()
    # The same columns, computed from small weights: nothing cancels, and as much is an error.
    small = (first - second)[:, :4]
    exact, shifted = (
        np.concatenate([small, first[:, 4:]], 1),
        np.concatenate([small * np.float32(1.2), first[:, 4:]], 1),
    )
    assert not compared(
        "y = MatMul(x, a)", "y = MatMul(x, b)", "float[B,64] x", "float[B,16] y", a=exact, b=shifted
    ).passed


def test_a_cast_elsewhere_loosens_nothing() -> None:
    body = "h = Cast <to = 10> (x)  z = Cast <to = 1> (h)  e = Exp(x)  y = Mul(e, {})"
    result = "float[B,4] y, float[B,4] z"
    scales = {"one": np.float32([1.0]), "other": np.float32([1.001])}
    assert compared(body.format("one"), body.format("one"), "float[B,4] x", result, **scales).passed
    found = compared(body.format("one"), body.format("other"), "float[B,4] x", result, **scales)
    assert not found.passed and str(found.problem).startswith("output 'y'")


RMS = {"eps": np.float32(1e-6), "last": np.array([-1])}
NORMS = {
    "plain": "s = Mul(x, x)  m = ReduceMean(s, last)  e = Add(m, eps)  r = Sqrt(e)  y = Div(x, r)",
    # The same numbers, and squares of squares in between.
    "fourth powers": "s = Mul(x, x)  q = Mul(s, s)  z = Sqrt(q)  m = ReduceMean(z, last)  e = Add(m, eps)  r = Sqrt(e)  y = Div(x, r)",
    # The same numbers, and nothing in between that is larger than what goes in.
    "scaled": """a = Abs(x)  b = ReduceMax(a, last)  c = Max(b, eps)  u = Div(x, c)  s = Mul(u, u)  m = ReduceMean(s, last)
        g = Div(eps, c)  h = Div(g, c)  e = Add(m, h)  r = Sqrt(e)  y = Div(u, r)""",
}


@pytest.mark.parametrize(
    ("original", "fused", "within"),
    [
        ("plain", "plain", None),
        ("scaled", "scaled", None),
        ("plain", "scaled", 5),  # at 1e25 and 1e37 the original divides by infinity, and gives 0
        ("plain", "fourth powers", 5),
        ("scaled", "plain", None),
    ],
)
def test_a_fused_model_may_overflow_where_the_original_does_and_nowhere_else(
    original: str, fused: str, within: int | None
) -> None:
    one, other = (
        helpers.model(f"(float[B,S,8] x) => (float[B,S,8] y) {{ {NORMS[name]} }}", weights=RMS, opset=18)
        for name in (original, fused)
    )
    found = verify(one, other)
    right = (original, fused) not in {("plain", "fourth powers"), ("scaled", "plain")}
    assert found.passed is right, found.summary()
    (name,) = (case.name for case in found.cases if "magnitudes to the ends of the type" in case.name)
    told = re.search(r"(\d) of 7 that the original can take inside", name)
    assert (told and int(told[1])) == within
    assert right or "magnitudes to the ends of the type" in str(found.problem)


@pytest.mark.parametrize("kind", ["float", "float16", "bfloat16"])
def test_where_the_original_is_not_finite_nothing_is_compared_and_the_places_are_counted(kind: str) -> None:
    """e^x, and the same by way of e^(x/2): both infinite, at about the same magnitudes."""
    number = (
        helpers.bfloat16(0.5)
        if kind == "bfloat16"
        else np.array(0.5, kind.replace("float", "float32") if kind == "float" else kind)
    )
    bodies = ("y = Exp(x)", "h = Mul(x, half)  e = Exp(h)  y = Mul(e, e)")
    one, other = (
        helpers.model(f"({kind}[B,S,8] x) => ({kind}[B,S,8] y) {{ {body} }}", weights={"half": number})
        for body in bodies
    )
    found = verify(one, other)
    assert found.passed, found.summary()
    assert found.undefined > 30 and found.to_dict()["undefined"] == found.undefined
    assert any(f"{found.undefined} places were not compared" in line for line in found.summary())


@pytest.mark.parametrize("seed", SEEDS)
def test_no_mistake_in_wiring_sizes_masks_and_magnitudes_goes_unnoticed(seed: str) -> None:
    count, gone = edits.missed(*pair(seed))
    assert count >= 3 and not gone


# --- who is to blame -------------------------------------------------------------------------------------------------


def test_the_attributes_of_a_node_are_held_against_its_body() -> None:
    original, fused = pair("dot")
    spoiled = copied(fused)
    node = next(node for node in spoiled.graph.node if node.domain == DOMAIN)
    attribute_of(node, "triangle").s = b"upper" if attribute_of(node, "triangle").s == b"lower" else b"lower"
    found = verify(original, spoiled)
    value = attribute_of(node, "triangle").s.decode()
    assert str(found.problem).startswith(
        f"node {node.name} ({node.op_type}): attribute triangle = {value!r} says something else than the body"
    )
    assert "Fuse the original again" in found.remedy


def test_a_fusion_of_ones_own_is_named() -> None:
    """Its node, in its domain, and how to leave it out: not a node of the original."""

    @pattern
    def scaled(op, x):  # type: ignore[no-untyped-def]
        return op.Relu(op.Neg(x))

    def wrong_body(op, x):  # type: ignore[no-untyped-def]
        return op.Relu(x)

    operator = onnx_fuse.FusedOp("NegRelu", ("x",), wrong_body, domain="my.ops")
    fusion = Fusion("NegRelu", scaled, operator)
    original = helpers.model("(float[n,4] x) => (float[n,4] y) { a = Neg(x)  b = Relu(a)  c = Exp(b)  y = Add(c, x) }")
    for node in original.graph.node:
        node.name = f"/c.1/{node.op_type}"
    with pytest.raises(VerificationError) as error:
        onnx_fuse.fuse(original, fusions=[fusion])
    assert error.value.cause.startswith("my.ops::NegRelu /c.1/Relu/NegRelu, in place of /c.1/Relu: output 'y' differs")
    assert "--disable NegRelu" in error.value.remedy
    fused = onnx_fuse.fuse(original, fusions=[fusion], verify=False).model
    assert "the first fused node that differs is my.ops::NegRelu /c.1/Relu/NegRelu" in str(
        verify(original, fused).problem
    )
    without_bodies(fused)
    found = verify(original, fused)
    assert found.inconclusive and "no my.ops::NegRelu" in str(found.problem) and "--functions keep" in found.remedy


# --- places that are masked out --------------------------------------------------------------------------------------


def masked_by_products() -> tuple[ModelProto, ModelProto]:
    """Values multiplied by a mask of 0 and 1 from lengths, and what a kernel makes of it that does not read masked places."""
    text = """(float[B,S] x, int64[B] lengths) => (float[B,S] y) {{
        shape = Shape(x)  size = Gather(shape, one)  places = Range(zero, size, one)  ends = Unsqueeze(lengths, axis)
        keep = Less(places, ends)  e = Tanh(x)  {} }}"""
    weights = {"one": np.array(1), "zero": np.array(0), "axis": np.array([1]), "nil": np.array(0.0, np.float32)}
    ends = ("factor = Cast <to = 1> (keep)  y = Mul(e, factor)", "y = Where(keep, e, nil)")
    first, second = (helpers.model(text.format(end), weights=weights) for end in ends)
    return first, second


def test_a_masked_place_that_is_not_read_is_a_documented_difference() -> None:
    original, fused = masked_by_products()
    x = np.float32([[1, 2, np.nan, 4], [np.inf, 2, 3, 4]])
    inputs = {"x": x, "lengths": np.array([2, 4])}
    found = verify(original, fused, inputs=inputs)
    assert found.passed and found.worst["y"].problem is None
    assert len(found.documented) == 1 and found.documented[0].startswith("output 'y': 1 places are masked out")
    assert found.summary()[0].startswith("equal but for documented differences")
    assert json.loads(json.dumps(found.to_dict()))["documented"] == found.documented
    assert verify(original, fused).documented == []


def test_a_place_that_counts_is_not_excused() -> None:
    """NaN that the original passes on and the fused model hides, where nothing is masked."""
    original, _ = masked_by_products()
    wrong = copied(original)
    node_of(wrong, "e").output[0] = "before"
    wrong.graph.node.insert(0, helper.make_node("Tanh", ["x"], ["before"]))
    wrong = helpers.model(
        """(float[B,S] x, int64[B] lengths) => (float[B,S] y) {
        shape = Shape(x)  size = Gather(shape, one)  places = Range(zero, size, one)  ends = Unsqueeze(lengths, axis)
        keep = Less(places, ends)  t = Tanh(x)  bad = IsNaN(t)  e = Where(bad, nil, t)
        factor = Cast <to = 1> (keep)  y = Mul(e, factor) }""",
        weights={"one": np.array(1), "zero": np.array(0), "axis": np.array([1]), "nil": np.array(0.0, np.float32)},
    )
    inputs = {"x": np.float32([[1, np.nan, 3, 4]]), "lengths": np.array([3])}
    found = verify(original, wrong, inputs=inputs)
    assert not found.passed and "NaN or infinite" in str(found.problem)


def test_dividing_by_a_length_of_0_may_give_nan_or_infinity_and_no_number() -> None:
    """Dividing before the sum or after it."""
    text = """(float[B,5,4] x, int64[B] lengths) => (float[B,4] y) {{
        f = Cast <to = 1> (lengths)  n = Unsqueeze(f, axis)  m = Unsqueeze(n, axis) {} }}"""
    weights = {"axis": np.array([1]), "least": np.array(1.0, np.float32)}
    before, after, guarded = (
        helpers.model(text.format(body), weights=weights)
        for body in (
            "q = Div(x, m)  y = ReduceSum <keepdims = 0> (q, axis)",
            "s = ReduceSum <keepdims = 0> (x, axis)  y = Div(s, n)",
            "s = ReduceSum <keepdims = 0> (x, axis)  d = Max(n, least)  y = Div(s, d)",
        )
    )
    assert verify(before, after).passed
    found = verify(before, guarded)
    assert "a length of 0" in str(found.problem) and "NaN or infinite" in str(found.problem)


# --- time ------------------------------------------------------------------------------------------------------------


def slow(turns: int) -> ModelProto:
    return helpers.model(
        """(float[B,8] x) => (float[B,8] y) {
        s = Sigmoid(x)  m = Mul(x, s)
        y = Loop (turns, yes, m) < body = step (int64 i, bool c, float[B,8] a) => (bool d, float[B,8] b) { d = Identity(c)  b = Identity(a) } >
        }""",
        weights={"turns": np.array(turns), "yes": np.array(True)},
    )


def test_a_model_that_takes_for_ever_is_inconclusive_after_the_limit() -> None:
    model = slow(1 << 40)
    found = verify(model, model, timeout=0.5)
    assert found.inconclusive and not found.passed and found.seconds < 5
    assert "0.5 s" in str(found.problem) and "--verify-timeout" in found.remedy
    assert any(line.startswith("stopped after 0.5 s") for line in found.summary())


def test_what_was_equal_until_the_limit_counts_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_fuse.runtime.onnxruntime import sessions

    model = helpers.model("(float[B,8] x) => (float[B,8] y) { y = Exp(x) }")
    runs: list[int] = []
    run = sessions.run

    def counted(*args: object) -> object:
        runs.append(1)
        if len(runs) > limit:
            raise sessions.OutOfTime("")
        return run(*args)  # type: ignore[arg-type]

    cases = len(verify(model, model).cases)
    monkeypatch.setattr(sessions, "run", counted)
    limit = cases + 1
    assert verify(model, model).inconclusive  # one case is too little
    runs.clear()
    limit = cases + 3
    found = verify(model, model)
    assert found.passed and len(found.cases) == 3
    assert found.unfinished == f"3 of {cases} sets of inputs were compared"
    runs.clear()
    limit = 4  # in the original: what it was run on is compared
    assert verify(model, model).inconclusive
