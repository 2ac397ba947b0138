"""Errors planted in real fused models: verification finds each of them, and lays it on the fusion that made it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, numpy_helper

import onnx_fuse
from onnx_fuse.errors import VerificationError
from onnx_fuse.patterns.attention_layer_norm import FUSION as ATTENTION
from onnx_fuse.patterns.embed_layer_norm import FUSION as EMBEDDING
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import Fused, Fusion
from onnx_fuse.runtime.verify.verification import verify
from tests.helpers import copied

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.models import exports

CELLS = {
    "bert": exports.Export("bert", "script", 17, "sdpa", dynamic=True),
    "gpt2": exports.Export("gpt2", "dynamo", 23, "sdpa", dynamic=True),
}
"""Of the sample that the model tests export anyway: a bias and post-LN, and a mask and pre-LN."""


@dataclass(frozen=True)
class Pair:
    """A model and what fusing made of it."""

    original: ModelProto
    fused: ModelProto


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    made = {}
    for name, cell in CELLS.items():
        original = onnx.load(exports.cached(cell))
        made[name] = Pair(original, onnx_fuse.fuse(original, verify=False).model)
    return made


class Planted:
    """A fused model in which one fused node is changed."""

    def __init__(self, fused: ModelProto, operator: str, index: int) -> None:
        self.model = copied(fused)
        self.node: NodeProto = [node for node in self.model.graph.node if node.op_type == operator][index]

    def attribute(self, name: str) -> Any:
        return onnx.helper.get_attribute_value(self._attribute(name))

    def set(self, **values: float) -> None:
        for name, value in values.items():
            attribute = self._attribute(name)
            attribute.CopyFrom(onnx.helper.make_attribute(name, value))

    def swap(self, *names: str) -> None:
        first, second = (self._place(name) for name in names)
        inputs = list(self.node.input)
        inputs[first], inputs[second] = inputs[second], inputs[first]
        self.node.input[:] = inputs

    def change(self, name: str, change: Callable[[np.ndarray], None]) -> None:
        """Gives the node a changed copy of a weight; other readers keep the right one."""
        place = self._place(name)
        held = {tensor.name: tensor for tensor in self.model.graph.initializer}
        array = numpy_helper.to_array(held[self.node.input[place]]).copy()
        change(array)
        self.model.graph.initializer.append(numpy_helper.from_array(array, "planted"))
        self.node.input[place] = "planted"

    def _attribute(self, name: str) -> onnx.AttributeProto:
        return next(item for item in self.node.attribute if item.name == name)

    def _place(self, name: str) -> int:
        return str(self.attribute("inputs").decode()).split(",").index(name)


def scaled_element(array: np.ndarray) -> None:
    array[3] *= 1.05


def zeroed(array: np.ndarray) -> None:
    array[:] = 0


def first_row(array: np.ndarray) -> None:
    array[0] *= 1.1


# Attention's norms see values of about 1, so that an epsilon has to be that large to be seen in float32.
ATTENTION_MISTAKES: dict[str, Callable[[Planted], None]] = {
    "epsilon": lambda node: node.set(epsilon=1e-3),
    "scale": lambda node: node.set(scale=0.9 * node.attribute("scale")),
    "scale forgotten": lambda node: node.set(scale=1.0),
    "head count": lambda node: node.set(num_heads=2, num_key_value_heads=2),
    "gamma": lambda node: node.change("gamma", scaled_element),
    "gamma forgotten": lambda node: node.change("gamma", lambda array: array.fill(1)),
    "beta": lambda node: node.change("beta", scaled_element),
    "gamma and beta swapped": lambda node: node.swap("gamma", "beta"),
    "query and key swapped": lambda node: node.swap("query", "key"),
    "key and value swapped": lambda node: node.swap("key", "value"),
    "projection": lambda node: node.change("out_weight", first_row),
    "bias dropped": lambda node: node.change("out_bias", zeroed),
    "bias and beta swapped": lambda node: node.swap("out_bias", "beta"),
    "residual forgotten": lambda node: node.swap("residual", "query"),
}
EMBEDDING_MISTAKES: dict[str, Callable[[Planted], None]] = {
    "epsilon": lambda node: node.set(epsilon=1e-4),
    "gamma": lambda node: node.change("gamma", scaled_element),
    "beta dropped": lambda node: node.change("beta", zeroed),
    "tables swapped": lambda node: node.swap("table_1", "table_2"),
    "a row of a table": lambda node: node.change("table_2", first_row),
}


def assert_found(pair: Pair, planted: Planted) -> None:
    result = verify(pair.original, planted.model)
    assert not result.passed
    assert result.skipped is None
    assert result.problem is not None and "inconclusive" not in result.problem
    with pytest.raises(VerificationError):
        result.raise_if_failed()


@pytest.mark.parametrize("name", CELLS)
def test_without_a_mistake_the_models_are_equal(pairs: dict[str, Pair], name: str) -> None:
    result = verify(pairs[name].original, copied(pairs[name].fused))
    assert result.passed, result.problem
    assert len(result.cases) >= 3


@pytest.mark.parametrize("mistake", ATTENTION_MISTAKES.values(), ids=ATTENTION_MISTAKES)
@pytest.mark.parametrize("name", CELLS)
def test_a_mistake_in_one_attention_is_found(
    pairs: dict[str, Pair], name: str, mistake: Callable[[Planted], None]
) -> None:
    planted = Planted(pairs[name].fused, ATTENTION.name, {"bert": 0, "gpt2": 1}[name])
    mistake(planted)
    assert_found(pairs[name], planted)


@pytest.mark.parametrize("value", [-1.0, -1e4])
def test_a_wrong_mask_value_is_found(pairs: dict[str, Pair], value: float) -> None:
    planted = Planted(pairs["gpt2"].fused, ATTENTION.name, 1)
    assert planted.attribute("mask_value") == -np.inf
    planted.set(mask_value=value)
    assert_found(pairs["gpt2"], planted)


@pytest.mark.parametrize("mistake", EMBEDDING_MISTAKES.values(), ids=EMBEDDING_MISTAKES)
@pytest.mark.parametrize("name", CELLS)
def test_a_mistake_in_the_embedding_is_found(
    pairs: dict[str, Pair], name: str, mistake: Callable[[Planted], None]
) -> None:
    planted = Planted(pairs[name].fused, EMBEDDING.name, 0)
    mistake(planted)
    assert_found(pairs[name], planted)


def wrong_at(fusion: Fusion, victims: set[str], **factors: float) -> Fusion:
    """The fusion, with attributes multiplied by these factors where it replaces one of the victims."""

    def build(match: Match, view: View) -> Fused | str:
        made = fusion.fused(match, view)
        if isinstance(made, str) or match.root.name not in victims:
            return made
        attributes = {name: value * factors.get(name, 1) for name, value in made.attributes.items()}
        return replace(made, attributes=attributes)

    return replace(fusion, build=build)


@pytest.mark.parametrize(("name", "place"), [("bert", 0), ("bert", 1), ("gpt2", 1)])
def test_the_fusion_that_breaks_the_model_is_named(pairs: dict[str, Pair], name: str, place: int) -> None:
    original = pairs[name].original
    roots = [match.root for match in onnx_fuse.explain(original).matches if match.fusion == ATTENTION.name]
    victim = roots[place]
    with pytest.raises(VerificationError) as caught:
        onnx_fuse.fuse(original, fusions=[EMBEDDING, wrong_at(ATTENTION, {victim}, scale=0.5)])
    assert caught.value.exit_code == 4
    assert victim in caught.value.cause
    assert "--disable" in caught.value.remedy
    report = caught.value.report
    assert report.verification["culprit"] == victim
    assert [match.fusion for match in report.matches if match.root == victim] == [ATTENTION.name]


def test_the_first_of_several_wrong_fusions_may_be_the_embedding(pairs: dict[str, Pair]) -> None:
    original = pairs["bert"].original
    roots = {match.root: match.fusion for match in onnx_fuse.explain(original).matches}
    embedding = next(root for root, fusion in roots.items() if fusion == EMBEDDING.name)
    with pytest.raises(VerificationError) as caught:
        onnx_fuse.fuse(original, fusions=[wrong_at(EMBEDDING, {embedding}, epsilon=1e9), ATTENTION])
    assert caught.value.report.verification["culprit"] == embedding


def test_a_wrong_fusion_goes_unseen_without_verification(pairs: dict[str, Pair]) -> None:
    original = pairs["bert"].original
    roots = {match.root for match in onnx_fuse.explain(original).matches}
    wrong = wrong_at(ATTENTION, roots, scale=0.5)
    result = onnx_fuse.fuse(original, fusions=[wrong], verify=False)
    assert result.report.fused == {ATTENTION.name: exports.LAYERS}
    assert result.report.verification is None
