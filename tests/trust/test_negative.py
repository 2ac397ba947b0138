"""Graphs that look like a fusion and are not: nothing wrong is fused, and the report says what stopped it, at the right place.

Beside them stand a few that look otherwise and are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tests.trust import graphs
from tests.trust.graphs import ATTENTION, DECOMPOSED, DECOMPOSED_RMS, EMBEDDING, SKIP, SWISH, build, drawn

SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 4})

FIVE = dict.fromkeys(("q", "k", "v", "x", "skip"), "[B,5,8]")
FOUR = dict.fromkeys(("q", "k", "v", "x"), "[B,4,8]")
ONE = dict.fromkeys(("q", "k", "v", "x"), "[1,S,8]")
OUTSIDE_ROOT = DECOMPOSED.replace(
    "shifted = Add(variance, epsilon)\n    std = Sqrt(shifted)", "root = Sqrt(variance)\n    std = Add(root, epsilon)"
)
CUBED = DECOMPOSED.replace("Pow(centred, two)", "Pow(centred, three)")
OVER_POSITIONS = "normed = LayerNormalization <axis = 1> ({}, gamma, beta)"
WITH_MEAN = "normed, average = LayerNormalization <axis = -1> ({}, gamma, beta)"
IN_HEADS = "moved = Transpose <perm = [0, 2, 1, 3]> ({})\nmerged = Reshape(moved, flat)"
LATE = "word0 = Gather(words, ids)\nkind = Gather(kinds, types)\nword = "
PLACE_FIRST = "total = Add(place, word)"
PER_POSITION = {"gamma": drawn(5, 8), "beta": drawn(5, 8)}
ONNX_ATTENTION = dict.fromkeys(("query", "key", "value", "product", "scale", "softmax"), "")
SPLIT_INPUTS = dict.fromkeys(("q", "k", "v"), "[B,2,S,4]")
AS_NUMBERS = {
    "inputs": {},
    "scale": "wide = Cast <to = 1> ({})\nscaled = Mul(wide, half)",
    "value": "v4 = Reshape(v, heads)\nvt = Transpose <perm = [0, 2, 1, 3]> (v4)\nvh = Cast <to = 1> (vt)",
}


def in_a_domain(signature: str, body: str) -> str:
    return f'<domain: "my.ops", opset_import: ["" : 17]>\n{signature} {{ {body} }}'


@dataclass(frozen=True)
class Case:
    """A graph and what the report must say of it.

    Attributes:
        at: the node or value the sentence is about.
        says: what the sentence on it contains.
        steps: see `graphs.build`.
        kept: what of the fusion's rim is fused all the same; None where nothing is.
        runs: whether ONNX Runtime takes the graph at all.
    """

    fusion: str
    at: str
    says: str
    steps: dict[str, Any] = field(default_factory=dict)
    kept: tuple[str, ...] | None = None
    runs: bool = True


CASES: dict[str, Case] = {}
FUSED: dict[str, tuple[str, dict[str, Any]]] = {}


def fused(description: str, fusion: str, **steps: Any) -> None:
    """All of it fuses: the odd step goes into what the fused node reads."""
    assert description not in FUSED
    FUSED[description] = fusion, steps


def refused(description: str, fusion: str, at: str, says: str, *, runs: bool = True, **steps: Any) -> None:
    """Nothing fuses."""
    assert description not in CASES
    CASES[description] = Case(fusion, at, says, steps, runs=runs)


def partly(description: str, kept: tuple[str, ...], at: str, says: str, **steps: Any) -> None:
    """Attention fuses without the odd part; a near miss says what is odd, or the match's own `left_out`."""
    assert description not in CASES
    CASES[description] = Case(ATTENTION, at, says, steps, kept)


BARE, PROJECTED, SUMMED = (), ("projection",), ("projection", "residual")

# -- the norm after attention -------------------------------------------------------------------------------------------

partly(
    "a LayerNorm over positions",
    SUMMED,
    "LayerNormalization_normed",
    "attribute axis is -2, pattern wants -1",
    inputs=FIVE,
    weights=PER_POSITION,
    norm=OVER_POSITIONS,
)
partly("a variance of cubes", SUMMED, "three", "the constant is 3, pattern wants 2", norm=CUBED)
partly("an epsilon outside the root", SUMMED, "Add_std", "found Add Add_std, pattern wants Sqrt", norm=OUTSIDE_ROOT)
partly(
    "a scale for each position",
    SUMMED,
    "Mul_scaled_norm",
    "the scale gamma has shape [5, 1], pattern wants [8]",
    inputs=FIVE,
    weights={"gamma": drawn(5, 1)},
    norm=DECOMPOSED,
)
partly(
    "a scale of one number",
    SUMMED,
    "Mul_scaled_norm",
    "the scale gamma has shape [1], pattern wants [8]",
    weights={"gamma": drawn(1)},
    norm=DECOMPOSED,
)
partly(
    "a mean over positions",
    SUMMED,
    "ReduceMean_mean",
    "ReduceMean is no part of the pattern",
    norm=DECOMPOSED.replace("mean = ReduceMean <axes = [-1]>", "mean = ReduceMean <axes = [1]>"),
)
partly(
    "a variance over positions",
    SUMMED,
    "ReduceMean_variance",
    "attribute axes is [-2], pattern wants [-1]",
    norm=DECOMPOSED.replace("variance = ReduceMean <axes = [-1]>", "variance = ReduceMean <axes = [1]>"),
)
partly(
    "the mean less the value",
    SUMMED,
    "Sub_centred",
    "Sub is no part of the pattern",
    norm=DECOMPOSED.replace("Sub({}, mean)", "Sub(mean, {})"),
)
partly(
    "the deviation over the value",
    SUMMED,
    "Sub_centred",
    "Sub is no part of the pattern",
    norm=DECOMPOSED.replace("Div(centred, std)", "Div(std, centred)"),
)
partly(
    "a sum of squares, not their mean",
    SUMMED,
    "ReduceSum_variance",
    "found ReduceSum ReduceSum_variance, pattern wants ReduceMean",
    norm=DECOMPOSED.replace("ReduceMean <axes = [-1]> (square)", "ReduceSum(square, last)"),
)
partly(
    "magnitudes for squares",
    SUMMED,
    "Abs_square",
    "found Abs Abs_square, pattern wants Pow or Mul",
    norm=DECOMPOSED.replace("Pow(centred, two)", "Abs(centred)"),
)
partly(
    "a mean that is read elsewhere",
    SUMMED,
    "ReduceMean_mean",
    "its output mean is also read by Mul_end outside the match",
    norm=DECOMPOSED,
    after="end = Mul(normed, mean)",
)
partly(
    "a LayerNorm whose mean is an output too",
    SUMMED,
    "LayerNormalization_normed",
    "its output average is also read by Mul_end outside the match",
    norm=WITH_MEAN,
    after="end = Mul(normed, average)",
)
partly(
    "a Softmax where the norm should be",
    SUMMED,
    "Softmax_normed",
    "Softmax is no part of the pattern",
    norm="normed = Softmax <axis = -1> ({})",
)

# -- residual and projection --------------------------------------------------------------------------------------------

partly("a residual that is subtracted", PROJECTED, "Sub_total", "Sub is no part", residual="total = Sub({}, x)")
partly("a residual of one position", PROJECTED, "Add_total", "the residual x is broadcast", inputs={"x": "[B,1,8]"})
partly("a residual of one row", PROJECTED, "Add_total", "the residual x is broadcast", inputs={"x": "[1,1,8]"})
partly(
    "a residual with more rows than attention has",
    PROJECTED,
    "Add_total",
    "the residual x is larger than what it is added to, [1, S, 8]",
    inputs={**ONE, "x": "[B,S,8]"},
)
partly("a bias of one number", PROJECTED, "Add_biased", "bias is broadcast", weights={"bias": drawn(1)})
partly(
    "a bias for each position",
    PROJECTED,
    "Add_biased",
    "bias is broadcast",
    inputs=FIVE,
    weights={"bias": drawn(5, 8)},
)
partly(
    "a weight that is computed for each row",
    BARE,
    "MatMul_projected",
    "weight has shape [B, 8, 8], pattern wants [E Ho]",
    inputs={"weight": "[B,8,8]"},
)
partly(
    "a weight for each row",
    BARE,
    "MatMul_projected",
    "weight has shape [3, 8, 8], pattern wants [E Ho]",
    inputs=dict.fromkeys("qkvx", "[3,S,8]"),
    weights={"weight": drawn(3, 8, 8)},
)
partly(
    "an activation between projection and residual",
    PROJECTED,
    "Relu_biased",
    "Relu is no part of the pattern",
    bias="biased0 = Add({}, bias)\nbiased = Relu(biased0)",
)
partly(
    "a Dropout whose mask is an output",
    PROJECTED,
    "Dropout_biased",
    "Dropout is no part of the pattern",
    bias="biased0 = Add({}, bias)\nbiased, kept = Dropout(biased0)",
    outputs={"kept": ""},
)

# -- heads --------------------------------------------------------------------------------------------------------------

refused(
    "heads merged inside out",
    ATTENTION,
    "Transpose_moved",
    "attribute perm is [0, 2, 3, 1], pattern wants [0, 2, 1, 3]",
    merge="moved = Transpose <perm = [0, 2, 3, 1]> ({})\nmerged = Reshape(moved, flat)",
)
refused(
    "heads merged without a Transpose",
    ATTENTION,
    "MatMul_context",
    "found MatMul MatMul_context, pattern wants Transpose",
    inputs=FIVE,
    weights={"rows": np.array([-1, 5, 8])},
    merge="merged = Reshape({}, rows)",
)
refused(
    "heads merged into positions",
    ATTENTION,
    "qh",
    "dimension Sq of qh is 4, elsewhere in the match it is 8",
    inputs=FOUR,
    weights={"flat": np.array([0, 8, 4]), "weight": drawn(4, 8)},
    residual="",
    norm="",
)
refused(
    "keys of one batch element for all, by broadcasting",
    ATTENTION,
    "kt",
    "dimension B of kt is 1, elsewhere in the match it is B",
    inputs={"k": "[1,S,8]"},
)
refused(
    "ONNX's Attention with head counts that do not divide",
    ATTENTION,
    "Attention_context",
    "head counts of its inputs are unknown",
    runs=False,
    opset=23,
    inputs={"q": "[B,3,S,4]", "k": "[B,2,S,4]", "v": "[B,2,S,4]"},
    weights={"flat": np.array([0, 0, 12]), "weight": drawn(12, 8)},
    **ONNX_ATTENTION,
    context="context = Attention(q, k, v)",
    merge=IN_HEADS,
)
refused(
    "ONNX's Attention with a soft cap",
    ATTENTION,
    "Attention_context",
    "its scores are soft-capped",
    opset=23,
    inputs=SPLIT_INPUTS,
    **ONNX_ATTENTION,
    context="context = Attention <softcap = 2.0> (q, k, v)",
    merge=IN_HEADS,
)

# -- softmax ------------------------------------------------------------------------------------------------------------

for axis, name in ((2, "queries"), (1, "heads")):
    refused(
        f"a Softmax over {name}",
        ATTENTION,
        "Softmax_probabilities",
        f"attribute axis is {axis - 4}, pattern wants -1",
        softmax=f"probabilities = Softmax <axis = {axis}> ({{}})",
    )
refused(
    "a Softmax of logarithms",
    ATTENTION,
    "Log_logs",
    "found Log Log_logs, pattern wants",
    softmax="positive = Exp({})\nplus = Add(positive, one)\nlogs = Log(plus)\nprobabilities = Softmax <axis = -1> (logs)",
)
refused(
    "a Softmax of a Softmax",
    ATTENTION,
    "Softmax_once",
    "found Softmax Softmax_once, pattern wants",
    softmax="once = Softmax <axis = -1> ({})\nprobabilities = Softmax <axis = -1> (once)",
)
refused(
    "scores under a soft cap",
    ATTENTION,
    "Tanh_capped",
    "found Tanh Tanh_capped, pattern wants",
    softmax="capped = Tanh({})\nprobabilities = Softmax <axis = -1> (capped)",
)
refused(
    "a Softmax of another domain",
    ATTENTION,
    "Softmax_probabilities",
    "found my.ops::Softmax Softmax_probabilities, pattern wants",
    softmax="probabilities = my.ops.Softmax({})",
    functions=in_a_domain("Softmax (a) => (b)", "b = Softmax <axis = 1> (a)"),
)
refused(
    "probabilities turned round",
    ATTENTION,
    "Transpose_turned",
    "found Transpose Transpose_turned, pattern wants",
    guard="turned = Transpose <perm = [0, 1, 3, 2]> ({})",
)
refused(
    "probabilities cut off above the diagonal",
    ATTENTION,
    "Trilu_kept",
    "found Trilu Trilu_kept, pattern wants",
    guard="kept = Trilu <upper = 0> ({})",
)
refused(
    "a Dropout in training mode",
    ATTENTION,
    "Dropout_dropped",
    "found Dropout Dropout_dropped, pattern wants",
    guard="ratio = Constant <value_float = 0.0> ()\nyes = Constant <value = bool {1}> ()\ndropped, kept = Dropout({}, ratio, yes)".replace(
        "{}", "probabilities"
    ),
)
refused(
    "a Dropout whose mode is an input",
    ATTENTION,
    "Dropout_dropped",
    "found Dropout Dropout_dropped, pattern wants",
    inputs={"training": "bool"},
    guard="ratio = Constant <value_float = 0.0> ()\ndropped, kept = Dropout({}, ratio, training)",
)

# -- intermediates that somebody needs ----------------------------------------------------------------------------------

READ = "used = ReduceMean <axes = [-1], keepdims = 0> ({})\nthere = ReduceSum <keepdims = 0> (used)\nend = Add(normed, there)"
INTERMEDIATES: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "product": ("MatMul_product", None),
    "scaled": ("Mul_scaled", None),
    "probabilities": ("Softmax_probabilities", None),
    "context": ("MatMul_context", None),
    "merged": ("Reshape_merged", BARE),
    "projected": ("MatMul_projected", PROJECTED),
}
for value, (node, kept) in INTERMEDIATES.items():
    CASES[f"{value} read elsewhere"] = Case(
        ATTENTION,
        node,
        f"its output {value} is also read by ReduceMean_used outside the match",
        {"after": READ.replace("{}", value)},
        kept,
    )
    CASES[f"{value} an output"] = Case(
        ATTENTION, node, f"its output {value} is a graph output", {"outputs": {value: ""}}, kept
    )

# -- masks --------------------------------------------------------------------------------------------------------------

fused(
    "a mask that multiplies",
    ATTENTION,
    inputs={"m": "[B,1,1,S]"},
    mask="masked = Mul({}, m)",
)
fused(
    "a mask after the Softmax",
    ATTENTION,
    inputs={"m": "[B,1,1,S]"},
    guard="kept = Mul({}, m)",
)
fused(
    "a mask that is subtracted",
    ATTENTION,
    inputs={"m": "[B,1,1,S]"},
    mask="masked = Sub({}, m)",
)
refused(
    "a mask with more rows than the scores",
    ATTENTION,
    "qh",
    "dimension B of qh is 1, elsewhere in the match it is 3",
    inputs={**ONE, "m": "[3,1,1,S]", "x": "[3,S,8]"},
    mask="masked = Add({}, m)",
)
refused(
    "Where between scores and other scores",
    ATTENTION,
    "o",
    "o is not a constant with one element (mask_value)",
    inputs={"m": "bool[B,1,1,S]", "o": "[B,2,S,S]"},
    mask="masked = Where(m, {}, o)",
)
refused(
    "Where with a value for each head",
    ATTENTION,
    "low",
    "low is not a constant with one element (mask_value)",
    inputs={"m": "bool[B,1,1,S]"},
    weights={"low": np.array([-1.0, -2.0], np.float32).reshape(2, 1, 1)},
    mask="masked = Where(m, {}, low)",
)
fused(
    "a mask that is scaled with the scores",
    ATTENTION,
    inputs={"m": "[B,1,1,S]"},
    scale="",
    mask="added = Add({}, m)\nmasked = Mul(added, half)",
)
refused(
    "a guard that puts one",
    ATTENTION,
    "one",
    "the constant is 1, pattern wants 0",
    guard="undefined = IsNaN({})\nguarded = Where(undefined, one, {})",
)
refused(
    "a guard the wrong way round",
    ATTENTION,
    "probabilities",
    "found Softmax Softmax_probabilities, pattern wants the constant 0",
    guard="undefined = IsNaN({})\nguarded = Where(undefined, {}, zero)",
)
refused(
    "a guard that looks at the scores",
    ATTENTION,
    "Softmax_probabilities",
    "found Where Where_guarded, which reads probabilities in another way",
    guard="undefined = IsNaN(scaled)\nguarded = Where(undefined, zero, {})",
)
refused(
    "a guard against infinity",
    ATTENTION,
    "Softmax_probabilities",
    "set to 0 at Where_guarded by undefined, which is not the mask",
    guard="undefined = IsInf({})\nguarded = Where(undefined, zero, {})",
)

# -- scales -------------------------------------------------------------------------------------------------------------

PER_HEAD = np.array([0.3, 0.7], np.float32).reshape(2, 1, 1)
fused("a scale for each head", ATTENTION, weights={"each": PER_HEAD}, scale="scaled = Mul({}, each)")
fused("a scale for each key", ATTENTION, inputs={"each": "[B,1,1,S]"}, scale="scaled = Mul({}, each)")
fused("a scale that is an input", ATTENTION, inputs={"each": "float"}, scale="scaled = Mul({}, each)")
refused(
    "a scale over the scores",
    ATTENTION,
    "Div_scaled",
    "found Div Div_scaled, pattern wants",
    scale="scaled = Div(half, {})",
)
refused("scores squared", ATTENTION, "Pow_scaled", "found Pow Pow_scaled, pattern wants", scale="scaled = Pow({}, two)")

# -- types and operators ------------------------------------------------------------------------------------------------

refused("attention in double precision", ATTENTION, "LayerNormalization_normed", "its type is DOUBLE", dtype="double")
for kind, label in (("int32", "INT32"), ("double", "DOUBLE")):
    refused(
        f"{kind} scores made float before the Softmax",
        ATTENTION,
        "LayerNormalization_normed",
        f"query, key and value are {label}",
        **{**AS_NUMBERS, "inputs": dict.fromkeys("qkv", f"{kind}[B,S,8]")},
    )
refused(
    "scores rounded to float16",
    ATTENTION,
    "Cast_narrow",
    "found Cast Cast_narrow, pattern wants MatMul",
    scale="narrow = Cast <to = 10> ({})\nback = Cast <to = 1> (narrow)\nscaled = Mul(back, half)",
)
refused(
    "scores rounded to whole numbers",
    ATTENTION,
    "Cast_whole",
    "attribute to is 7, pattern wants float32",
    mask="whole = Cast <to = 7> ({})\nmasked = Cast <to = 1> (whole)",
)
refused(
    "a MatMul of another domain",
    ATTENTION,
    "MatMul_product",
    "found my.ops::MatMul MatMul_product, pattern wants",
    product="product = my.ops.MatMul(qh, kt)",
    functions=in_a_domain("MatMul (a, b) => (c)", "d = MatMul(a, b)\nc = Abs(d)"),
)

# -- embeddings ---------------------------------------------------------------------------------------------------------

refused(
    "ids in one axis",
    EMBEDDING,
    "LayerNormalization_normed",
    "pattern wants [B, S, H]",
    inputs={"ids": "int64[S]", "spots": "int64[S]"},
)
refused("ids in three axes", EMBEDDING, "LayerNormalization_normed", "pattern wants [B, S, H]",
        inputs={"ids": "int64[B,S,2]", "spots": "int64[B,S,2]"})  # fmt: skip
refused(
    "embeddings multiplied",
    EMBEDDING,
    "Mul_word",
    "found Mul Mul_word, pattern wants Gather",
    first=LATE + "Mul(word0, kind)",
    sum=PLACE_FIRST,
)
refused(
    "embeddings subtracted",
    EMBEDDING,
    "Sub_word",
    "found Sub Sub_word, pattern wants Gather",
    first=LATE + "Sub(word0, kind)",
    sum=PLACE_FIRST,
)
fused(
    "an embedding times a number",
    EMBEDDING,
    first="word0 = Gather(words, ids)\nword = Mul(word0, two)",
    sum=PLACE_FIRST,
)
refused(
    "columns looked up, not rows",
    EMBEDDING,
    "Gather_word",
    "attribute axis is 1, pattern wants 0",
    inputs={"cells": "int64[5,8]", "spots": "int64[1,5]"},
    weights={"grid": drawn(3, 11)},
    first="word = Gather <axis = 1> (grid, cells)",
    sum=PLACE_FIRST,
)
refused(
    "a table in three axes",
    EMBEDDING,
    "Squeeze_word",
    "pattern wants Gather",
    weights={"deep": drawn(11, 1, 8), "third": np.array([2])},
    first="word0 = Gather(deep, ids)\nword = Squeeze(word0, third)",
    sum=PLACE_FIRST,
)
fused(
    "a look-up by GatherND",
    EMBEDDING,
    weights={"third": np.array([2])},
    first="deep = Unsqueeze(ids, third)\nword = GatherND(words, deep)",
    sum=PLACE_FIRST,
)
refused(
    "an activation among the embeddings",
    EMBEDDING,
    "x",
    "found the graph input x, pattern wants Gather",
    sum="two_of_them = Add(word, place)\ntotal = Add(two_of_them, x)",
)
refused(
    "a constant with a batch axis",
    EMBEDDING,
    "rows",
    "axis 0 of rows is 3, pattern wants 1",
    inputs={"ids": "int64[3,5]"},
    weights={"rows": drawn(3, 5, 8)},
    second="",
    sum="total = Add(word, rows)",
)
refused(
    "embeddings and a scale for each position",
    EMBEDDING,
    "Mul_scaled_norm",
    "the scale gamma has shape [5, 1], pattern wants [8]",
    inputs={"ids": "int64[B,5]", "spots": "int64[1,5]"},
    weights={"gamma": drawn(5, 1)},
    norm=DECOMPOSED,
)
refused(
    "embeddings and a LayerNorm whose mean is read",
    EMBEDDING,
    "LayerNormalization_normed",
    "its output average is also read by Add_end outside the match",
    norm=WITH_MEAN,
    after="end = Add(normed, average)",
)

# -- skip and norm ------------------------------------------------------------------------------------------------------

SKIPPED = "LayerNormalization_normed"
refused("a skip of one position", SKIP, SKIPPED, "x and skip differ in shape", inputs={"skip": "[B,1,8]"})
refused("a skip that is a constant", SKIP, SKIPPED, "x and skip differ in shape", weights={"skip": drawn(1, 1, 8)})
refused("a norm of cubes", SKIP, "three", "the constant is 3, pattern wants 2", norm=CUBED)
refused("a norm with epsilon outside", SKIP, "Add_std", "found Add Add_std, pattern wants Sqrt", norm=OUTSIDE_ROOT)
refused(
    "an epsilon for each position",
    SKIP,
    "epsilon",
    "epsilon is not a constant with one element",
    inputs=FIVE,
    weights={"epsilon": np.full((5, 1), 1e-5, np.float32)},
    norm=DECOMPOSED,
)
refused(
    "an epsilon that is an input",
    SKIP,
    "eps",
    "eps is not a constant with one element",
    inputs={"eps": "float"},
    norm=DECOMPOSED.replace("epsilon", "eps"),
)
refused(
    "an RMSNorm by another value",
    SKIP,
    "x",
    "x stands where total was expected again",
    norm=DECOMPOSED_RMS.replace("Mul({}, {})", "Mul({}, x)"),
)
refused(
    "an RMSNorm over positions",
    SKIP,
    "ReduceMean_variance",
    "attribute axes is [-2], pattern wants [-1]",
    norm=DECOMPOSED_RMS.replace("axes = [-1]", "axes = [1]"),
)
refused(
    "a norm over two axes",
    SKIP,
    "ReduceMean_variance",
    "attribute axes is [-2, -1], pattern wants [-1]",
    norm=DECOMPOSED.replace("axes = [-1]", "axes = [1, 2]"),
)
refused(
    "a skip and a LayerNorm whose mean is read",
    SKIP,
    SKIPPED,
    "its output average is also read by Add_end outside the match",
    norm=WITH_MEAN,
    after="end = Add(normed, average)",
)
refused(
    "a deviation that is read",
    SKIP,
    "Sqrt_std",
    "its output std is also read by Mul_end outside the match",
    norm=DECOMPOSED,
    after="end = Mul(normed, std)",
)
refused("a skip in double precision", SKIP, SKIPPED, "its type is DOUBLE", dtype="double")
refused(
    "a LayerNormalization of another domain",
    SKIP,
    SKIPPED,
    "LayerNormalization of domain my.ops is not ONNX's LayerNormalization",
    norm="normed = my.ops.LayerNormalization({}, gamma, beta)",
    functions=in_a_domain("LayerNormalization (a, g, b) => (c)", "d = Mul(a, g)\nc = Add(d, b)"),
)

# -- swish --------------------------------------------------------------------------------------------------------------

refused("a gate of another value", SWISH, "skip", "skip stands where x was expected", gate="gate = Sigmoid(skip)")
refused(
    "a beta for each feature",
    SWISH,
    "gamma",
    "gamma is not a constant with one element",
    gate="inner = Mul(x, gamma)\ngate = Sigmoid(inner)",
)
refused(
    "a beta that is an input",
    SWISH,
    "b",
    "b is not a constant with one element",
    inputs={"b": "float"},
    gate="inner = Mul(x, b)\ngate = Sigmoid(inner)",
)
refused(
    "a beta with more axes than x",
    SWISH,
    "Mul_product",
    "product has shape [1, B, S, 8], FusedSwish makes [B, S, 8]",
    weights={"b": np.full((1, 1, 1, 1), 2.0, np.float32)},
    gate="inner = Mul(x, b)\ngate = Sigmoid(inner)",
)
refused(
    "a gate that is read elsewhere",
    SWISH,
    "Sigmoid_gate",
    "its output gate is also read by Add_end outside the match",
    after="end = Add(product, gate)",
)
refused("a gate that is an output", SWISH, "Sigmoid_gate", "its output gate is a graph output", outputs={"gate": ""})
refused(
    "a gate that is shifted",
    SWISH,
    "inner",
    "inner stands where x was expected",
    gate="inner = Add(x, one)\ngate = Sigmoid(inner)",
)
refused(
    "a gate of a gate",
    SWISH,
    "inner",
    "inner stands where x was expected",
    gate="inner = Sigmoid(x)\ngate = Sigmoid(inner)",
)
refused("a swish in double precision", SWISH, "Mul_product", "its type is DOUBLE", dtype="double")
refused(
    "a Mul of another domain",
    SWISH,
    "Mul_product",
    "Mul of domain my.ops is not ONNX's Mul",
    product="product = my.ops.Mul(x, gate)",
    functions=in_a_domain("Mul (a, b) => (c)", "c = Sub(a, b)"),
)


@pytest.mark.parametrize("form", FUSED.values(), ids=FUSED)
def test_looks_otherwise_and_is_one(form: tuple[str, dict[str, Any]]) -> None:
    fusion, steps = form
    original = build(fusion, **steps)
    result = graphs.fused(original, [fusion])
    assert len(result.report.matches) == 1 and "norm" in result.report.matches[0].parts
    graphs.assert_equal(original, result.model, graphs.feeds_of(original, *SIZES))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_looks_like_a_fusion_and_is_not(case: Case) -> None:
    original = build(case.fusion, **case.steps)
    feeds = graphs.feeds_of(original, *SIZES)
    for given in feeds:
        given.update({name: (array * 9).astype(array.dtype) for name, array in given.items() if array.dtype == "int32"})
    result = graphs.fused(original, [case.fusion])
    if case.runs:
        graphs.assert_equal(original, result.model, feeds)
    assert [match.parts for match in result.report.matches] == ([] if case.kept is None else [case.kept])
    if case.kept is None:
        assert result.model.SerializeToString(deterministic=True) == original.SerializeToString(deterministic=True)
    assert case.at in graphs.names_of(original)
    assert any(case.says in sentence for sentence in said_at(case.at, result)), list(everything_said(result))
    for miss in result.report.near_misses:
        assert miss.fusion in (case.fusion, "layer_norm", "rms_norm", "swish")
        if miss.graph == "":
            assert {miss.node, miss.failed_at} <= graphs.names_of(original)
    for match in result.report.matches:
        assert match.left_out, "what follows was not swallowed, and nothing says why"


def said_at(place: str, result: graphs.Outcome) -> Iterator[str]:
    """What the report says of a node or value."""
    return (sentence for where, sentence in everything_said(result) if where == place)


def everything_said(result: graphs.Outcome) -> Iterator[tuple[str, str]]:
    for miss in result.report.near_misses:
        yield miss.failed_at, miss.reason
    for match in result.report.matches:
        for sentence in match.left_out:
            where, _, reason = sentence.partition(": ")
            yield where, reason


# -- too far off to be called a near miss -------------------------------------------------------------------------------

FAR_OFF: dict[str, tuple[str, dict[str, Any]]] = {
    "a LogSoftmax": (ATTENTION, {"softmax": "probabilities = LogSoftmax <axis = -1> ({})"}),
    "a Sigmoid for the Softmax": (ATTENTION, {"softmax": "probabilities = Sigmoid({})"}),
    "probabilities times two": (
        ATTENTION,
        {"softmax": "once = Softmax <axis = -1> ({})\nprobabilities = Mul(once, two)"},
    ),
    "three axes and no heads": (
        ATTENTION,
        {
            "query": "qh = Identity(q)",
            "key": "kt = Transpose <perm = [0, 2, 1]> (k)",
            "value": "vh = Identity(v)",
            "merge": "merged = Identity({})",
        },
    ),
    "values times probabilities": (ATTENTION, {"inputs": FOUR, "context": "context = MatMul(vh, {})"}),
    "a Softmax of opset 12, over two axes": (
        ATTENTION,
        {"opset": 12, "inputs": FOUR, "softmax": "probabilities = Softmax <axis = 2> ({})", "norm": ""},
    ),
    "two embeddings multiplied": (EMBEDDING, {"sum": "total = Mul(word, place)"}),
    "two embeddings subtracted": (EMBEDDING, {"sum": "total = Sub(word, place)"}),
    "embeddings and a norm over positions": (
        EMBEDDING,
        {
            "inputs": {"ids": "int64[B,5]", "spots": "int64[1,5]"},
            "weights": PER_POSITION,
            "norm": OVER_POSITIONS,
        },
    ),
    "more embeddings than the operator takes": (
        EMBEDDING,
        {"sum": "\n".join(["t0 = Add(word, place)", *(f"t{i + 1} = Add(t{i}, place)" for i in range(8))])},
    ),
    "a skip that is subtracted": (SKIP, {"sum": "total = Sub(x, skip)"}),
    "a skip that is multiplied": (SKIP, {"sum": "total = Mul(x, skip)"}),
    "a skip and a norm over positions": (SKIP, {"inputs": FIVE, "weights": PER_POSITION, "norm": OVER_POSITIONS}),
    "a skip and a mean less the value": (SKIP, {"norm": DECOMPOSED.replace("Sub({}, mean)", "Sub(mean, {})")}),
    "a hard sigmoid": (SWISH, {"gate": "gate = HardSigmoid(x)"}),
    "a gate that is added": (SWISH, {"product": "product = Add(x, gate)"}),
    "a gate that divides": (SWISH, {"product": "product = Div(x, gate)"}),
    "a Sigmoid of another domain": (
        SWISH,
        {"gate": "gate = my.ops.Sigmoid(x)", "functions": in_a_domain("Sigmoid (a) => (c)", "c = Tanh(a)")},
    ),
}


@pytest.mark.parametrize(("fusion", "steps"), FAR_OFF.values(), ids=FAR_OFF)
def test_is_left_alone(fusion: str, steps: dict[str, Any]) -> None:
    original = build(fusion, **steps)
    result = graphs.fused(original, [fusion])
    assert result.report.fused == {}
    assert result.model.SerializeToString(deterministic=True) == original.SerializeToString(deterministic=True)


# -- looks wrong and is right -------------------------------------------------------------------------------------------

TURNED = np.array([0, 0, 4, 2])
GROUPS = {
    "rows": np.array([0, 0, 4, 4]),
    "first": np.array([1]),
    "twice": np.array([1, 2, 1, 1, 1]),
    "together": np.array([0, 4, -1, 4]),
    "flat": np.array([0, 0, 16]),
    "weight": drawn(16, 8),
}


def repeated(name: str, end: str) -> str:
    """Heads 0, 1, 0, 1: not each head twice in a row, as grouped queries want them."""
    return f"""
        {name}4 = Reshape({name}, heads)
        {name}s = Transpose <perm = [0, 2, 1, 3]> ({name}4)
        {name}5 = Unsqueeze({name}s, first)
        {name}e = Expand({name}5, twice)
        {end}"""


RIGHT: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "a key whose positions are as many as its features, not turned": (
        {"inputs": FOUR, "key": "k4 = Reshape(k, heads)\nkt = Transpose <perm = [0, 2, 1, 3]> (k4)"},
        {"layout": "BHSD"},
        {"query": "qh", "value": "vh"},
    ),
    "a value whose positions are as many as its features, turned": (
        {"inputs": FOUR, "value": "v4 = Reshape(v, heads)\nvh = Transpose <perm = [0, 2, 3, 1]> (v4)"},
        {"layout": "BHSD"},
        {"query": "qh", "value": "vh"},
    ),
    "a query split into features of heads": (
        {
            "weights": {"turned": TURNED},
            "query": "q4 = Reshape(q, turned)\nqh = Transpose <perm = [0, 3, 1, 2]> (q4)",
        },
        {"layout": "BHSD"},
        {"query": "qh", "value": "vh"},
    ),
    "heads repeated in another order than groups": (
        {
            "inputs": {"q": "[B,S,16]"},
            "weights": GROUPS,
            "query": "q4 = Reshape(q, rows)\nqh = Transpose <perm = [0, 2, 1, 3]> (q4)",
            "key": repeated("k", "kr = Reshape(ke, together)\nkt = Transpose <perm = [0, 1, 3, 2]> (kr)"),
            "value": repeated("v", "vh = Reshape(ve, together)"),
        },
        {"layout": "BHSD", "num_heads": 4, "num_key_value_heads": 4},
        {"query": "qh", "value": "vh"},
    ),
    "a sum before the norm that is an output": (
        {"outputs": {"total": ""}},
        {"outputs": "output,residual_sum", "layout": "BSH"},
        {"residual": "x"},
    ),
}


@pytest.mark.parametrize(("steps", "attributes", "inputs"), RIGHT.values(), ids=RIGHT)
def test_looks_wrong_and_is_right(steps: dict[str, Any], attributes: dict[str, Any], inputs: dict[str, str]) -> None:
    original = build(ATTENTION, **steps)
    result = graphs.fused(original, [ATTENTION])
    (node,) = result.nodes(ATTENTION)
    have = result.attributes(node)
    assert {name: have[name] for name in attributes} == attributes
    bound = result.inputs(node)
    assert {name: bound[name] for name in inputs} == inputs
    assert result.report.matches[0].parts == ("projection", "residual", "norm")
    graphs.assert_equal(original, result.model, graphs.feeds_of(original, *SIZES))


def test_the_suite_is_as_large_as_it_claims() -> None:
    assert len(CASES) >= 40
