"""The kinds of refusal: what stopped a fusion, under a code that stays, what it means, and what to change in the export.

A sentence tells one case in the names of the file. Its kind is told by the words that all sentences of the kind have in common.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of refusal.

    Attributes:
        code: "OF101". It stays what it is from version to version; one that is no longer used is not used again.
        name: the kind in a word or two, "heads-unknown".
        words: a regular expression that finds its sentences.
        meaning: what it means, for a reader of the report.
        example: a sentence of the kind.
        advice: what to change in the export so that it goes away; "" where nothing is known to help.
    """

    code: str
    name: str
    words: str
    meaning: str
    example: str
    advice: str = ""


_SIZES = (
    "Give dynamic axes of one size one name when exporting (one for the batch, one for the sequence), or export with "
    "fixed sizes."
)
_CACHE = "Export without a key-value cache: use_cache=False."
_FIXED_HEADS = (
    "Export with the number of heads and the head size as fixed numbers: reshape with Python integers, not with sizes "
    "read from a tensor."
)

# The first whose words are found counts: kinds that tell more stand before those that tell less.
KINDS: tuple[Kind, ...] = (
    Kind(
        "OF205",
        "read-elsewhere",
        r"its output \S+ (is a graph output|is also read by)|further outputs are read|present keys and values are read",
        "A value inside the match is an output of the model, or a node outside the match reads it. A fused node would no longer "
        "make it.",
        "its output probabilities is also read by /head/MatMul outside of the match",
    ),
    Kind(
        "OF302",
        "key-value-cache",
        r"\b(past|present|cache)[\w.]*(key|value|kv)|\bkey_values\b|\bkv_cache|key-value cache",
        "The attention reads or writes a key-value cache, which no fused operator has.",
        "MultiHeadAttention of com.microsoft has a key-value cache, which no fused operator has",
        _CACHE,
    ),
    Kind(
        "OF101",
        "heads-unknown",
        r"(number of (\S+ )?heads|head sizes?|head counts)\b.*(must be known|unknown)",
        "The number of heads or the head size has to be a number in the file. Here it is a symbol, or it is computed at run time.",
        "the number of heads is heads, it must be known",
        _FIXED_HEADS,
    ),
    Kind(
        "OF102",
        "size-unknown",
        r"it must be known",
        "A size that the operator needs has to be a number in the file. Here it is a symbol, or it is computed at run time.",
        "the number of features is unk__3, it must be known",
    ),
    Kind(
        "OF106",
        "mask-shape",
        r"^(the|its) (mask|bias) \S+ has (an unknown )?shape|the scores have \[",
        "The mask or bias does not broadcast to the scores, or its shape is not known.",
        "the mask /Unsqueeze_output_0 has an unknown shape, the scores have [batch, 12, length, length]",
        _SIZES,
    ),
    Kind(
        "OF103",
        "shape-unknown",
        r"shape unknown|unknown shape|shapes .*unknown|are unknown",
        "The shape of a value is not known, so it cannot be proven to be what the operator takes.",
        "/Reshape_output_0 has shape unknown, pattern wants [B, S, H]",
        _SIZES,
    ),
    Kind(
        "OF104",
        "sizes-differ",
        r"^axis \S+ of|elsewhere in the match it is|differ in shape|is not the size of|pattern wants elements",
        "Two sizes that the operator needs to be equal are not, or are not known to be.",
        "dimension S of value is keys, elsewhere in the match it is queries",
        _SIZES,
    ),
    Kind(
        "OF111",
        "opset",
        r"\bopset \d+ is (outside|older)|has no CastLike",
        "The opset of the model is too old for the fused node, and the model could not be converted.",
        "opset 11 is older than 13 and could not be converted: no adapter for Upsample",
        "Export again with opset_version=17 or newer.",
    ),
    Kind(
        "OF108",
        "types-differ",
        r"have different types|of which only the product is narrowed",
        "Values that the operator takes in one type have several.",
        "query, key and value have different types",
        "Export in one type: model.float() or model.half() for the whole model, and no autocast.",
    ),
    Kind(
        "OF107",
        "type",
        r"^its type is |is DOUBLE|allowed is .* with T =|, \S+ makes \S|is of unknown type|is a float type",
        "The operator is for float32, float16 and bfloat16, and for the types of its inputs that docs/operators.md lists.",
        "its type is DOUBLE, FusedSwish is for FLOAT, FLOAT16, BFLOAT16",
        "Export in float32, float16 or bfloat16: model.float() before exporting.",
    ),
    Kind(
        "OF112",
        "not-declared",
        r"does not take its inputs|has no elements|takes \[|makes \[",
        "An input or output would have a shape that the operator does not take.",
        "HSTUHierarchicalAttention does not take its inputs: bias is [2, 3], allowed is [1|B, 1|h, 1|N, 1|N]",
    ),
    Kind(
        "OF215",
        "training",
        r"\bDropout\b|\btraining",
        "The model was exported in training mode.",
        "found Dropout /drop/Dropout, pattern wants MatMul",
        "Export in evaluation mode: model.eval() before exporting, and no training=TrainingMode.TRAINING.",
    ),
    Kind(
        "OF216",
        "quantised",
        r"\b(Dynamic)?(Quantize|Dequantize)Linear\b|\b(MatMul|Conv)Integer\b|\bQLinear|computes in int8",
        "Part of what the fusion looks for computes in integers.",
        "found DequantizeLinear /q/dequantize, pattern wants MatMul",
        "Fuse the float model first and quantise the result, or leave the attention out of the quantisation.",
    ),
    Kind(
        "OF217",
        "optimised",
        r"of domain com\.microsoft",
        "ONNX Runtime's optimizer has put an operator of its own there, which onnx-fuse does not read.",
        "FusedMatMul of domain com.microsoft is not ONNX's FusedMatMul",
        "Fuse the model as it was exported, before ONNX Runtime's optimizer rewrites it.",
    ),
    Kind(
        "OF208",
        "other-domain",
        r"of domain \S+ is not ONNX's",
        "An operator has the name of an ONNX operator and is of another domain: it may compute something else.",
        "Softmax of domain com.example is not ONNX's Softmax",
    ),
    # -- attention -----------------------------------------------------------------------------------------------------
    Kind(
        "OF301",
        "soft-cap",
        r"\bTanh\b|soft-capped",
        "The scores are soft-capped, c tanh(s / c), and the operator has no soft cap.",
        "found Tanh /attn/Tanh, pattern wants MatMul",
        "The scores are soft-capped and the operator has no soft cap: only a model configured without one fuses "
        "(attn_logit_softcapping=None).",
    ),
    Kind(
        "OF303",
        "packed",
        r"packed without padding|padding lengths",
        "The attention works on sequences that are packed one after the other, or takes padding lengths.",
        "PackedAttention of com.microsoft works on sequences packed without padding, which no fused operator does",
    ),
    Kind(
        "OF306",
        "masked-after-softmax",
        r"after (the )?Softmax|the weights that \S+ makes|weights are masked",
        "The attention weights are masked or multiplied after the Softmax. The operator masks the scores before it.",
        "the weights that /Softmax makes are multiplied by keep [B, 1, S, S] at /Mul, after Softmax",
    ),
    Kind(
        "OF305",
        "mask-order",
        r"to scores that \S+ has masked|masks with|masks by products|before a bias was added|in place of scores|"
        r"then the bias",
        "Masks and biases come in an order, or with numbers, that the operator cannot express: it adds one bias, then puts one "
        "number where the mask is false.",
        "/Add adds bias to scores that /Where has masked with -10000: the operator adds before it masks",
    ),
    Kind(
        "OF304",
        "scale",
        r"multiplies the scores|the scores by|of which the operator has one scale|is no scale",
        "The scores are multiplied by something else than one constant, and the factor cannot go into the query or the key.",
        "/Mul multiplies the scores by factor, of shape [1, 1, S, S]: a factor of its own for each pair is no scale",
    ),
    Kind(
        "OF307",
        "heads-not-merged",
        r"that merge them|stays in heads",
        "The result of the attention is not brought from [B, h, S, d] to [B, S, h*d], which is what the operator gives.",
        "its output context [B, 12, S, 64] stays in heads: the operator gives [B, S, h*d]",
    ),
    Kind(
        "OF309",
        "rotary",
        r"rotates query and key",
        "The node rotates query and key itself; the operator does not.",
        "MultiHeadAttention of com.microsoft rotates query and key",
    ),
    Kind(
        "OF310",
        "other-attention",
        r"does not attend to all keys|is causal, and its queries|its query, key and value are not|for each key, \[batch, keys\]",
        "The node is an attention of a kind that the operator does not compute.",
        "LongformerAttention of com.microsoft does not attend to all keys by one softmax of scaled products",
    ),
    # -- recommender models --------------------------------------------------------------------------------------------
    Kind(
        "OF401",
        "mask",
        r"masked scores become|masked differently|different masks|has no mask|than a mask|more than 0 and 1|without any level",
        "A mask is not proven to be one, or masked positions would weigh something.",
        "the mask keep is not bool, it may hold more than 0 and 1",
    ),
    Kind(
        "OF402",
        "norm-of-heads",
        r"after their norm|is normed|are normed|norm of each head",
        "The norms of the heads are combined in a way that the operator does not have.",
        "the heads are scaled after their norm",
    ),
    Kind(
        "OF403",
        "lengths",
        r"made of lengths|rows beyond|weights are divided by|divided by its weights|is clipped at",
        "Weights are divided, or rows are cleared, by something that is not known to be the lengths of the sequences.",
        "the rows are multiplied by present, which is not known to be made of lengths",
    ),
    Kind(
        "OF404",
        "levels",
        r"^level |the levels|in no level|geometric sequence|the levels weigh",
        "The levels of the sequence are not consecutive runs of the keys, or do not weigh what the operator gives them.",
        "level 2 has the keys 4 to 9, pattern wants 5 to 9",
    ),
    Kind(
        "OF405",
        "windows",
        r"^a window|the windows|short window",
        "A window is not centred on its position, or holds nothing.",
        "a window has 4 positions, an even number",
    ),
    Kind(
        "OF406",
        "features",
        r"products (selected|are selected|are in the order)|the first feature|only one feature|indices are too many",
        "The products of features that the model takes are not a whole triangle in one of its orders.",
        "5 products are selected, a triangle of 4 features has 6, without the diagonal",
    ),
    Kind(
        "OF407",
        "look-ups",
        r"looked up|look-ups|the ids|no ids",
        "The rows that are summed are not looked up as the operator looks them up, or by ids of another shape.",
        "9 look-ups are summed, the operator takes 8 tables",
    ),
    Kind(
        "OF408",
        "sequence",
        r"along the sequence|exp\(-decay|last item of none|time weights|scores are multiplied by 0|the overlap is",
        "Positions, time weights or decays along the sequence are not what the operator computes.",
        "positions is not 0, 1, 2, ... along the sequence",
    ),
    # -- operators and the graph ---------------------------------------------------------------------------------------
    Kind(
        "OF218",
        "number-at-run-time",
        r"not a constant.*\((scale|mask_value|epsilon)\)",
        "A number that becomes an attribute of the fused node is computed at run time.",
        "/Sqrt_output_0 is not a constant with one element (scale)",
        "Make it a Python number in the model (such as 1 / math.sqrt(head_size)), so that the export holds a constant.",
    ),
    Kind(
        "OF219",
        "in-a-function",
        r"not known before run time",
        "The node is in a function of the model, and an attribute of it comes from the caller.",
        "attribute axis is not known before run time (@axis)",
        "Inline the model's functions first: onnx.inliner.inline_local_functions(model).",
    ),
    Kind(
        "OF202",
        "not-a-constant",
        r"is not a constant|not bound to a number|holds other values|computes from the sizes",
        "A value has to be a constant in the file, and it is computed at run time, or is another constant.",
        "weight is not a constant (out_weight)",
    ),
    Kind(
        "OF207",
        "inputs",
        r"an input is absent|has \d+ inputs|operands of|the example has no input",
        "A node has inputs that the operator does not stand for, or lacks some.",
        "Clip has 3 inputs, pattern wants 1",
    ),
    Kind(
        "OF204",
        "other-attribute",
        r"^attribute ",
        "An attribute of a node, such as an axis or a permutation, is not what the operator stands for.",
        "attribute axis is 1, pattern wants 0",
    ),
    Kind(
        "OF203",
        "other-number",
        r"^the constant is |pattern wants the constant|pattern wants -?\d|is multiplied by \S+, pattern wants|is padded by",
        "A constant is another number than the operator stands for.",
        "the constant is 0.5, pattern wants 1",
    ),
    Kind(
        "OF206",
        "other-value",
        r"was expected again|here again|is not output \d+ of|transposed|different queries|runs of different keys",
        "A value that occurs twice in what the operator computes is two values here.",
        "key_2 stands where key_1 was expected again (key)",
    ),
    Kind(
        "OF105",
        "shape",
        r"has shape|have shape|, of shape \[|is broadcast|larger than what it is added|does not broadcast|queries and \S+ keys|"
        r"pattern wants \[",
        "A value has another shape than the operator takes.",
        "the sum total has shape [B, H], pattern wants [B, S, H]",
    ),
    Kind(
        "OF209",
        "nothing-behind",
        r"reads \S+ in another way|no node reads|no node beside it|is no part of the pattern here",
        "What follows is not what the fusion looks for.",
        "found Concat /Concat, which reads /Softmax_output_0 in another way",
    ),
    Kind(
        "OF210",
        "too-long",
        r"more than \d+ steps|more inputs than can be followed",
        "The search for a match was given up after its budget of steps.",
        "more than 20000 steps were needed",
    ),
    Kind(
        "OF211",
        "another-match",
        r"covers more of it",
        "Another match has some of the same nodes and covers more of the model. It was fused instead.",
        "FusedAttentionLayerNorm at /attn/Add covers more of it",
    ),
    Kind(
        "OF212",
        "order",
        r"made from one of its outputs|stand before the other|the fused node would read",
        "Fused nodes would have to wait for each other.",
        "it and another fused node would each have to stand before the other",
    ),
    Kind(
        "OF213",
        "not-written",
        r"cannot be written into the graph|is no value of the graph|no output of the graph depends",
        "What the fused node would read or make has no place in the graph.",
        "one of its inputs cannot be written into the graph",
    ),
    Kind(
        "OF214",
        "body",
        r"the body of |in the body of ",
        "The body of the operator cannot be written for this match.",
        "the body of MyOperator raised KeyError: 'x'",
    ),
    # -- worth it or not -----------------------------------------------------------------------------------------------
    Kind(
        "OF502",
        "no-kernel",
        r"no kernel for it|are above|are more than|nothing is known of its plugin",
        "`--select` keeps a node only if a plugin has a kernel for it.",
        "the plugin has no kernel for it: heads of 512 are above 256",
    ),
    Kind(
        "OF503",
        "not-faster",
        r"of the time \(",
        "`--select measured` timed the model with the fusion and without it.",
        "1.04 of the time (1.02 to 1.05) with FusedSwish, in 9 pairs of runs",
    ),
    Kind(
        "OF501",
        "does-not-pay",
        r"saves less than|TensorRT chains|slower than TensorRT|TensorRT adds|TensorRT joins",
        "`--select auto` predicts that TensorRT runs the original as fast.",
        "it saves less than 5%: 12.1 us; the plugin takes 1 launch and 3 MB",
    ),
    Kind(
        "OF201",
        "other-operator",
        r"^found |, pattern wants ",
        "There is another operator where the fusion looks for one of its own. If the model computes the same, onnx-fuse does not "
        "know that form yet: please report it.",
        "found Erf /gelu/Erf, pattern wants Softmax",
    ),
)

OWN = Kind(
    "OF100",
    "own-requirement",
    "",
    "A requirement or build function of the fusion refused the match, with a sentence of its own.",
    "x is divided by 2 and multiplied by 3",
)
"""The kind of all other sentences."""

_COMPILED = tuple((re.compile(kind.words), kind) for kind in KINDS)
BY_CODE = {kind.code: kind for kind in sorted((*KINDS, OWN), key=lambda kind: kind.code)}
"""All kinds, in the order of their codes."""


def kind_of(sentence: str) -> Kind:
    """The kind of refusal that a sentence of a report tells."""
    return next((kind for words, kind in _COMPILED if words.search(sentence)), OWN)
