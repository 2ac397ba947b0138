"""Rules on what stands between the scores and their Softmax, and between the Softmax and the value, in whatever order.

The operator computes Softmax(Where(keep, scale * q k + bias, fill)): one scale, then one bias, then one mask. The steps of a
graph are brought into that order where the result stays the same. The order matters: a bias that is added after a mask was set
moves the masked scores too, and a mask that is not known to hold 0 and 1 alone is a factor like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.scores import ABSORBS, is_scores
from onnx_fuse.passes.normalize.zero_or_one import are_opposite, are_same, as_mask, is_zero_or_one
from onnx_fuse.passes.view.rule import reads
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.parts.heads import unexpanded

_LOST = 5e-8
"""What is added to 1 is lost up to here in float32."""
_MOST_STEPS = 16
_STEPS = frozenset({"Add", "Sub", "Mul", "Div", "Where"})
_WIDE = frozenset({TensorProto.FLOAT, TensorProto.BFLOAT16})


class _Refused(Exception):
    """The steps cannot be written as the operator has them; the text says which of them, and why."""


class _Step(NamedTuple):
    """One step on the way from the scores to the Softmax.

    Attributes:
        kind: "scale" (a constant of one element), "factor", "divisor", "bias", "minus" or "mask".
        operand: the scale, factor, bias, or mask (bool; true keeps).
        number: the scale, or what the mask puts in place of scores.
        dropping: the mask is true where it drops.
    """

    kind: str
    node: Node
    operand: str
    number: float = 0.0
    dropping: bool = False


@dataclass
class _Form:
    """What the steps so far come to: Where(keep, scale * product + bias, fill)."""

    left: str
    right: str
    scale: float = 1.0
    bias: str | None = None
    keep: str | None = None
    fill: float = 0.0
    masked_by: str = ""
    lowered_by: str = ""
    """The node whose mask, of a finite number, has become part of the bias."""


# -- before the Softmax ----------------------------------------------------------------------------------------------------


@reads(*_STEPS, "Cast")
def scores_in_order(view: View, node: Node) -> bool:
    """Softmax of scores that were scaled, biased and masked in any order, as scaled first, then biased, then masked."""
    end = view.resolve(node.inputs[0])
    last = view.producer(end)
    if last is not None and last.key == ("", "Cast"):
        end = view.resolve(last.inputs[0])
    walked = _walk(view, end)
    if walked is None or _in_order(walked.steps):
        return False
    try:
        _write(view, end, walked, _reordered(view, end, walked))
    except _Refused as refused:
        view.refusals.append((node, str(refused)))
        return False
    return True


class _Walk(NamedTuple):
    """The way back from the Softmax: the product, its Cast if it has one, and the steps in the order they are taken."""

    product: Node
    cast: Node | None
    steps: list[_Step]
    nodes: list[Node]


def _walk(view: View, value: str) -> _Walk | None:
    steps: list[_Step] = []
    nodes: list[Node] = []
    while len(steps) < _MOST_STEPS:
        node = view.producer(value)
        if node is None or node.domain != "":
            return None
        cast = None
        if node.op_type == "Cast":
            cast, node = node, view.producer(node.inputs[0])
        if node is not None and node.key == ("", "MatMul"):
            steps.reverse()
            return _Walk(node, cast, steps, nodes) if is_scores(view, node.outputs[0]) else None
        if cast is not None or node is None or node.op_type not in _STEPS:
            return None
        found = _select_by_products(view, node) or _step(view, node)
        if found is None:
            return None
        step, value, passed = found
        steps.append(step)
        nodes += passed
    return None


_Found = tuple[_Step, str, list[Node]]


def _step(view: View, node: Node) -> _Found | None:
    """The step that a node is, the scores it takes, and the nodes passed on the way."""
    inputs = view.inputs(node)
    leading = [place for place, value in enumerate(inputs) if _leads_to_scores(view, value)]
    if len(leading) != 1:
        return None
    place = leading[0]
    scores = inputs[place]
    if node.op_type == "Where":
        fill = view.scalar(inputs[3 - place]) if place else None
        if fill is None:
            return None
        return _Step("mask", node, inputs[0], fill, dropping=place == 2), scores, [node]
    operand = inputs[1 - place]
    if place == 1 and node.op_type in ("Sub", "Div"):
        return None
    if node.op_type in ("Add", "Sub"):
        return _Step("bias" if node.op_type == "Add" else "minus", node, operand), scores, [node]
    number = view.scalar(operand)
    if node.op_type == "Mul" and number is not None:
        return _Step("scale", node, operand, number), scores, [node]
    return _Step("factor" if node.op_type == "Mul" else "divisor", node, operand), scores, [node]


def _select_by_products(view: View, node: Node) -> _Found | None:
    """keep * scores + (1 - keep) * fill, where keep is 0 or 1 for certain, as Where(keep, scores, fill)."""
    if node.op_type not in ("Add", "Sub"):
        return None
    ways = [(0, 1), (1, 0)] if node.op_type == "Add" else [(0, 1)]
    for kept, filled in ways:
        chosen, filler = (view.producer(node.inputs[place]) for place in (kept, filled))
        if chosen is None or filler is None or {chosen.key, filler.key} != {("", "Mul")}:
            continue
        fills = [(view.scalar(filler.inputs[place]), filler.inputs[1 - place]) for place in (0, 1)]
        for fill, dropped in fills:
            if fill is None or not np.isfinite(fill):  # 0 * inf is no number
                continue
            for place in (0, 1):
                keep, scores = chosen.inputs[place], view.resolve(chosen.inputs[1 - place])
                if not _leads_to_scores(view, scores) or not is_zero_or_one(view, keep):
                    continue
                sign = are_opposite(view, keep, dropped)
                if sign is not None:
                    fill *= sign * (1.0 if node.op_type == "Add" else -1.0)
                    mask = as_mask(view, keep, node)
                    return _Step("mask", node, mask, fill), scores, [node, chosen]
    return None


def _leads_to_scores(view: View, value: str) -> bool:
    """Whether a value is made of a product of two activations by the steps that are known here."""
    pending = [view.resolve(value)]
    seen: set[str] = set()
    while pending and len(seen) < _MOST_STEPS:
        item = pending.pop()
        node = view.producer(item)
        if item in seen or node is None or node.domain != "":
            continue
        seen.add(item)
        if node.op_type == "MatMul" and is_scores(view, item):
            return True
        if node.op_type in _STEPS or node.op_type == "Cast":
            pending.extend(view.inputs(node))
    return False


_RANK = {"scale": 0, "bias": 1, "mask": 2}


def _in_order(steps: Sequence[_Step]) -> bool:
    ranks = [_RANK.get(step.kind, -1) for step in steps]
    written = all(step.kind != "mask" or step.node.op_type == "Where" for step in steps)
    return written and -1 not in ranks and ranks == sorted(set(ranks))


def _reordered(view: View, end: str, walk: _Walk) -> _Form:
    """What the steps come to.

    Raises:
        _Refused: they come to nothing that the operator has.
    """
    left, right = view.inputs(walk.product)
    form = _Form(left, right)
    for step in walk.steps:
        _STEP_RULES[step.kind](view, end, walk, form, step)
    return form


def _scale(view: View, end: str, walk: _Walk, form: _Form, step: _Step) -> None:
    if step.number == 0 or not np.isfinite(step.number):
        raise _Refused(f"{step.node.name} multiplies the scores by {step.number:g}")
    form.scale *= step.number
    if form.bias is not None:
        form.bias = view.add("Mul", [form.bias, step.operand], like=step.node)
    if form.keep is not None:
        kind = _kind(view, end)
        with np.errstate(over="ignore"):
            form.fill = float(np.array(form.fill, kind) * np.array(step.number, kind))


def _factor(view: View, end: str, walk: _Walk, form: _Form, step: _Step) -> None:
    """(q k^T) f is (q f) k^T where f is the same for all keys, and q (k^T f) where it is the same for all queries."""
    op_type = "Mul" if step.kind == "factor" else "Div"
    what = f"{step.node.name} {'multiplies' if step.kind == 'factor' else 'divides'} the scores by {step.operand}"
    if form.keep is not None:
        raise _Refused(f"{what} after {form.masked_by} has masked them, and only a constant scales masked scores")
    shape = view.shape(step.operand)
    if walk.cast is not None or shape is None:
        raise _Refused(f"{what}, of which the operator has one scale, a constant")
    if not shape or shape[-1] == 1:
        form.left = _times(view, op_type, form.left, step, what)
    elif len(shape) == 1 or shape[-2] == 1:
        form.right = _times(view, op_type, form.right, step, what)
    else:
        sizes = ", ".join(map(str, shape))
        raise _Refused(f"{what}, of shape [{sizes}]: a factor of its own for each pair of query and key is no scale")
    if form.bias is not None:
        form.bias = view.add(op_type, [form.bias, step.operand], like=step.node)


def _times(view: View, op_type: str, value: str, step: _Step, what: str) -> str:
    target = view.shape(value)
    if target is None or not view.broadcasts_to(step.operand, target):
        raise _Refused(f"{what}, which does not broadcast to the query or the key")
    if all(dim == 1 for dim in view.shape(step.operand) or ()):
        return _before_heads(view, op_type, value, step.operand, step.node)
    return view.add(op_type, [value, step.operand], like=step.node)


def _before_heads(view: View, op_type: str, value: str, factor: str, like: Node) -> str:
    """The value times a factor, taken before the value was split into heads, where it was: so the split is still seen."""
    turn = view.producer(value)
    split = view.producer(turn.inputs[0]) if turn is not None and turn.key == ("", "Transpose") else None
    if turn is None or split is None or split.key != ("", "Reshape"):
        return view.add(op_type, [value, factor], like=like)
    rank, whole = view.rank(factor), view.rank(split.inputs[0])
    if rank is None or whole is None or rank > whole:
        one = view.array(np.ones(1, dtype=np.int64), value)
        factor = view.add("Reshape", [factor, one], like=like) if rank else factor
    times = view.add(op_type, [split.inputs[0], factor], like=like)
    return _split_again(view, times, split, turn, like)


def _split_again(view: View, value: str, split: Node, turn: Node, like: Node) -> str:
    again = view.add("Reshape", [value, split.inputs[1]], like=like)
    return view.add("Transpose", [again], {"perm": view.attribute(turn, "perm")}, like=like)


def _bias(view: View, end: str, walk: _Walk, form: _Form, step: _Step) -> None:
    target = view.shape(end) or ()
    operand = unexpanded(view, step.operand, target) if target else step.operand
    if step.kind == "minus":
        operand = view.add("Neg", [operand], like=step.node)
    # -inf stays what it is whatever is added to it: then it does not matter which comes first.
    if form.keep is not None and form.fill != -np.inf:
        if form.fill > -ABSORBS or view.dtype(end) not in _WIDE:
            raise _Refused(
                f"{step.node.name} adds {step.operand} to scores that {form.masked_by} has masked with {form.fill:g}: the "
                f"operator adds before it masks, and only a number near the end of float32 (-1e38 or lower) can be added instead"
            )
        form.lowered_by = form.masked_by
        _mask_as_bias(view, end, form, step.node)
    form.bias = operand if form.bias is None else view.add("Add", [form.bias, operand], like=step.node)


def _mask(view: View, end: str, walk: _Walk, form: _Form, step: _Step) -> None:
    what = f"{step.node.name} masks with {step.number:g} what {form.masked_by or form.lowered_by} has masked"
    if form.lowered_by:
        # Where it keeps nothing but what the first mask drops, the scores that are lost beside a bias would show.
        raise _Refused(f"{what} before a bias was added: the operator adds first")
    if step.node.op_type != "Where" and not _is_number(view, form):
        # 0 * -inf is NaN, which Where would hide.
        source = form.masked_by if form.keep is not None else f"the bias {form.bias}"
        raise _Refused(
            f"{step.node.name} masks by products, which are NaN where the scores are -inf, as {source} may have made them: the "
            f"operator puts a number there"
        )
    target = view.shape(end) or ()
    mask = unexpanded(view, step.operand, target) if target else step.operand
    mask = view.add("Not", [mask], like=step.node) if step.dropping else mask
    if form.keep is not None and form.fill == step.number:
        mask = view.add("And", [form.keep, mask], like=step.node)
    elif form.keep is not None and form.fill == -np.inf:
        _mask_as_bias(view, end, form, step.node)
    elif form.keep is not None:
        raise _Refused(f"{what} with {form.fill:g}: the operator puts one number in place of scores")
    form.keep, form.fill, form.masked_by = mask, step.number, step.node.name


def _is_number(view: View, form: _Form) -> bool:
    """Whether no score can be -inf: no mask has put that there, and the bias, if there is one, is known to have none."""
    if form.keep is not None and not np.isfinite(form.fill):
        return False
    return form.bias is None or _is_above(view, form.bias, -np.inf)


def _is_above(view: View, bias: str, lowest: float) -> bool:
    """Whether a bias is known, finite, and far above a number."""
    array = view.constant(bias)
    if array is None:
        return False
    numbers = array.astype(np.float64)
    return bool((np.isfinite(numbers) & (numbers > lowest / 2)).all())


def _mask_as_bias(view: View, end: str, form: _Form, like: Node) -> None:
    """Where(keep, s, fill) as s + Where(keep, 0, fill), for a fill so low that a score added to it is lost."""
    assert form.keep is not None
    kind = _kind(view, end)
    start = form.bias or view.array(np.zeros((), kind), end)
    form.bias = view.add("Where", [form.keep, start, view.array(np.array(form.fill, kind), end)], like=like)
    form.keep = None


_STEP_RULES: dict[str, Any] = {
    "scale": _scale,
    "factor": _factor,
    "divisor": _factor,
    "bias": _bias,
    "minus": _bias,
    "mask": _mask,
}


def _kind(view: View, value: str) -> Any:
    return helper.tensor_dtype_to_np_dtype(view.dtype(value) or TensorProto.FLOAT)


def _write(view: View, end: str, walk: _Walk, form: _Form) -> None:
    """Lets what the operator has make the value before the Softmax."""
    covers = [*walk.nodes, *([walk.cast] if walk.cast is not None else []), walk.product]
    kind = _kind(view, end)
    steps: list[tuple[str, list[str], dict[str, Any]]] = [("MatMul", [form.left, form.right], {})]
    if walk.cast is not None:
        steps.append(("Cast", [""], {"to": view.attribute(walk.cast, "to")}))
    if form.scale != 1.0:
        steps.append(("Mul", ["", view.array(np.array(form.scale, kind), end)], {}))
    if form.bias is not None:
        steps.append(("Add", ["", form.bias], {}))
    if form.keep is not None:
        steps.append(("Where", [form.keep, "", view.array(np.array(form.fill, kind), end)], {}))
    value, like = "", walk.nodes[0]
    for number, (op_type, inputs, attributes) in enumerate(steps, 1):
        inputs = [item or value for item in inputs]
        if number == len(steps):
            view.replace(end, op_type, inputs, attributes, like=like, covers=covers)
        else:
            value = view.add(op_type, inputs, attributes, like=like, covers=covers)


# -- after the Softmax -----------------------------------------------------------------------------------------------------


@reads("Mul", "Where", "Div")
def weights_in_order(view: View, node: Node) -> bool:
    """Weights that are masked or multiplied before the value, as a mask whose rows may be empty, or as factors of the value.

    (P f) v is P (f v) where f is the same for all queries. Weights that are set to 0 where the scores were masked are what they
    were, but for a row that is masked all over: it is 0, which is what the operator's `masked_row="zero"` says.
    """
    after = view.producer(node.inputs[0])
    walked = None if after is None else _weights(view, after)
    if walked is None or after is None:
        return False
    softmax, cast = walked
    try:
        found = _attended(view, node, after, softmax, cast)
    except _Refused as refused:
        view.refusals.append((softmax, str(refused)))
        return False
    if found is None:
        return False
    weights, value = found
    # What is covered keeps the steps from being fused where something else reads them.
    view.replace(node.outputs[0], "MatMul", [weights, value], like=node, covers=[after, node])
    return True


def _weights(view: View, node: Node) -> tuple[Node, Node | None] | None:
    """The Softmax of scores that the chain of steps which ends in a node starts from, and the Cast right after it."""
    for _ in range(_MOST_STEPS):
        if node.domain != "" or node.op_type not in ("Mul", "Where", "Div"):
            return None
        if _is_guard(view, node):
            return None
        makers = [view.producer(value) for value in node.inputs]
        for maker in makers:
            softmax, cast = _softmax(view, maker)
            if softmax is not None:
                return softmax, cast
        following = [maker for maker in makers if maker is not None and maker.op_type in ("Mul", "Where", "Div")]
        if not following:
            return None
        node = following[0]
    return None


def _softmax(view: View, node: Node | None) -> tuple[Node | None, Node | None]:
    cast = None
    if node is not None and node.key == ("", "Cast"):
        cast, node = node, view.producer(node.inputs[0])
    if node is None or node.key != ("", "Softmax") or not is_scores(view, _before_cast(view, node.inputs[0])):
        return None, None
    return node, cast


def _before_cast(view: View, value: str) -> str:
    node = view.producer(value)
    return value if node is None or node.key != ("", "Cast") else view.resolve(node.inputs[0])


def _is_guard(view: View, node: Node) -> bool:
    """Whether a Where puts 0 in place of what is no number, which the pattern knows."""
    asked = view.producer(node.inputs[0]) if node.op_type == "Where" else None
    return asked is not None and asked.key == ("", "IsNaN")


def _attended(view: View, node: Node, after: Node, softmax: Node, cast: Node | None) -> tuple[str, str] | None:
    """Weights and value without the last step between Softmax and value.

    Raises:
        _Refused: the step is none that the operator has.
    """
    weights = view.resolve((softmax if cast is None else cast).outputs[0])
    value = node.inputs[1]
    inputs = view.inputs(after)
    what = f"the weights that {softmax.name} makes are"
    if after.op_type == "Div":
        emptied = _renormalised(view, after, softmax, cast, weights)
        if emptied is None:
            raise _Refused(
                f"{what} divided by {inputs[1]} at {after.name}: weights that are masked after Softmax and divided by their sum "
                f"are the operator's only where the scores have the same mask before Softmax, far lower than any score"
            )
        return emptied, value
    place = next((place for place, item in enumerate(inputs) if item == weights), None)
    if after.op_type == "Where":
        if place is None:
            return None
        if not place or view.scalar(inputs[3 - place]) != 0.0:
            raise _Refused(f"{what} replaced by {inputs[3 - place]} at {after.name}: only 0 is put in their place")
        emptied = _emptied(view, softmax, cast, inputs[0], turned=place == 2, empty="zero")
        if emptied is None:
            raise _Refused(
                f"{what} set to 0 at {after.name} by {inputs[0]}, which is not the mask that the scores have before Softmax, "
                f"or they have a bias beside it that may be as low"
            )
        return emptied, value
    if place is None:
        # A step further on may be a factor of the value all the same; the one before it is looked at next.
        found = [index for index, item in enumerate(inputs) if _weights_behind(view, item)]
        place = found[0] if len(found) == 1 else None
        if place is None:
            return None
    factor, rest = inputs[1 - place], inputs[place]
    if rest == weights and is_zero_or_one(view, factor):
        emptied = _emptied(view, softmax, cast, factor)
        if emptied is not None:
            return emptied, value
    moved = _value_times(view, value, factor, node)
    if moved is not None:
        return rest, moved
    shape = ", ".join(map(str, view.shape(factor) or ("unknown",)))
    raise _Refused(
        f"{what} multiplied by {factor} [{shape}] at {after.name}, after Softmax: the operator masks the scores before it, and "
        f"only a factor that is the same for all queries goes into the value"
    )


def _renormalised(view: View, divide: Node, softmax: Node, cast: Node | None, weights: str) -> str | None:
    """Masked weights over their sum as weights of scores with that mask; None where the scores have another one, or none.

    Without the same mask before it, Softmax may leave nothing of the scores that are kept, and the sum would be 0.
    """
    masked, total = view.producer(divide.inputs[0]), view.producer(divide.inputs[1])
    least = 0.0
    if total is not None and total.key in (("", "Add"), ("", "Max"), ("", "Clip")):
        floors = [view.scalar(item) for item in total.inputs[1:]] if total.op_type != "Clip" else [None]
        least = floors[0] if floors and floors[0] is not None else view.attribute(total, "min")
        most = None if total.op_type != "Clip" else view.attribute(total, "max")
        # The sum is 1, which neither a floor nor what is added to it may change.
        if (
            not isinstance(least, float)
            or not 0 < least <= (_LOST if total.op_type == "Add" else 0.5)
            or most is not None
        ):
            return None
        total = view.producer(total.inputs[0])
    if masked is None or total is None or total.key != ("", "ReduceSum"):
        return None
    axes, rank = view.attribute(total, "axes"), view.rank(total.inputs[0])
    if view.resolve(total.inputs[0]) != view.resolve(divide.inputs[0]) or not view.attribute(total, "keepdims"):
        return None
    if axes not in ([-1], [None if rank is None else rank - 1]):
        return None
    empty = "zero" if least else "nan"
    inputs = view.inputs(masked)
    place = next((place for place, item in enumerate(inputs) if item == weights), None)
    if place is None:
        return None
    if masked.key == ("", "Mul") and is_zero_or_one(view, inputs[1 - place]):
        return _emptied(view, softmax, cast, inputs[1 - place], empty="nan" if not least else "product")
    if masked.key == ("", "Where") and place and view.scalar(inputs[3 - place]) == 0.0:
        return _emptied(view, softmax, cast, inputs[0], turned=place == 2, empty=empty)
    return None


def _weights_behind(view: View, value: str) -> bool:
    node = view.producer(value)
    return node is not None and _weights(view, node) is not None


def _value_times(view: View, value: str, factor: str, like: Node) -> str | None:
    """The value [B, h, Sk, dv] times a factor of the weights that is the same for all queries; None for another factor."""
    shape, whole = view.shape(factor), view.shape(value)
    if shape is None or whole is None or len(whole) != 4 or len(shape) > 4 or (len(shape) > 1 and shape[-2] != 1):
        return None
    turned = shape if len(shape) < 2 else (*shape[:-2], shape[-1], 1)
    turned = (*turned, 1) if len(shape) == 1 else turned
    if any(dim not in (1, want) for dim, want in zip(turned, whole[len(whole) - len(turned) :], strict=True)):
        return None
    turn = view.producer(value)
    split = view.producer(turn.inputs[0]) if turn is not None and turn.key == ("", "Transpose") else None
    one_head = len(shape) < 3 or shape[-3] == 1
    if turn is not None and split is not None and split.key == ("", "Reshape") and one_head:
        before, after = view.shape(split.inputs[0]), view.shape(split.outputs[0])
        perm = view.attribute(turn, "perm")
        if (
            before is not None
            and after is not None
            and len(before) == 3
            and before[:2] == after[:2]
            and perm == [0, 2, 1, 3]
        ):
            if len(shape) == 4:
                factor = view.add("Squeeze", [factor, _ints(view, value, 1)], like=like)
            factor = _keys_before_size(view, factor, min(len(shape), 3), like)
            return _split_again(view, view.add("Mul", [split.inputs[0], factor], like=like), split, turn, like)
    factor = _keys_before_size(view, factor, len(shape), like)
    return view.add("Mul", [value, factor], like=like)


def _keys_before_size(view: View, factor: str, rank: int, like: Node) -> str:
    """[..., 1, Sk] as [..., Sk, 1]."""
    if rank == 0:
        return factor
    if rank == 1:
        return view.add("Unsqueeze", [factor, _ints(view, factor, 1)], like=like)
    perm = [*range(rank - 2), rank - 1, rank - 2]
    return view.add("Transpose", [factor], {"perm": perm}, like=like)


def _ints(view: View, like: str, *numbers: int) -> str:
    return view.array(np.array(numbers, dtype=np.int64), like)


def _emptied(
    view: View, softmax: Node, cast: Node | None, mask: str, *, turned: bool = False, empty: str = "product"
) -> str | None:
    """The weights after they were masked with the mask that the scores have already; None where the scores have another one.

    All that changes is a row that is masked all over.

    Args:
        turned: the mask is true where it drops.
        empty: what such a row holds: "zero", "nan", or its "product" with 0, which is "nan" where Softmax gives that.
    """
    end = view.resolve(softmax.inputs[0])
    before = view.producer(end)
    if before is not None and before.key == ("", "Cast"):
        end = view.resolve(before.inputs[0])
        masked = view.producer(end)
    else:
        before, masked = None, before
    if masked is None or masked.key != ("", "Where"):
        return None
    inputs = view.inputs(masked)
    place = next((place for place in (1, 2) if view.scalar(inputs[place]) is not None), None)
    fill = None if place is None else view.scalar(inputs[place])
    if place is None or fill is None or not are_same(view, inputs[0], mask, turned=(place == 1) != turned):
        return None
    weights, scores = (softmax if cast is None else cast).outputs[0], inputs[3 - place]
    # A kept score as low as the mask shares its row with what is masked, and the weights of that are lost when set to 0.
    if (fill != -np.inf or empty == "zero") and not _are_above(view, scores, fill):
        return None
    if empty == "product":
        empty = "nan" if fill == -np.inf else "zero"
    if fill != -np.inf:
        if fill > -ABSORBS or view.dtype(end) not in _WIDE:
            return None
        lowest = view.array(np.array(-np.inf, _kind(view, end)), end)
        operands = [inputs[0], lowest, scores] if place == 1 else [inputs[0], scores, lowest]
        weights = view.add("Where", operands, like=masked, covers=[masked])
        for node in (before, softmax, cast):
            if node is not None:
                attributes = {"axis": -1} if node is softmax else {"to": view.attribute(node, "to")}
                weights = view.add(node.op_type, [weights], attributes, like=node, covers=[node])
    if empty == "nan":
        return weights
    zero = view.array(np.zeros((), _kind(view, weights)), weights)
    asked = view.add("IsNaN", [weights], like=softmax)
    return view.add("Where", [asked, zero, weights], like=softmax)


def _are_above(view: View, scores: str, fill: float) -> bool:
    """Whether scores that are kept are far above what is put in place of the others: they have no bias, or known ones."""
    node = view.producer(scores)
    if node is None or node.key != ("", "Add"):
        return True
    return all(
        _are_above(view, item, fill) if is_scores(view, item) else _is_above(view, item, fill) for item in node.inputs
    )
