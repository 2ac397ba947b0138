"""Where a fused model goes wrong: each planted fault is found at the value where it enters, and laid on its fusion."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, numpy_helper

import onnx_fuse
from onnx_fuse.errors import ModelError, UsageError, VerificationError
from onnx_fuse.runtime.debug import debug, statistics
from onnx_fuse.runtime.verify.verification import verify
from tests import helpers
from tests.helpers import copied
from tests.trust import mutations

ATTENTION = "FusedAttentionLayerNorm"


@cache
def _drawn(seed: int, *shape: int) -> np.ndarray:
    return (0.5 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def blocks() -> ModelProto:
    """Three linear layers with a residual sum and a norm each, named after their outputs."""
    text, weights = [], {}
    last = "x"
    for number in range(3):
        weights |= {f"w{number}": _drawn(number, 8, 8), f"g{number}": 1 + _drawn(9 + number, 8)}
        weights[f"b{number}"] = _drawn(20 + number, 8)
        text.append(
            f"p{number} = MatMul({last}, w{number})  r{number} = Relu(p{number})  s{number} = Add(r{number}, {last})"
            f"  n{number} = LayerNormalization <axis = -1, epsilon = 1e-05> (s{number}, g{number}, b{number})"
        )
        last = f"n{number}"
    made = helpers.model(
        f"(float[B,S,8] x) => (float[B,S,8] y) {{ {'  '.join(text)}  y = Neg({last}) }}", weights=weights
    )
    for node in made.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return made


@cache
def pair() -> tuple[ModelProto, ModelProto]:
    """The blocks, and what fusing the sum and norm of each makes of them."""
    original = blocks()
    fused = onnx_fuse.fuse(original, enable=["FusedSkipLayerNorm"], verify=False).model
    assert helpers.operators(fused).count("FusedSkipLayerNorm") == 3
    return original, fused


def node_of(made: ModelProto, output: str) -> NodeProto:
    return next(node for node in made.graph.node if output in node.output)


def test_a_sound_model() -> None:
    original, fused = pair()
    found = debug(original, fused)
    assert found.equal and found.place is None and found.cases == 12
    assert [value.name for value in found.values] == ["p0", "r0", "n0", "p1", "r1", "n1", "p2", "r2", "n2", "y"]
    norm = next(value for value in found.values if value.name == "n1")
    assert (norm.op_type, norm.fused_op_type) == ("LayerNormalization", "FusedSkipLayerNorm")
    found.raise_if_different()


@pytest.mark.parametrize("block", range(3))
def test_a_fault_in_a_fused_node(block: int) -> None:
    """A wrong epsilon in one of three alike: all after it are wrong too, and it is the one that is named."""
    original, fused = pair()
    spoiled = copied(fused)
    node = node_of(spoiled, f"n{block}")
    next(item for item in node.attribute if item.name == "epsilon").f = 0.7
    found = debug(original, spoiled)
    assert not found.equal and found.place is not None
    assert found.place.value == f"n{block}" and found.place.fused_nodes == ((node.name, "FusedSkipLayerNorm"),)
    assert found.place.replaced == (f"Add_s{block}", f"LayerNormalization_n{block}")
    wrong = [value.name for value in found.values if value.comparison.problem is not None]
    assert wrong[0] == f"n{block}" and wrong[-1] == "y"
    with pytest.raises(VerificationError, match=f"'n{block}', which FusedSkipLayerNorm"):
        found.raise_if_different()


def test_where_in_the_body() -> None:
    """The body has the numbers of the replaced nodes up to the product of query and key; the scale is wrong."""
    original = mutations.attention_block()
    spoiled = copied(onnx_fuse.fuse(original, verify=False).model)
    next(item for item in node_of(spoiled, "y").attribute if item.name == "scale").f *= 1.5
    place = debug(original, spoiled).place
    assert place is not None and place.fused_nodes[0][1] == ATTENTION
    inside = {value.op_type: value.same_as for value in place.inside if value.op_type in ("MatMul", "Mul")}
    assert place.sentence().endswith("is the first that the replaced nodes do not have.")
    assert "after 'product'" in place.sentence() and " Mul " in place.sentence()
    assert inside["Mul"] == ""


def test_a_weight_of_an_ordinary_node() -> None:
    original, fused = pair()
    spoiled = copied(fused)
    tensor = next(item for item in spoiled.graph.initializer if item.name == "w1")
    tensor.CopyFrom(numpy_helper.from_array(_drawn(77, 8, 8), "w1"))
    found = debug(original, spoiled)
    place = found.place
    assert place is not None and place.value == "p1" and place.fused_nodes == ()
    assert place.changes == ("the weight w1 of MatMul_p1 has another value",)
    assert "No fused node lies before it" in place.sentence()
    with pytest.raises(VerificationError) as error:
        found.raise_if_different()
    assert error.value.remedy is not None and "--disable" not in error.value.remedy


def test_an_ordinary_node_that_reads_another_value() -> None:
    original, fused = pair()
    spoiled = copied(fused)
    node_of(spoiled, "p2").input[0] = "n0"
    place = debug(original, spoiled).place
    assert place is not None and place.value == "p2" and "was MatMul(n1, w2)" in place.changes[0]


def test_a_fault_that_shows_behind_nodes_of_no_name_in_common() -> None:
    """The value that differs is made by an ordinary node; the fused node is found by walking back to what agrees."""
    original, fused = pair()
    spoiled = copied(fused)
    node = node_of(spoiled, "n2")
    next(item for item in node.attribute if item.name == "epsilon").f = 0.7
    node.output[0] = node_of(spoiled, "y").input[0] = "renamed"
    place = debug(original, spoiled).place
    assert place is not None and place.value == "y" and place.fused_nodes == ((node.name, "FusedSkipLayerNorm"),)
    assert place.nodes == ("Neg_y", node.name) and set(place.original_nodes) == {
        "Neg_y",
        "LayerNormalization_n2",
        "Add_s2",
    }


def test_inputs_of_the_users_own(tmp_path: Path) -> None:
    """Only these tell the models apart: one of them treats a single number otherwise."""
    original = helpers.model("(float[n,4] x) => (float[n,4] y) { a = Relu(x)  y = Add(a, x) }")
    other = helpers.model(
        "(float[n,4] x) => (float[n,4] y) { one = Constant <value_float = 42.0> ()  there = Equal(x, one)"
        "  zero = Constant <value_float = 0.0> ()  t = Where(there, zero, x)  a = Relu(t)  y = Add(a, x) }"
    )
    assert debug(original, other).equal
    np.savez(tmp_path / "x.npz", x=np.full((1, 4), 42, np.float32))
    found = debug(original, other, inputs=tmp_path / "x.npz")
    assert found.place is not None and found.place.value == "a" and found.case == "given inputs" and found.cases == 1
    with pytest.raises(UsageError, match="no input 'z'"):
        debug(original, other, inputs={"z": np.zeros(1)})


def test_a_model_that_does_not_run() -> None:
    original, fused = pair()
    spoiled = copied(fused)
    node_of(spoiled, "n1").op_type = "NoSuchOperator"
    with pytest.raises(VerificationError, match="cannot be loaded"):
        debug(original, spoiled)
    with pytest.raises(UsageError, match="has the inputs"):
        debug(original, mutations.attention_block())


MUTATIONS: list[Callable[[ModelProto, random.Random], None]] = [
    mutations.rewire,
    mutations.change_constant,
    mutations.swap_inputs,
    mutations.change_operator,
]


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: str(mutate.__name__))
def test_it_agrees_with_verify(mutate: Callable[[ModelProto, random.Random], None]) -> None:
    """Whatever is planted in a fused model: what `verify` finds unequal has a place here, and what it passes has none."""
    original, fused = pair()
    told = 0
    for seed in range(24):
        spoiled = copied(fused)
        mutate(spoiled, random.Random(seed))
        verdict = verify(original, spoiled)
        if not verdict.cases or any(case.error for case in verdict.cases):
            continue  # it does not load or run
        found = debug(original, spoiled)
        outputs_differ = any(one.problem for case in verdict.cases for one in case.comparisons)
        assert found.equal == (not outputs_differ)
        if found.place is not None:
            told += 1
            names = {name for node in spoiled.graph.node for name in node.output}
            assert found.place.value in names and (found.place.fused_nodes or found.place.nodes)
    assert told, "nothing was told apart: draw others"


SEQUENCE = "(float[n,4] x) => (seq(float[n,2]) y, float[n,4] z) {{ a = Mul(x, {}) t = SplitToSequence <axis = 1> (a, two)  y = Identity(t)  z = Neg(x) }}"
MAP = "(float[n,3] x) => (seq(map(int64,float)) y) {{ p = {} (x)  y = ai.onnx.ml.ZipMap <classlabels_int64s = [1, 2, 3]> (p) }}"


def test_sequences_are_compared_by_their_elements() -> None:
    weights = {"two": np.array(2), "k": np.float32([2, 2, 2, 2]), "w": np.float32([2, 2, 2, 3])}
    original, wrong = (helpers.model(SEQUENCE.format(name), weights=weights) for name in "kw")
    found = debug(original, original)
    assert found.equal
    assert [value.name for value in found.values] == ["a", "t length", "t[0]", "t[1]", "y length", "y[0]", "y[1]", "z"]
    node_of(wrong, "a").output[0] = node_of(wrong, "t").input[0] = "other"
    found = debug(original, wrong)
    assert found.place is not None and found.place.value == "t" and found.place.nodes == ("t", "other")
    agreeing = {value.name for value in found.values if value.comparison.problem is None}
    assert agreeing == {"t length", "t[0]", "y length", "y[0]", "z"}


def test_maps_are_compared_by_keys_and_values() -> None:
    original, wrong = (helpers.model(MAP.format(operator)) for operator in ("Softmax", "Sigmoid"))
    found = debug(original, original)
    assert found.equal and {"y[0] keys", "y[0] values"} <= {value.name for value in found.values}
    node_of(wrong, "p").output[0] = node_of(wrong, "y").input[0] = "other"
    found = debug(original, wrong)
    assert found.place is not None and found.place.value == "y" and found.place.nodes == ("y", "other")


def test_too_little_memory_is_said_before_it_runs_out() -> None:
    made = helpers.model("(float[4611686018427387904] x) => (float[4611686018427387904] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match="more memory than any machine has") as error:
        debug(made, made)
    assert "--inputs" in error.value.remedy


def test_statistics() -> None:
    found = statistics(np.array([1.0, 3.0, np.nan, np.inf], np.float32))
    assert (found.min, found.max, found.mean, found.std, found.not_finite) == (1.0, 3.0, 2.0, 1.0, 2)
    assert statistics(np.array([], np.float32)).mean is None
    assert statistics(np.array(["a"], object)).not_finite == 0


def test_weights_beside_the_model(tmp_path: Path) -> None:
    original, fused = pair()
    for name, model in (("original", original), ("fused", fused)):
        onnx.save(
            copied(model),
            tmp_path / f"{name}.onnx",
            save_as_external_data=True,
            location=f"{name}.bin",
            size_threshold=0,
        )
    assert debug(tmp_path / "original.onnx", tmp_path / "fused.onnx").equal
