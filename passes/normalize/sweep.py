"""The sweep that makes a view canonical: every rule on every node, once, in graph order.

A rule looks at one node whose inputs are canonical already and either declares something (an alias, a replacement) and returns
True, or returns False. Rules are grouped by subject in the `normalize_*` modules; their order stands here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx_fuse.passes.graph.index import Node
from onnx_fuse.passes.normalize import attention as normalize_attention
from onnx_fuse.passes.normalize import casts as normalize_cast
from onnx_fuse.passes.normalize import contrib as normalize_contrib
from onnx_fuse.passes.normalize import einsum as normalize_einsum
from onnx_fuse.passes.normalize import gather_pairs as normalize_select
from onnx_fuse.passes.normalize import group_norm as normalize_group
from onnx_fuse.passes.normalize import linear as normalize_linear
from onnx_fuse.passes.normalize import norms as normalize_norm
from onnx_fuse.passes.normalize import reshape_transpose as normalize_move
from onnx_fuse.passes.normalize import scales as normalize_scale
from onnx_fuse.passes.normalize import scores as normalize_scores
from onnx_fuse.passes.normalize import silu_weights as normalize_weights
from onnx_fuse.passes.normalize import split_heads as normalize_split
from onnx_fuse.passes.normalize import tensorflow_norms as normalize_tf
from onnx_fuse.passes.view.rule import Key, Rule, Rules, may_fire
from onnx_fuse.passes.view.view import View

_MOVE_RULES: tuple[Rule, ...] = (
    normalize_cast.cast_after_move,
    normalize_scale.scale_after_move,
    normalize_move.merge_moves,
)

RULES: Rules = {
    "Identity": (normalize_move.drop_identity,),
    "Dropout": (normalize_move.drop_dropout,),
    "Cast": (
        normalize_move.drop_cast,
        normalize_cast.share_cast,
        normalize_cast.norm_in_float32,
        normalize_scale.scale_after_move,
    ),
    "Expand": (normalize_move.drop_expand,),
    "Concat": (normalize_move.drop_single_concat, normalize_split.concat_of_split),
    "Reshape": _MOVE_RULES,
    "Transpose": _MOVE_RULES,
    "Squeeze": _MOVE_RULES,
    "Unsqueeze": _MOVE_RULES,
    "Flatten": _MOVE_RULES,
    "Attention": (normalize_attention.decompose_attention,),
    "Gemm": (normalize_linear.split_gemm,),
    "MatMul": (
        normalize_scale.scale_after_matmul,
        normalize_scores.batched_matmul_before_move,
        normalize_split.batch_axes_in_order,
        normalize_linear.matmul_before_move,
    ),
    "Add": (
        normalize_einsum.drop_zero,
        normalize_norm.layer_norm_shift,
        normalize_tf.batch_form_norm,
        normalize_einsum.flat_bias,
        normalize_scores.mask_before_merge,
        normalize_scores.merge_biases,
        normalize_linear.bias_before_move,
        normalize_einsum.head_bias_before_move,
        normalize_einsum.sum_before_move,
    ),
    "Where": (
        normalize_scores.mask_before_merge,
        normalize_split.guard_before_permutation,
        normalize_weights.weights_before_merge,
    ),
    "Swish": (normalize_weights.swish_before_merge,),
    "Softmax": (normalize_scores.softmax_before_move,),
    "LayerNormalization": (normalize_linear.norm_before_move,),
    "RMSNormalization": (normalize_linear.norm_before_move,),
    "Div": (
        normalize_norm.bare_norm,
        normalize_scale.multiply_by_reciprocal,
        normalize_weights.weights_before_merge,
    ),
    "Mul": (
        normalize_scale.merge_scales,
        normalize_norm.bare_norm,
        normalize_tf.scaled_norm,
        normalize_norm.norm_scale,
        normalize_linear.scale_before_move,
        normalize_norm.swish_rule,
        normalize_norm.gelu,
        normalize_weights.weights_before_merge,
    ),
}

READING: Rules = {
    **RULES,
    **normalize_contrib.RULES,
    **dict.fromkeys((*normalize_select.PICKS, "Split"), (normalize_select.selection,)),
    "Gather": (normalize_select.selection, normalize_select.gather_before_transpose),
    "GatherND": (normalize_select.selection, normalize_select.gather_columns),
    "Concat": (*RULES["Concat"], normalize_select.selection),
    "Reshape": (normalize_select.masked_selection, *_MOVE_RULES),
    "Einsum": (normalize_einsum.einsum_as_matmul,),
    "InstanceNormalization": (normalize_group.group_norm_of_rows,),
    "GroupNormalization": (normalize_group.group_norm_of_rows,),
}
"""All rules: also those that take an operator apart to be matched, a form that --simplify does not write."""

_STEPS_PER_NODE = 64


def rule_names(rules: Rules = RULES) -> list[str]:
    """Names of the rules, each once."""
    return list(dict.fromkeys(rule.__name__ for group in rules.values() for rule in group))


def select_rules(rules: Rules, names: Iterable[str]) -> Rules:
    """Just the rules of these names."""
    wanted = set(names)
    return {op_type: [rule for rule in group if rule.__name__ in wanted] for op_type, group in rules.items()}


def normalize(view: View, rules: Rules = READING) -> int:
    """Applies the rules; returns how many times one fired."""
    fired = 0
    view.take_new_nodes()
    sieve = _Sieve(view, rules)
    for original in view.graph.nodes:
        if original.qualified not in rules:
            continue
        pending = [original]
        steps = 0
        while pending and steps < _STEPS_PER_NODE:
            node = pending.pop(0)
            if not view.is_canonical(node):
                continue
            for rule in sieve.rules_for(node):
                if _applied(rule, view, node):
                    fired += 1
                    steps += 1
                    pending.extend(view.take_new_nodes())
                    if not view.is_canonical(node):
                        break
    return fired


class _Sieve:
    """Which rules are worth trying at a node: told from the operators around it alone, once for each such place."""

    def __init__(self, view: View, rules: Rules) -> None:
        self._view = view
        self._rules = rules
        self._found: dict[tuple[Key | None, ...], list[Rule]] = {}

    def rules_for(self, node: Node) -> list[Rule]:
        """The rules that can fire at a node, in their order."""
        place = (node.key, *self._view.maker_keys(node))
        found = self._found.get(place)
        if found is None:
            found = [rule for rule in self._rules.get(node.qualified, ()) if may_fire(rule, node.key, place[1:])]
            self._found[place] = found
        return found


def _applied(rule: Rule, view: View, node: Node) -> bool:
    """Whether the rule fired; one that raises is reported and counts as not."""
    try:
        return rule(view, node)
    except Exception as error:
        view.errors.append(f"{rule.__name__} raised {type(error).__name__} at {node.name}: {error}")
        return False
