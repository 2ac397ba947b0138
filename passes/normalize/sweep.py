"""The sweep that makes a view canonical: every rule on every node, once, in graph order.

A rule looks at one node whose inputs are canonical already and either declares something (an alias, a replacement) and returns
True, or returns False. Rules are grouped by subject in the other modules of this folder; their order stands here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize import (
    activations,
    attention,
    casts,
    contrib,
    einsum,
    gather_pairs,
    group_norm,
    linear,
    look_ups,
    norms,
    reshape_transpose,
    scales,
    score_steps,
    scores,
    silu_weights,
    split_heads,
    tensorflow_norms,
)
from onnx_fuse.passes.view.rule import Key, Rule, Rules, may_fire
from onnx_fuse.passes.view.view import View

_MOVE_RULES: tuple[Rule, ...] = (
    casts.cast_after_move,
    scales.scale_after_move,
    reshape_transpose.merge_moves,
    split_heads.merge_before_concat,
    split_heads.merge_before_move,
)

RULES: Rules = {
    "Identity": (reshape_transpose.drop_identity,),
    "Dropout": (reshape_transpose.drop_dropout,),
    "Cast": (
        reshape_transpose.drop_cast,
        casts.share_cast,
        casts.norm_in_float32,
        scales.scale_after_move,
    ),
    "Expand": (reshape_transpose.drop_expand,),
    "Concat": (reshape_transpose.drop_single_concat, split_heads.concat_of_split),
    "Reshape": _MOVE_RULES,
    "Transpose": _MOVE_RULES,
    "Squeeze": _MOVE_RULES,
    "Unsqueeze": _MOVE_RULES,
    "Flatten": _MOVE_RULES,
    "Attention": (attention.decompose_attention,),
    "Gemm": (linear.split_gemm,),
    "MatMul": (
        scales.scale_after_matmul,
        scores.batched_matmul_before_move,
        scores.batch_of_one,
        scores.fold_windows,
        split_heads.batch_axes_in_order,
        linear.matmul_before_move,
        score_steps.weights_in_order,
    ),
    "Add": (
        einsum.drop_zero,
        norms.layer_norm_shift,
        tensorflow_norms.batch_form_norm,
        einsum.flat_bias,
        scores.mask_before_merge,
        scores.merge_biases,
        linear.bias_before_move,
        einsum.head_bias_before_move,
        einsum.sum_before_move,
        linear.residual_before_move,
    ),
    "Max": (scores.floor_before_sum,),
    "Where": (
        scores.mask_before_merge,
        split_heads.guard_before_permutation,
        silu_weights.weights_before_merge,
    ),
    "Swish": (silu_weights.swish_before_merge,),
    "Softmax": (scores.softmax_before_move, score_steps.scores_in_order),
    "LayerNormalization": (norms.flat_affine, linear.norm_before_move),
    "RMSNormalization": (norms.flat_affine, linear.norm_before_move),
    "GlobalAveragePool": (norms.mean_of_pool,),
    "Div": (
        scales.drop_one,
        norms.bare_norm,
        scales.multiply_by_reciprocal,
        silu_weights.weights_before_merge,
    ),
    "Mul": (
        scales.drop_one,
        norms.mean_of_sum,
        scales.merge_scales,
        scales.scale_into_projection,
        norms.bare_norm,
        tensorflow_norms.scaled_norm,
        norms.norm_scale,
        linear.scale_before_move,
        activations.swish_rule,
        activations.gelu,
        silu_weights.weights_before_merge,
    ),
}

READING: Rules = {
    **RULES,
    **contrib.RULES,
    **dict.fromkeys(gather_pairs.PICKS, (gather_pairs.selection,)),
    "Split": (gather_pairs.selection, split_heads.pick_before_merge),
    "Gather": (gather_pairs.selection, gather_pairs.gather_before_transpose, split_heads.pick_before_merge),
    "Slice": (gather_pairs.selection, split_heads.pick_before_merge),
    "GatherND": (gather_pairs.selection, gather_pairs.gather_columns, look_ups.look_up_of_rows),
    "Mul": (*RULES["Mul"], look_ups.scale_before_look_up, gather_pairs.products_of_rows),
    "Concat": (*RULES["Concat"], gather_pairs.selection),
    "Reshape": (gather_pairs.masked_selection, *_MOVE_RULES),
    "Einsum": (einsum.einsum_as_matmul,),
    "MatMul": (*RULES["MatMul"], attention.repeat_one_head),
    "InstanceNormalization": (group_norm.group_norm_of_rows,),
    "GroupNormalization": (group_norm.group_norm_of_rows,),
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
