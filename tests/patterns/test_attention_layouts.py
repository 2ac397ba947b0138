"""FusedAttentionLayerNorm however axes are laid out: a batch of 1 that is left out, tokens first, channels first, shared heads.

Each form computes the same after fusing, for several sizes and large values; what merely looks like it stays or fuses less.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from tests import helpers
from tests.patterns.test_attention_layer_norm import CORE, OPERANDS, WHOLE, attention, check, drawn, fused, refused

SINGLE = dict.fromkeys(("q", "k", "v", "x"), "[1,S,8]")
FIRST = dict.fromkeys(("q", "k", "v", "x"), "[S,B,8]")
WEIGHTS = {
    "tokens": np.array([-1, 2, 4]),
    "flat_1": np.array([1, -1, 8]),
    "rows": np.array([-1, 8]),
    "rows_1": np.array([-1, 1, 8]),
    "many": np.array([0, -1, 4]),
    "back": np.array([-1, 2, 3, 4]),
    "zeroth": np.array([0]),
    "first": np.array([1]),
    "columns": np.array([0, 8, -1]),
    "channel_heads": np.array([0, 2, 4, -1]),
}
LEFT_OUT = {
    "query": "q3 = Reshape(q, tokens) qh = Transpose <perm = [1, 0, 2]> (q3)",
    "key": "k3 = Reshape(k, tokens) kt = Transpose <perm = [1, 2, 0]> (k3)",
    "value": "v3 = Reshape(v, tokens) vh = Transpose <perm = [1, 0, 2]> (v3)",
    "merge": "moved = Transpose <perm = [1, 0, 2]> ({})\nmerged = Reshape(moved, flat_1)",
}
"""Heads [h, S, d] of a batch of 1."""
TOKENS_FIRST = {
    "query": "q3 = Reshape(q, many) qh = Transpose <perm = [1, 0, 2]> (q3)",
    "key": "k3 = Reshape(k, many) kt = Transpose <perm = [1, 2, 0]> (k3)",
    "value": "v3 = Reshape(v, many) vh = Transpose <perm = [1, 0, 2]> (v3)",
}
"""Heads [B*h, S, d] of tokens [S, B, h*d]."""


def same(original: ModelProto, made: ModelProto, *sizes: dict[str, int]) -> None:
    """Equal results for these sizes, also where values are so large that the Softmax is one or zero."""
    before, after = helpers.session(original), helpers.session(made)
    for of in sizes or ({},):
        for factor in (1.0, 40.0):
            feeds = {name: factor * array for name, array in helpers.feeds(original, **of).items()}
            feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
            for want, got in zip(before.run(None, feeds), after.run(None, feeds), strict=True):
                assert want.shape == got.shape
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


SINGLE_FORMS: dict[str, dict[str, Any]] = {
    "the batch is left out": LEFT_OUT,
    "the batch is left out of the merged heads too": {
        **LEFT_OUT,
        "merge": "moved = Transpose <perm = [1, 0, 2]> ({})\nmerged = Reshape(moved, rows)",
        "bias": "flat_biased = Add({}, bias)\nbiased = Reshape(flat_biased, flat_1)",
    },
    "the batch is squeezed out and put back": {
        **LEFT_OUT,
        "query": "q2 = Squeeze(q, zeroth) q3 = Reshape(q2, tokens) qh = Transpose <perm = [1, 0, 2]> (q3)",
        "merge": (
            "moved = Transpose <perm = [1, 0, 2]> ({})\nflat_merged = Reshape(moved, rows)\n"
            "merged = Unsqueeze(flat_merged, zeroth)"
        ),
    },
    "the batch is behind the heads": {
        "query": "q4 = Reshape(q, heads) qh = Transpose <perm = [2, 0, 1, 3]> (q4)",
        "key": "k4 = Reshape(k, heads) kt = Transpose <perm = [2, 0, 3, 1]> (k4)",
        "value": "v4 = Reshape(v, heads) vh = Transpose <perm = [2, 0, 1, 3]> (v4)",
        "merge": "moved = Transpose <perm = [1, 2, 0, 3]> ({})\nmerged = Reshape(moved, flat)",
    },
    "tokens come first inside": {
        "query": "qs = Transpose <perm = [1, 0, 2]> (q) q3 = Reshape(qs, tokens) qh = Transpose <perm = [1, 0, 2]> (q3)",
        "key": "k3 = Reshape(k, tokens) kt = Transpose <perm = [1, 2, 0]> (k3)",
        "value": "v3 = Reshape(v, tokens) vh = Transpose <perm = [1, 0, 2]> (v3)",
        "merge": "moved = Transpose <perm = [1, 0, 2]> ({})\nmerged_first = Reshape(moved, rows_1)\nmerged = Transpose <perm = [1, 0, 2]> (merged_first)",
    },
}  # fmt: skip


@pytest.mark.parametrize("form", SINGLE_FORMS.values(), ids=SINGLE_FORMS)
def test_a_batch_of_one(form: dict[str, str]) -> None:
    original = attention(inputs=SINGLE, weights=WEIGHTS, **form)
    found = fused(original)
    check(found)
    same(original, found.model, {"S": 1}, {"S": 3}, {"S": 9})


def test_a_batch_of_one_after_its_tokens() -> None:
    merge = "moved = Transpose <perm = [1, 0, 2]> ({})\nmerged = Reshape(moved, rows_1)"
    original = attention(inputs=dict.fromkeys(SINGLE, "[S,1,8]"), weights=WEIGHTS, **{**LEFT_OUT, "merge": merge})
    found = fused(original)
    check(found)
    same(original, found.model, {"S": 1}, {"S": 5})


@pytest.mark.parametrize("mask", ["[S,S]", "[1,S,S]", "[2,1,S]", "[2,S,S]"])
def test_a_batch_of_one_with_a_mask_for_three_axes(mask: str) -> None:
    original = attention(inputs={**SINGLE, "m": mask}, weights=WEIGHTS, mask="masked = Add({}, m)", **LEFT_OUT)
    found = fused(original)
    check(found, inputs=(*OPERANDS, "attention_bias", *WHOLE))
    same(original, found.model, {"S": 3})


def test_one_token_of_fixed_length() -> None:
    original = attention(inputs=dict.fromkeys(SINGLE, "[B,1,8]"))
    found = fused(original)
    check(found)
    same(original, found.model, {"B": 1}, {"B": 3})


SINGLE_HEAD = {name: f"[{axes}]" for name, axes in {"any": "B,S,8", "a batch of 1": "1,S,8", "fixed": "2,3,8"}.items()}


@pytest.mark.parametrize("shape", SINGLE_HEAD.values(), ids=SINGLE_HEAD)
def test_a_single_head(shape: str) -> None:
    """Its Transpose moves an axis of size 1 alone, so that a Reshape does the same."""
    original = attention(
        inputs=dict.fromkeys(SINGLE, shape),
        weights={"heads": np.array([0, 0, 1, 8])},
        scale="scaled = Mul({}, half)",
    )
    found = fused(original)
    assert found.record.parts == ("projection", "residual", "norm") and found.attributes["num_heads"] == 1
    assert found.attributes["inputs"] == ",".join((*OPERANDS, *WHOLE))
    same(original, found.model, {"B": 1, "S": 1}, {"B": 2, "S": 3})


LOOKALIKES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "batch elements are no heads": (
        dict.fromkeys(("q", "k", "v", "x"), "[2,S,8]"),
        {
            "query": "qh = Identity(q)",
            "key": "kt = Transpose <perm = [0, 2, 1]> (k)",
            "value": "vh = Identity(v)",
            "merge": "moved = Transpose <perm = [1, 0, 2]> ({})\nwide = Reshape(moved, wide_rows)\nmerged = Identity(wide)",
            **CORE,
        },
    ),
    "heads are merged behind what each has": (
        SINGLE,
        {**LEFT_OUT, "merge": "moved = Transpose <perm = [1, 2, 0]> ({})\nmerged = Reshape(moved, flat_1)"},
    ),
    "tokens are merged behind the heads": (
        dict.fromkeys(("q", "k", "v", "x"), "[1,3,8]"),
        {**LEFT_OUT, "merge": "merged = Reshape({}, flat_1)"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "form"), LOOKALIKES.values(), ids=LOOKALIKES)
def test_what_is_no_attention_of_a_batch_of_one_stays(inputs: dict[str, str], form: dict[str, str]) -> None:
    weights = {**WEIGHTS, "wide_rows": np.array([-1, 16])}
    assert refused(attention(inputs=inputs, weights=weights, **form)) != []


def test_tokens_before_the_batch() -> None:
    """The residual is turned for the node, and what it makes is turned back."""
    step = {"merge": ("moved = Transpose <perm = [1, 0, 2]> ({})\nsizes = Shape(q)\nmerged = Reshape(moved, sizes)")}
    original = attention(inputs=FIRST, weights=WEIGHTS, **TOKENS_FIRST, **step)
    found = fused(original)
    assert found.record.parts == ("projection", "residual", "norm")
    same(original, found.model, {"S": 1, "B": 1}, {"S": 5, "B": 2}, {"S": 2, "B": 3})


def test_a_residual_that_is_broadcast_over_tokens_stays_outside() -> None:
    merge = "moved = Transpose <perm = [1, 0, 2]> ({})\nmerged = Reshape(moved, rows_1)"
    inputs = {**dict.fromkeys(SINGLE, "[S,1,8]"), "x": "[1,1,8]"}
    original = attention(inputs=inputs, outputs={"normed": "[S,1,8]"}, weights=WEIGHTS, **{**LEFT_OUT, "merge": merge})
    found = fused(original)
    assert found.record.parts == ("projection",)
    same(original, found.model, {"S": 4})


def test_channels_first() -> None:
    """Query, key and value [B, h*d, S], as 1x1 convolutions make them, and the same for the result."""
    original = attention(
        inputs=dict.fromkeys(("q", "k", "v"), "[B,8,S]"),
        outputs={"merged": "[B,8,S]"},
        weights=WEIGHTS,
        query="q4 = Reshape(q, channel_heads) qh = Transpose <perm = [0, 1, 3, 2]> (q4)",
        key="kt = Reshape(k, channel_heads)",
        value="v4 = Reshape(v, channel_heads) vh = Transpose <perm = [0, 1, 3, 2]> (v4)",
        merge="moved = Transpose <perm = [0, 1, 3, 2]> ({})\nmerged = Reshape(moved, columns)",
        **CORE,
    )
    found = fused(original)
    check(found, inputs=OPERANDS, layout="BHSD", norm="none", epsilon=0.0)
    same(original, found.model, {"B": 1, "S": 1}, {"B": 2, "S": 5})


PACKED = """
    packed = MatMul(q, packed_weight)
    five = Reshape(packed, packed_heads)
    turned = Transpose <perm = [2, 0, 3, 1, 4]> (five)
    folded = Reshape(turned, folded_heads)"""
PICKS = {
    "Split": """
        one, other, last_one = Split <axis = 0> (folded, ones)
        qh = Squeeze(one, zeroth) kh = Squeeze(other, zeroth) vh = Squeeze(last_one, zeroth)""",
    "Gather": """
        qh = Gather <axis = 0> (folded, place_0) kh = Gather <axis = 0> (folded, place_1)
        vh = Gather <axis = 0> (folded, place_2)""",
}
FOLDED = {
    "packed_heads": np.array([2, 12, 3, 2, 4]),
    "folded_heads": np.array([3, 4, 12, 4]),
    "ones": np.array([1, 1, 1]),
    "place_0": np.array(0),
    "place_1": np.array(1),
    "place_2": np.array(2),
    "unfolded_heads": np.array([2, 2, 3, 4, 4]),
    "image": np.array([2, 3, 4, 8]),
    "zeroth": np.array([0]),
}
UNFOLD = """unfolded = Reshape({}, unfolded_heads)
    moved = Transpose <perm = [0, 2, 3, 1, 4]> (unfolded)
    merged = Reshape(moved, image)"""


@pytest.mark.parametrize("pick", PICKS.values(), ids=PICKS)
def test_tokens_on_two_axes(pick: str) -> None:
    """As image encoders have them, heads and batch in one axis."""
    original = attention(
        inputs=dict.fromkeys(("q", "x"), "[2,3,4,8]"),
        weights=FOLDED,
        query=PACKED + pick,
        key="kt = Transpose <perm = [0, 2, 1]> (kh)",
        value="",
        merge=UNFOLD,
    )
    found = fused(original)
    assert found.record.parts == ("projection", "residual", "norm")
    assert found.attributes["num_heads"] == 2
    same(original, found.model)


SHARED = {"q": "[B,2,S,4]", "k": "[B,1,S,4]", "v": "[B,1,S,4]"}
ONE_HEAD = {"query": "qh = Identity(q)", "value": "vh = Identity(v)"}
SHARED_FORMS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "broadcast": (SHARED, {**ONE_HEAD, "key": "kt = Transpose <perm = [0, 1, 3, 2]> (k)"}),
    "transposed with its new axis": (
        {**SHARED, "k": "[B,S,4]"},
        {**ONE_HEAD, "key": "k4 = Unsqueeze(k, first) kt = Transpose <perm = [0, 1, 3, 2]> (k4)"},
    ),
    "by Einsum": (
        {**SHARED, "k": "[B,S,4]", "v": "[B,S,4]"},
        {
            "query": "",
            "key": "",
            "value": "",
            "product": 'product = Einsum <equation = "bhid,bjd->bhij"> (q, k)',
            "context": 'context = Einsum <equation = "bhij,bjd->bhid"> ({}, v)',
        },
    ),
}


@pytest.mark.parametrize(("inputs", "form"), SHARED_FORMS.values(), ids=SHARED_FORMS)
def test_one_key_value_head_for_all(inputs: dict[str, str], form: dict[str, str]) -> None:
    original = attention(inputs=inputs, outputs={"merged": "[B,S,8]"}, weights=WEIGHTS, **form, **CORE)
    found = fused(original)
    assert (found.attributes["num_heads"], found.attributes["num_key_value_heads"]) == (2, 1)
    same(original, found.model, {"B": 1, "S": 1}, {"B": 2, "S": 5})


def test_an_ellipsis_in_einsum() -> None:
    original = attention(
        key="k4 = Reshape(k, heads) kh = Transpose <perm = [0, 2, 1, 3]> (k4)",
        product='product = Einsum <equation = "...id,...jd->...ij"> (qh, kh)',
        context='context = Einsum <equation = "...ij, ...jd -> ...id"> ({}, vh)',
    )
    found = fused(original)
    check(found)
    same(original, found.model, {"B": 1, "S": 1}, {"B": 2, "S": 5})


def test_an_ellipsis_that_is_broadcast_stays() -> None:
    text = """(float[B,2,S,4] x, float[S,4] z) => (float[B,2,S,S] y) {
        y = Einsum <equation = "...id,...jd->...ij"> (x, z)
    }"""
    assert [node.op_type for node in helpers.view_of(helpers.model(text)).all_nodes()] == ["Einsum"]


SHARED_LOOKALIKES = {
    "a batch is broadcast as well": {**SHARED, "k": "[1,1,S,4]", "q": "[2,2,S,4]", "v": "[2,1,S,4]"},
    "the query's head is shared": {**SHARED, "q": "[B,1,S,4]", "k": "[B,2,S,4]", "v": "[B,2,S,4]"},
    "its heads do not divide": {**SHARED, "q": "[B,h,S,4]"},
}


@pytest.mark.parametrize("inputs", SHARED_LOOKALIKES.values(), ids=SHARED_LOOKALIKES)
def test_what_is_no_shared_head_stays(inputs: dict[str, str]) -> None:
    form = {**ONE_HEAD, "key": "kt = Transpose <perm = [0, 1, 3, 2]> (k)"}
    original = attention(inputs=inputs, outputs={"merged": "[B,S,e]"}, **form, **CORE)
    assert refused(original) != []


def test_only_the_key_is_shared() -> None:
    """No operator has that: the key is repeated for it."""
    inputs = {**SHARED, "v": "[B,2,S,4]"}
    form = {**ONE_HEAD, "key": "kt = Transpose <perm = [0, 1, 3, 2]> (k)"}
    original = attention(inputs=inputs, outputs={"merged": "[B,S,8]"}, **form, **CORE)
    found = fused(original)
    assert (found.attributes["num_heads"], found.attributes["num_key_value_heads"]) == (2, 2)
    same(original, found.model, {"B": 2, "S": 3})


ROTATED = """
    shape = Shape(q)
    length = Gather(shape, one_place)
    limit = Cast <to = 1> (length)
    positions = Range(zero, limit, STEP)
    column = Unsqueeze(positions, first)
    angles = Cos(column)
    q4 = Reshape(q, heads)
    q0 = Transpose <perm = [0, 2, 1, 3]> (q4)
    qh = Mul(q0, angles)"""


def test_positions_counted_in_floats() -> None:
    weights = {**WEIGHTS, "one_place": np.array(1)}
    original = attention(query=ROTATED.replace("STEP", "one"), weights=weights)
    found = fused(original)
    assert found.record.parts == ("projection", "residual", "norm")
    same(original, found.model, {"B": 1, "S": 1}, {"B": 2, "S": 7})


def test_a_norm_of_query_and_key_before_the_opset_that_has_it() -> None:
    norm = """
        s{0} = Pow({0}0, two) m{0} = ReduceMean <axes = [-1], keepdims = 1> (s{0}) e{0} = Add(m{0}, epsilon)
        d{0} = Sqrt(e{0}) i{0} = Div(one, d{0}) n{0} = Mul({0}0, i{0}) {0}h = Mul(n{0}, gamma_4)"""
    split = "{0}4 = Reshape({0}, heads) {0}0 = Transpose <perm = [0, 2, 1, 3]> ({0}4)"
    original = attention(
        weights={"gamma_4": drawn(4, centre=1.0)},
        query=(split + norm).format("q"),
        key=(split + norm).format("k") + " kt = Transpose <perm = [0, 1, 3, 2]> (kh)",
    )
    found = fused(original)
    check(found, layout="BHSD")
    same(original, found.model, {"B": 1, "S": 1}, {"B": 2, "S": 6})


def test_a_weighed_residual() -> None:
    """x + c (z W + b): c goes into the weight and the bias."""
    original = attention(bias="biased = Add({}, bias)\nweighed = Mul(biased, half)")
    found = fused(original)
    check(found)
    same(original, found.model, {"B": 1, "S": 1}, {"B": 2, "S": 5})


@pytest.mark.parametrize("one", ["one", "one_1"])
@pytest.mark.parametrize("operator", ["Div", "Mul"])
def test_a_scale_of_one(one: str, operator: str) -> None:
    weights = {"one_1": np.array([[[1.0]]], np.float32)}
    original = attention(bias=f"biased = Add({{}}, bias)\nscaled_by_one = {operator}(biased, {one})", weights=weights)
    found = fused(original)
    check(found)
    same(original, found.model, {"B": 2, "S": 5})


WEIGHED = {
    "by what is no constant": ("Mul(biased, c)", {"c": "[1]"}, {}),
    "by a number for each channel": ("Mul(biased, gamma)", {}, {}),
    "by 1 with more axes": ("Div(biased, one_4)", {}, {"one_4": np.ones((1, 1, 1, 1), np.float32)}),
    "1 by it": ("Div(one, biased)", {}, {}),
}


@pytest.mark.parametrize(("text", "inputs", "weights"), WEIGHED.values(), ids=WEIGHED)
def test_what_is_no_scale_of_the_weight_stays(text: str, inputs: dict[str, str], weights: dict[str, Any]) -> None:
    outputs = {"normed": "[1,B,S,8]"} if "one_4" in weights else {}
    original = attention(
        bias=f"biased = Add({{}}, bias)\nweighed = {text}", inputs=inputs, outputs=outputs, weights=weights
    )
    found = fused(original)
    assert found.record.parts == ("projection",)
    same(original, found.model, {"B": 2, "S": 3})


WINDOWS = dict.fromkeys(("q", "k", "v"), "[B,3,2,S,4]")
WINDOW_STEPS = {
    "query": "qh = Identity(q)",
    "key": "kt = Transpose <perm = [0, 1, 2, 4, 3]> (k)",
    "value": "vh = Identity(v)",
    "merge": "moved = Transpose <perm = [0, 1, 3, 2, 4]> ({})\nmerged = Reshape(moved, windows)",
}
WINDOW_WEIGHTS = {"windows": np.array([0, 0, 0, 8])}


@pytest.mark.parametrize(
    "mask", [None, "[S,S]", "[2,1,S]", "[1,1,1,1,S]", "[B,3,1,S,S]", "[B,3,2,1,S]", "[1,3,1,S,S]", "[B,1,2,1,S]"]
)
def test_windows_beside_the_batch(mask: str | None) -> None:
    """They are folded into it, with the residual and what the block makes."""
    inputs = {**WINDOWS, "x": "[B,3,S,8]"} | ({} if mask is None else {"m": mask})
    steps = WINDOW_STEPS | ({} if mask is None else {"mask": "masked = Add({}, m)"})
    original = attention(inputs=inputs, weights=WINDOW_WEIGHTS, **steps)
    found = fused(original)
    assert found.record.parts == ("projection", "residual", "norm")
    assert found.attributes["num_heads"] == 2
    same(original, found.model, {"B": 1, "S": 1}, {"B": 2, "S": 5})


def test_windows_whose_number_only_a_run_knows() -> None:
    """Their number is read off an input of the graph."""
    inputs = {**dict.fromkeys(("q", "k", "v"), "[B,W,2,S,4]"), "x": "[B,W,S,8]"}
    original = attention(inputs=inputs, weights=WINDOW_WEIGHTS, **WINDOW_STEPS)
    found = fused(original)
    assert found.record.parts == ("projection", "residual", "norm")
    same(original, found.model, {"B": 1, "W": 1, "S": 1}, {"B": 2, "W": 3, "S": 5})


def test_a_mask_of_windows_after_a_scale_of_each_head() -> None:
    """Swin v2: scores are scaled by head, biased by head, then split by windows for a mask that is the same for all images."""
    inputs = {**dict.fromkeys(("q", "k", "v"), "[W,4,8]"), "m": "[1,3,1,4,4]", "b": "[1,2,4,4]"}
    steps: dict[str, Any] = {
        "weights": {
            "factor": np.array([[[0.5]], [[3.0]]]),
            "by_window": np.array([-1, 3, 2, 4, 4]),
            "by_row": np.array([-1, 2, 4, 4]),
        },
        "scale": "by_head = Mul({}, factor)\nscaled = Add(by_head, b)",
        "mask": "apart = Reshape({}, by_window)\nmasked_windows = Add(apart, m)\nmasked = Reshape(masked_windows, by_row)",
        **CORE,
    }
    # W is read off no input as a number of images: the mask cannot be repeated for them
    refused(attention(inputs=inputs, outputs={"merged": "[W,4,8]"}, **steps))
    inputs |= dict.fromkeys(("q", "k", "v"), "[6,4,8]")
    original = attention(inputs=inputs, outputs={"merged": "[6,4,8]"}, **steps)
    found = fused(original)
    assert found.attributes["num_heads"] == 2
    assert "attention_bias" in found.inputs
    same(original, found.model)


def hiera(heads: int, *, pooled: bool = False, picked: str = "Split") -> dict[str, str]:
    """Heads before windows, all three picked from one product [B, tokens, windows, 3, heads, size]."""
    pick = {
        "Split": "q6, k6, v6 = Split <axis = 0> (turned, ones)",
        "Slice": (
            "q6 = Slice(turned, zeroth, first, zeroth) k6 = Slice(turned, first, second, zeroth) "
            "v6 = Slice(turned, second, third, zeroth)"
        ),
    }[picked]
    query = "query = Squeeze(q6, zeroth)"
    if pooled:
        query = (
            "whole = Squeeze(q6, zeroth) parts = Reshape(whole, pools) query = ReduceMax <keepdims = 0> (parts, axis_3)"
        )
    return {
        "query": (
            "split = Reshape(qkv, parts_of) turned = Transpose <perm = [3, 0, 4, 2, 1, 5]> (split)\n"
            f"{pick}\n{query}\nqh = Identity(query)"
        ),
        "key": "key = Squeeze(k6, zeroth) kt = Transpose <perm = [0, 1, 2, 4, 3]> (key)",
        "value": "vh = Squeeze(v6, zeroth)",
        "merge": "moved = Transpose <perm = [0, 3, 2, 1, 4]> ({})\nmerged = Reshape(moved, flat)",
    }


@pytest.mark.parametrize("picked", ["Split", "Slice"])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(("batch", "pooled"), [("B", False), ("B", True), ("1", False)])
def test_heads_before_windows(heads: int, batch: str, pooled: bool, picked: str) -> None:
    """Hiera: windows beside heads, of which there may be one, and queries that are pooled."""
    size = 8 // heads
    numbers = {
        "parts_of": [0, 4, 3, 3, heads, size],
        "pools": [0, heads, 3, 2, 2, size],
        "axis_3": [3],
        "flat": [0, -1, 8],
        "ones": [1, 1, 1],
        "zeroth": [0],
        "first": [1],
        "second": [2],
        "third": [3],
    }
    original = attention(
        inputs={"qkv": f"[{batch},12,24]", "x": f"[{batch},{6 if pooled else 12},8]"},
        weights={name: np.array(value) for name, value in numbers.items()},
        opset=18,
        **hiera(heads, pooled=pooled, picked=picked),
    )
    found = fused(original)
    assert found.record.parts[:1] == ("projection",)
    assert found.attributes["num_heads"] == heads
    same(original, found.model, *([{}] if batch == "1" else [{"B": 1}, {"B": 3}]))


WINDOW_LOOKALIKES = {
    "a mask of other windows": ({**WINDOWS, "m": "[1,1,1,1,1,S]"}, {"mask": "masked = Add({}, m)"}),
    "a softmax over windows": (WINDOWS, {"softmax": "probabilities = Softmax <axis = 1> ({})"}),
    "a softmax over queries": (WINDOWS, {"softmax": "probabilities = Softmax <axis = -2> ({})"}),
    "windows of the key shared": ({**WINDOWS, "k": "[B,1,2,S,4]"}, {}),
}


@pytest.mark.parametrize(("inputs", "form"), WINDOW_LOOKALIKES.values(), ids=WINDOW_LOOKALIKES)
def test_what_cannot_be_folded_stays(inputs: dict[str, str], form: dict[str, str]) -> None:
    original = attention(
        inputs=inputs, outputs={"merged": "[B,3,S,8]"}, weights=WINDOW_WEIGHTS, **(WINDOW_STEPS | form), **CORE
    )
    assert refused(original) != []


LOWEST = np.finfo(np.float32).min
FLOORED = {"mask": "added = Add({}, m)\nmasked = Max(added, lowest)"}


def extreme(original: ModelProto, made: ModelProto, **rows: Any) -> None:
    """Equal results for masks that hold numbers near the end of float32, and infinite ones."""
    before, after = helpers.session(original), helpers.session(made)
    for low in (LOWEST, -np.inf, 2 * np.float32(-1e38), -1e4):
        feeds = helpers.feeds(original, B=2, S=3)
        for hidden in (np.array([0, 0, low]), np.array([low, low, low])):
            feeds["m"] = np.broadcast_to(hidden.astype(np.float32), (2, 1, 3, 3)).copy()
            for want, got in zip(before.run(None, feeds), after.run(None, feeds), strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_scores_that_are_raised_to_the_lowest_number() -> None:
    """XGLM: what two masks have made -inf is a number again before the Softmax."""
    original = attention(inputs={"m": "[B,1,S,S]"}, weights={"lowest": np.array(LOWEST)}, **FLOORED)
    found = fused(original)
    assert "attention_bias" in found.inputs
    assert found.record.parts == ("projection", "residual", "norm")
    extreme(original, found.model)


@pytest.mark.parametrize(
    ("lowest", "mask"),
    [
        (np.array(-1e4), FLOORED["mask"]),
        (np.array([[[[LOWEST]]]]), FLOORED["mask"]),
        (np.array(LOWEST), "added = Add({}, m)\nmasked = Min(added, lowest)"),
        (np.array(LOWEST), "masked = Max({}, m, lowest)"),
    ],
    ids=["a floor that scores reach", "a floor with axes", "a ceiling", "a mask that is a floor"],
)
def test_what_is_no_floor_of_scores_stays(lowest: Any, mask: str) -> None:
    original = attention(
        inputs={"m": "[B,1,S,S]"}, outputs={"merged": "[B,S,8]"}, weights={"lowest": lowest}, mask=mask, **CORE
    )
    assert refused(original) != []


JOINED = "turned = Transpose <perm = [0, 2, 1, 3]> ({})\njoined = Concat <axis = 2> (turned, other)\n"
JOINED_HEADS = {"merge": f"{JOINED}merged = Reshape(joined, wide)"}


def test_heads_joined_with_others() -> None:
    """ConvBERT: heads of attention beside those of a convolution, merged together."""
    original = attention(
        inputs={"other": "[B,S,3,4]"},
        outputs={"merged": "[B,S,20]"},
        weights={"wide": np.array([0, 0, 20])},
        **{**CORE, **JOINED_HEADS},
    )
    found = fused(original)
    assert found.record.parts == ()
    same(original, found.model, {"B": 1, "S": 1}, {"B": 2, "S": 5})


@pytest.mark.parametrize(
    ("inputs", "merge", "wide"),
    [
        ({"other": "[B,2,S,4]"}, "joined = Concat <axis = 1> ({}, other)\nmerged = Reshape(joined, wide)", [0, -1, 16]),
        ({"other": "[B,S,2,4]"}, f"{JOINED.replace('axis = 2', 'axis = 3')}merged = Reshape(joined, wide)", [0, 0, 16]),
        ({"other": "[B,S,2,4]"}, f"{JOINED}merged = Reshape(joined, wide)", [0, -1, 4]),
    ],
    ids=["joined before they are turned", "sizes joined", "merged with tokens"],
)
def test_what_is_joined_otherwise_stays(inputs: dict[str, str], merge: str, wide: list[int]) -> None:
    original = attention(
        inputs=inputs, outputs={"merged": "[B,R,C]"}, weights={"wide": np.array(wide)}, **{**CORE, "merge": merge}
    )
    assert refused(original) != []


ONE_LOST = {
    "key": "k3 = Reshape(k, tokens) kt = Transpose <perm = [1, 2, 0]> (k3)",
    "value": "v3 = Reshape(v, tokens) vh = Transpose <perm = [1, 0, 2]> (v3)",
}


@pytest.mark.parametrize("lost", ["key", "value"])
def test_a_batch_of_one_that_only_one_operand_lost(lost: str) -> None:
    """torch's optimizer drops the Reshape that would have put it back."""
    original = attention(inputs=SINGLE, weights=WEIGHTS, **{lost: ONE_LOST[lost]})
    found = fused(original)
    assert found.record.parts == ("projection", "residual", "norm")
    same(original, found.model, {"S": 1}, {"S": 5})


@pytest.mark.parametrize(
    ("inputs", "form"),
    [
        ({"k": "[S,8]"}, {"key": ONE_LOST["key"]}),
        ({"v": "[S,8]"}, {"value": ONE_LOST["value"]}),
        ({**SINGLE, "k": "[S,4]"}, {"key": "k1 = Unsqueeze(k, zeroth) kt = Transpose <perm = [0, 2, 1]> (k1)"}),
    ],
    ids=["one key for all of the batch", "one value for all of the batch", "one head of the key for all"],
)
def test_what_lost_no_batch_stays(inputs: dict[str, str], form: dict[str, str]) -> None:
    original = attention(
        inputs=inputs, outputs={"merged": SINGLE["q"] if "q" in inputs else "[B,S,8]"}, weights=WEIGHTS, **form, **CORE
    )
    assert refused(original) != []


def test_a_scaled_query_that_others_read() -> None:
    """DeBERTa: positions are scored with the scaled query too."""
    original = attention(
        inputs={"p": "[1,2,4,S]"},
        scale="",
        query="q4 = Reshape(q, heads)\nturned = Transpose <perm = [0, 2, 1, 3]> (q4)\nqh = Mul(turned, half)",
        mask="placed = MatMul(qh, p)\nmasked = Add({}, placed)",
    )
    found = fused(original)
    assert found.attributes["scale"] == 0.5
    assert "attention_bias" in found.inputs
    same(original, found.model, {"B": 1, "S": 1}, {"B": 2, "S": 5})


def windows_and_heads_in_one_axis(batch: str, bias: str = "") -> ModelProto:
    """SAM: images in 2 x 2 windows of 2 x 2 tokens, all of them and their heads in one axis."""
    parts = "whole = Reshape(qkv, cut) turned = Transpose <perm = [5, 0, 1, 3, 6, 2, 4, 7]> (whole)"
    return attention(
        inputs={"qkv": f"[{batch},4,4,24]", "p": bias or "[4]"},
        outputs={"merged": f"[{batch},4,4,8]"},
        weights={
            "cut": np.array([-1, 2, 2, 2, 2, 3, 2, 4]),
            "flat_all": np.array([3, -1, 4, 4]),
            "zeroth": np.array(0),
            "first": np.array(1),
            "second": np.array(2),
            "images": np.array([-1, 2, 2, 2, 2, 2, 4]),
            "tokens": np.array([-1, 4, 4, 8]),
        },
        query=f"{parts}\nall = Reshape(turned, flat_all) qh = Gather <axis = 0> (all, zeroth)",
        key="key = Gather <axis = 0> (all, first) kt = Transpose <perm = [0, 2, 1]> (key)",
        value="vh = Gather <axis = 0> (all, second)",
        mask="masked = Add({}, p)" if bias else "",
        merge=(
            "apart_again = Reshape({}, images)\n"
            "moved = Transpose <perm = [0, 1, 4, 2, 5, 3, 6]> (apart_again)\nmerged = Reshape(moved, tokens)"
        ),
        **CORE,
    )


@pytest.mark.parametrize(
    ("batch", "bias"), [("B", ""), ("B", "[4,4]"), ("1", ""), ("1", "[8,4,4]"), ("3", "[24,1,4]"), ("3", "[1,1,4]")]
)
def test_windows_on_two_axes_merged_with_heads(batch: str, bias: str) -> None:
    original = windows_and_heads_in_one_axis(batch, bias)
    found = fused(original)
    assert found.attributes["num_heads"] == 2
    same(original, found.model, *([{"B": 1}, {"B": 3}] if batch == "B" else [{}]))
