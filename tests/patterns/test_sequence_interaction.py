"""SequenceRecommendationInteraction: any of its outputs fuse, other poolings do not, and padding never counts."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import Tensor, nn

import onnx_fuse
from examples.models.din import DIN
from examples.models.two_tower import SequenceInteraction, TwoTower
from onnx_fuse.patterns.sequence_interaction import OUTPUTS, SequenceRecommendationInteraction
from tests import helpers
from tests.helpers import Array
from tests.torch_export import OPSETS, SCRIPT, USUAL, exported

NAME = "SequenceRecommendationInteraction"
B, S, D = 3, 9, 8
INPUTS = {
    "items": torch.randn(B, S, D),
    "user": torch.randn(B, D),
    "mask": torch.rand(B, S) > 0.4,
    "time_weights": torch.rand(B, S),
}
AXES = {"items": {0: "B", 1: "S"}, "user": {0: "B"}, "mask": {0: "B", 1: "S"}, "time_weights": {0: "B", 1: "S"}}
SUBSETS = [subset for size in (1, 2, 3, 4) for subset in itertools.combinations(OUTPUTS, size)]


def attributes(node: NodeProto) -> dict[str, Any]:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def fused_nodes(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == NAME]


class Pooled(nn.Module):
    """Sum of the items by weights that `weigh` makes of the mask."""

    def __init__(self, weigh: Any, pool: Any = None) -> None:
        super().__init__()
        self.weigh, self.pool = weigh, pool or (lambda weights, items: (weights.unsqueeze(2) * items).sum(1))

    def forward(self, items: Tensor, user: Tensor, mask: Tensor, time_weights: Tensor) -> tuple[Tensor, ...]:
        return (self.pool(self.weigh(mask, time_weights), items),)


def fading(mask: Tensor, rate: float = 0.1) -> Tensor:
    position = torch.arange(mask.shape[1])
    last = torch.where(mask, position, -1).amax(1, keepdim=True)
    return 0.5 + 0.5 * torch.exp(-rate * (last - position).float())


def rank_weights(mask: Tensor, later: Tensor, window: int = 3) -> Tensor:
    recent = mask & (later <= window)
    return torch.where(recent, 1 + 0.1 * (recent.long().sum(1, keepdim=True) - later).float(), 0.0)


def later(mask: Tensor) -> Tensor:
    return mask.long().flip(1).cumsum(1).flip(1)


def averaged(weights: Tensor, items: Tensor) -> Tensor:
    return (weights.unsqueeze(2) * items).sum(1) / weights.sum(1, keepdim=True).clamp(min=1e-6)


def average_or_zero(weights: Tensor, items: Tensor) -> Tensor:
    total = weights.sum(1, keepdim=True)
    return torch.where(total == 0, 0.0, (weights.unsqueeze(2) * items).sum(1) / total)


class Scores(nn.Module):
    """Other ways to write the scores."""

    def __init__(self, score: Any) -> None:
        super().__init__()
        self.score = score

    def forward(self, items: Tensor, user: Tensor, mask: Tensor, time_weights: Tensor) -> tuple[Tensor, ...]:
        return (self.score(items, user, mask, time_weights),)


RELATIVES: dict[str, nn.Module] = {
    "fading, masked_fill": Pooled(lambda mask, w: (fading(mask) * w).masked_fill(~mask, 0.0)),
    "fading, where": Pooled(lambda mask, w: torch.where(mask, fading(mask), 0.0)),
    "fading, einsum": Pooled(lambda mask, w: fading(mask) * mask.float(), lambda w, x: torch.einsum("bs,bsd->bd", w, x)),
    "fading, averaged": Pooled(lambda mask, w: fading(mask) * mask.float(), averaged),
    "fading, average or zero": Pooled(lambda mask, w: fading(mask) * mask.float() * w, average_or_zero),
    "rank, where": Pooled(lambda mask, w: rank_weights(mask, later(mask))),
    "rank, averaged": Pooled(lambda mask, w: rank_weights(mask, later(mask)), averaged),
    "scores, einsum": Scores(lambda x, u, m, w: torch.einsum("bsd,bd->bs", x, u) * m),
    "scores, summed": Scores(lambda x, u, m, w: (x * u.unsqueeze(1)).sum(-1).masked_fill(~m, 0.0) * w),
    "scores, weights first": Scores(lambda x, u, m, w: (x @ u.unsqueeze(-1)).squeeze(-1) * (w * m.float())),
    "scores, weights alone": Scores(lambda x, u, m, w: (x @ u.unsqueeze(-1)).squeeze(-1) * w),
}  # fmt: skip


class Each(nn.Module):
    """Several side by side, each on items and a mask of its own, with or without time weights."""

    def __init__(self, parts: list[tuple[nn.Module, bool]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part for part, _ in parts)
        self.weighted = [weighted for _, weighted in parts]

    def forward(self, items: Tensor, user: Tensor, mask: Tensor, time_weights: Tensor) -> list[Tensor]:
        made: list[Tensor] = []
        for number, (part, weighted) in enumerate(zip(self.parts, self.weighted, strict=True)):
            own = mask & (items[:, :, number % D] > -1 - number / 100)
            made += part(items + number, user, own, *([time_weights] if weighted else []))
        return made


@pytest.mark.parametrize("exporter", USUAL, ids=lambda item: f"{item[0]}{item[1]}")
def test_every_subset_and_relative_is_one_node(exporter: tuple[str, int]) -> None:
    # Every subset from one of the exporters, each output and all of them from the other, which is slow.
    subsets = SUBSETS if exporter[0] == SCRIPT else [*SUBSETS[:4], SUBSETS[-1]]
    parts: list[tuple[nn.Module, bool]] = [(SequenceInteraction(3, 0.2, subset), True) for subset in subsets]
    parts += [(SequenceInteraction(2, 0.5, (name,)), False) for name in OUTPUTS]
    parts += [(part, True) for part in RELATIVES.values()]
    result = onnx_fuse.fuse(exported(Each(parts), INPUTS, AXES, *exporter))
    wanted = [*subsets, *((name,) for name in OUTPUTS)]
    assert result.report.fused == {NAME: len(parts)}, [(miss.node, miss.reason) for miss in result.report.near_misses]
    nodes = [attributes(node) for node in fused_nodes(result.model)]
    assert [tuple(node["outputs"].split(",")) for node in nodes[: len(wanted)]] == wanted
    for node, subset in zip(nodes, subsets, strict=False):
        inputs = ["items", "user"] if "scores" in subset else ["items"]
        inputs += [] if subset == ("cooccurrence",) else ["time_weights"]
        assert node["inputs"] == ",".join([*inputs, "mask"])
        assert node["short_window"] == (3 if "short_term" in subset else 0)
        assert node["decay"] == pytest.approx(0.2 if "cooccurrence" in subset else 0.0)
    relatives = dict(zip(RELATIVES, nodes[len(wanted) :], strict=True))
    assert {name for name, node in relatives.items() if node["normalize"]} == {
        "fading, averaged",
        "fading, average or zero",
        "rank, averaged",
    }


def test_a_fixed_length() -> None:
    """Distances are then a constant matrix, and positions a constant list."""
    model = exported(SequenceInteraction(), INPUTS, {}, *USUAL[1])
    result = onnx_fuse.fuse(model)
    (node,) = fused_nodes(result.model)
    assert attributes(node)["outputs"] == ",".join(OUTPUTS)
    assert attributes(node)["decay"] == pytest.approx(0.2)


_TWO_TOWER: list[TwoTower] = []


@pytest.mark.parametrize("exporter", OPSETS, ids=lambda item: f"{item[0]}{item[1]}")
def test_two_towers_in_every_opset(exporter: tuple[str, int]) -> None:
    if not _TWO_TOWER:
        _TWO_TOWER.append(TwoTower(items=50))
    inputs = {
        "history": torch.randint(0, 3, (B, S)),
        "time_weights": torch.rand(B, S),
        "profile": torch.randn(B, 32),
        "candidates": torch.randint(1, 50, (B, 4)),
    }
    axes = {"history": {0: "B", 1: "S"}, "time_weights": {0: "B", 1: "S"}, "profile": {0: "B"}, "candidates": {0: "B"}}
    result = onnx_fuse.fuse(exported(_TWO_TOWER[0], inputs, axes, *exporter))
    (node,) = fused_nodes(result.model)
    assert attributes(node)["outputs"] == "short_term,long_term"
    assert attributes(node)["inputs"] == "items,time_weights,mask"


# -- what is something else --------------------------------------------------------------------------------------------


def refusals(module: nn.Module, inputs: dict[str, Tensor] | None = None, axes: Any = None) -> list[str]:
    model = exported(module, inputs or INPUTS, AXES if axes is None else axes, SCRIPT, 17)
    result = onnx_fuse.fuse(model, fusions=[NAME], verify=False)
    assert result.report.fused == {}
    assert result.report.warnings == []
    return [miss.reason for miss in result.report.near_misses]


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "another rate": (Pooled(lambda m, w: fading(m, 0.2) * m.float()), "the constant is -0.2, pattern wants -0.1"),
    "plain decay": (
        Pooled(lambda m, w: torch.exp(-0.1 * (S - 1 - torch.arange(m.shape[1])).float()) * m.float()),
        "pattern wants",
    ),
    "the last by count": (
        Pooled(lambda m, w: (0.5 + 0.5 * torch.exp(-0.1 * (m.long().sum(1, keepdim=True) - 1 - torch.arange(m.shape[1])).float())) * m),
        "found Sub /Sub, pattern wants ReduceMax",
    ),
    "ranks from the newest": (
        Pooled(lambda m, w: (m & (later(m) <= 3)).float() * (1 + 0.1 * later(m).float())),
        "pattern wants Sub",
    ),
    "counted from the start": (Pooled(lambda m, w: rank_weights(m, m.long().cumsum(1))), "attribute reverse is 0, pattern wants 1"),
    "weights alone": (Pooled(lambda m, w: w), "found the graph input time_weights, pattern wants"),
    "a Softmax": (Pooled(lambda m, w: w.masked_fill(~m, -1e9).softmax(1)), "found Softmax /Softmax, pattern wants"),
    "positions from one": (
        Pooled(lambda m, w: m.float() * (0.5 + 0.5 * torch.exp(-0.1 * (torch.where(m, torch.arange(1, S + 1), -1).amax(1, keepdim=True) - torch.arange(1, S + 1)).float()))),
        "is not 0, 1, 2, ... along the sequence",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_poolings_stay_and_are_explained(name: str) -> None:
    module, sentence = REFUSED[name]
    axes = {} if name == "positions from one" else AXES
    reasons = refusals(module, axes=axes)
    assert any(sentence in reason for reason in reasons), reasons


def test_the_weights_of_din_come_from_a_network() -> None:
    inputs = {
        "history": torch.randint(0, 9, (B, S)),
        "candidate": torch.tensor([1, 2, 3]),
        "profile": torch.randn(B, 16),
    }
    reasons = refusals(DIN(items=10), inputs, {"history": {0: "B"}, "candidate": {0: "B"}, "profile": {0: "B"}})
    assert any("pattern wants Mul, Where or Add" in reason for reason in reasons), reasons


def test_a_clipped_average_of_any_weights_is_divided_outside() -> None:
    model = exported(Pooled(lambda m, w: fading(m) * m.float() * w, averaged), INPUTS, AXES, SCRIPT, 17)
    result = onnx_fuse.fuse(model)
    (node,) = fused_nodes(result.model)
    assert attributes(node)["normalize"] == 0
    assert helpers.operators(result.model)[-1] == "Div"


class TwoSequences(nn.Module):
    """Items and their categories, with one mask."""

    def forward(self, items: Tensor, user: Tensor, mask: Tensor, time_weights: Tensor) -> list[Tensor]:
        reference = SequenceInteraction(outputs=("short_term", "long_term"))
        return [
            *reference(items, user, mask, time_weights),
            *reference(items.sin(), user, mask, time_weights),
            mask.float(),
        ]


def test_sequences_may_share_a_mask() -> None:
    result = onnx_fuse.fuse(exported(TwoSequences(), INPUTS, AXES, SCRIPT, 17))
    found = [attributes(node) for node in fused_nodes(result.model)]
    assert [node["outputs"] for node in found] == ["short_term,long_term"] * 2
    assert "CumSum" not in helpers.operators(result.model)


class FloatMask(SequenceInteraction):
    def forward(
        self, items: Tensor, user: Tensor, mask: Tensor, time_weights: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        position = torch.arange(items.shape[1])
        last = (mask * position).amax(1, keepdim=True)
        weights = mask.float() * (0.5 + 0.5 * torch.exp(-0.1 * (last - position).float()))
        return ((weights.unsqueeze(2) * items).sum(1),)


def test_a_mask_of_numbers_may_hold_more_than_zero_and_one() -> None:
    inputs = {**INPUTS, "mask": torch.ones(B, S, dtype=torch.int64)}
    reasons = refusals(FloatMask(), inputs)
    assert any("pattern wants Cast" in reason or "is not bool" in reason for reason in reasons), reasons


class TwoWeights(nn.Module):
    """Scores with the time weights, long-term interest without."""

    def forward(self, items: Tensor, user: Tensor, mask: Tensor, time_weights: Tensor) -> tuple[Tensor, ...]:
        reference = SequenceInteraction()
        return reference.scores(items, user, mask, time_weights), reference.long_term(items, user, mask, None)


def test_outputs_with_different_weights_are_different_nodes() -> None:
    result = onnx_fuse.fuse(exported(TwoWeights(), INPUTS, AXES, SCRIPT, 17))
    found = [attributes(node) for node in fused_nodes(result.model)]
    assert all(len(node["outputs"].split(",")) == 1 for node in found)


# -- the body ----------------------------------------------------------------------------------------------------------

MASKS: dict[str, Array] = {
    "all": np.ones((2, 6), bool),
    "none": np.zeros((2, 6), bool),
    "left": np.array([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]], bool),
    "right": np.array([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]], bool),
    "holes": np.array([[1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 0]], bool),
    "mixed": np.array([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], bool),
}


def reference(
    items: Array, user: Array, weights: Array, mask: Array, window: int, decay: float, normalize: int
) -> tuple[Array, ...]:
    """The operator in float64, element by element."""
    items, user, weights = (array.astype(np.float64) for array in (items, user, weights))
    batch, length, width = items.shape
    scores = np.zeros((batch, length))
    short, long = np.zeros((batch, width)), np.zeros((batch, width))
    together = np.zeros((batch, length, length))
    for b in range(batch):
        valid = [s for s in range(length) if mask[b, s]]
        for s in valid:
            scores[b, s] = weights[b, s] * (user[b] @ items[b, s])
        by_rank = {s: weights[b, s] * (1 + 0.1 * rank) for rank, s in enumerate(valid[-window:])}
        by_age = {s: weights[b, s] * (0.5 + 0.5 * np.exp(-0.1 * (valid[-1] - s))) for s in valid}
        for out, chosen in ((short, by_rank), (long, by_age)):
            total = sum(chosen.values())
            for s, weight in chosen.items():
                out[b] += weight * items[b, s] / (total if normalize and total else 1)
        for i, j in itertools.combinations(valid, 2):
            together[b, i, j] = np.exp(-decay * (j - i)) * (items[b, i] @ items[b, j])
    return scores, short, long, together


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize(("opset", "dtype"), [(13, np.float32), (17, np.float16), (23, np.float32)])
def test_the_body_against_numpy(mask: str, normalize: int, opset: int, dtype: Any) -> None:
    random = np.random.default_rng(5)
    given: dict[str, Array] = {
        "items": random.standard_normal((2, 6, 4)).astype(dtype),
        "user": random.standard_normal((2, 4)).astype(dtype),
        "time_weights": random.random((2, 6)).astype(dtype),
        "mask": MASKS[mask],
    }
    if mask in ("left", "right"):  # a mask of the operator's own type
        given["mask"] = given["mask"].astype(dtype)
    chosen = {"short_window": 2, "decay": 0.3, "normalize": normalize}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    operator = SequenceRecommendationInteraction
    node = operator.make_node({name: name for name in given}, {name: name for name in OUTPUTS}, chosen, "n")
    function = operator.make_function(list(given), list(OUTPUTS), chosen, {"": opset}, kind)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in given.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in OUTPUTS],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("gr.ml.infra", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)
    want = reference(*given.values(), 2, 0.3, normalize)
    tolerance = 1e-5 if dtype == np.float32 else 4e-3
    for name, got, expected in zip(OUTPUTS, helpers.run(model, given), want, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance, err_msg=name)


def test_garbage_in_padding_does_not_reach_the_scores() -> None:
    chosen = {"short_window": 2, "decay": 0.3, "normalize": 0}
    operator = SequenceRecommendationInteraction
    names = ["items", "user", "mask"]
    function = operator.make_function(names, ["scores"], chosen, {"": 17}, TensorProto.FLOAT)
    node = operator.make_node({name: name for name in names}, {"scores": "scores"}, chosen, "n")
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("items", TensorProto.FLOAT, [1, 2, 2]),
            helper.make_tensor_value_info("user", TensorProto.FLOAT, [1, 2]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, [1, 2]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("gr.ml.infra", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)
    given = {
        "items": np.array([[[1, 2], [np.inf, np.nan]]], np.float32),
        "user": np.ones((1, 2), np.float32),
        "mask": np.array([[True, False]]),
    }
    assert helpers.run(model, given)[0].tolist() == [[3.0, 0.0]]
