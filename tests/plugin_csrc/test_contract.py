"""Plugins compute what their operator's body says, for every shape, type and set of inputs that it is declared for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from onnx_fuse.errors import UsageError
from onnx_fuse.patterns.language.declaration import Misfit
from onnx_fuse.plugin_csrc.kernels.manifest import Variant
from onnx_fuse.runtime.plugins import harness
from tests.plugin_csrc import contract
from tests.plugin_csrc.built import library

NAMES = sorted(contract.OPERATORS)
SEED = 20
BROADCASTING = ("FusedAttentionLayerNorm", "HSTUHierarchicalAttention", "HierarchicalSequenceFusion")


def test_every_operator_is_drawn() -> None:
    assert sorted(contract.RULES) == NAMES
    assert all(operator.declaration is not None for operator in contract.OPERATORS.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "names, count",
    [(BROADCASTING, 6), ([name for name in NAMES if name not in BROADCASTING], 2)],
    ids=["broadcasting", "others"],
)
def test_a_sample(names: list[str], count: int, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    check(names, count, SEED, tmp_path, record_property)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_all(name: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    for part in range(4):
        folder = tmp_path / str(part)
        folder.mkdir()
        check([name], 10 if name in BROADCASTING else 5, SEED + 1 + part, folder, record_property)


def check(names: Any, count: int, seed: int, folder: Path, record: Callable[[str, object], None]) -> None:
    nodes = contract.drawn_pairwise(names, count, seed)
    outcome = contract.judged(contract.enqueued_by(nodes, folder, seed))
    told = f"{len(nodes)} nodes of {', '.join(names)} drawn with seed {seed}: {outcome.refound} found again by fuse"
    record("drawn", f"{told}, {outcome.impossible} that ONNX Runtime cannot run")
    assert not outcome.wrong, "\n".join(f"{node}: {found}" for node, found in outcome.wrong)
    assert set(names) <= set(outcome.operators)
    assert outcome.impossible <= len(nodes) // 4
    # Of attention's and HSTU's combinations few are written as a model is.
    assert outcome.refound >= len(nodes) // 10 or set(names) <= {"FusedAttentionLayerNorm", "HSTUHierarchicalAttention"}


def test_keys_and_values_through_tensor_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HSTU's large tiles on sm_90, with full tiles of keys before the rim."""
    name = "HSTUHierarchicalAttention"
    rules = contract.RULES[name]
    attributes = {**rules.attributes, "mode": ("silu",), "num_heads": (1, 2)}
    sizes = {"B": (2,), "N": (136, 264), "d": (64,), "dv": (64,)}
    monkeypatch.setitem(contract.RULES, name, replace(rules, sizes=sizes, attributes=attributes, empty=("B",)))
    draws, nodes = random.Random(8), []
    while len(nodes) < 8:
        node = contract.draw(name, draws)
        length, kinds = node.sizes["N"], {item: found for item, (found, _) in node.inputs.items()}
        known = kinds.get("bias", node.element) == node.element and kinds.get("mask", "bool") == "bool"
        dense = all(node.inputs[item][1][-1] == length for item in ("bias", "mask") if item in node.inputs)
        if node.element != "float32" and node.sizes["B"] and not node.skewed and known and dense:
            nodes.append(node)
    held = contract.enqueued_by(nodes, tmp_path, 8, FAKE_CUDA_SM="90")
    assert all(answer["launches"][0]["kernel"] == "hstu_mapped_tiles" for answer in held.answers)
    outcome = contract.judged(held)
    assert not outcome.wrong, "\n".join(f"{node}: {found}" for node, found in outcome.wrong)
    assert {"bias", "mask", "lengths"} <= {item for node in nodes for item in node.inputs}


# -- faults that were there -----------------------------------------------------------------------------------------------

Arguments = dict[str, Any]


def dense_bias(arguments: Arguments) -> None:
    """The rows of a bias lie N apart, and its columns next to each other."""
    if "bias_row" in arguments:
        arguments["bias_row"] = arguments["length"]


def dense_level_mask(arguments: Arguments) -> None:
    """A level mask is [B, S, L]."""
    positions, levels = arguments["positions"], arguments["levels"]
    arguments |= {"mask_batch": positions * levels, "mask_position": levels}


def one_affine(arguments: Arguments) -> None:
    """Beta lies as gamma does, and without gamma as [h dv]."""
    if "beta_head" in arguments:
        arguments |= {"beta_head": arguments["gamma_head"], "beta_column": arguments["gamma_column"]}


@pytest.mark.parametrize(
    "operator, fault, facts",
    [
        ("HSTUHierarchicalAttention", dense_bias, {"bias axis 2 broadcasts", "bias axis 3 is whole"}),
        (
            "HierarchicalSequenceFusion",
            dense_level_mask,
            {"level_mask axis 1 broadcasts", "level_mask axis 2 is whole"},
        ),
        ("HSTUHierarchicalAttention", one_affine, {"no gamma", "beta [h]"}),
        ("HSTUHierarchicalAttention", one_affine, {"gamma [h]", "beta [h*dv]"}),
    ],
    ids=["bias", "level mask", "beta without gamma", "gamma and beta"],
)
def test_the_contract_sees_a_fault(
    operator: str, fault: Callable[[Arguments], None], facts: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was in a plugin once: the contract holds without it, and not with it."""
    draws = random.Random(3)
    nodes = []
    while len(nodes) < 2:
        node = contract.draw(operator, draws)
        sizes = [size for name, size in node.sizes.items() if name in ("N", "S", "L", "dv", "h")]
        if facts <= node.facts and min(*sizes, node.sizes["B"]) > 1 and max(sizes) < 20:
            nodes.append(node)
    held = contract.enqueued_by(nodes, tmp_path, 1)
    assert not contract.judged(held).wrong
    interpret = contract.interpret

    def planted(variant: Variant, grid: tuple[int, ...], arguments: list[Any]) -> None:
        named = dict(zip(variant.signature, arguments, strict=True))
        if variant.name.startswith(("hstu_", "hierarchical_")):
            fault(named)
        interpret(variant, grid, [*named.values()])

    monkeypatch.setattr(contract, "interpret", planted)
    assert contract.judged(held).wrong


# -- refusals -------------------------------------------------------------------------------------------------------------


def plugin_of(node: contract.Drawn) -> harness.Plugin:
    names = {"inputs": ",".join(node.inputs), "outputs": ",".join(node.outputs)}
    return harness.Plugin(library(), node.operator, {**node.attributes, **names})


def tensors(node: contract.Drawn) -> list[harness.Tensor]:
    return [harness.Tensor(kind, shape) for kind, shape in node.inputs.values()]


def with_another_axis(node: contract.Drawn, draws: random.Random) -> contract.Drawn:
    """The node with one axis of one input larger, smaller or gone."""
    name = draws.choice([item for item, (_, shape) in node.inputs.items() if shape])
    shape = list(node.inputs[name][1])
    axis = draws.randrange(len(shape))
    shape[axis : axis + 1] = draws.choice([[shape[axis] + 1], [shape[axis] + 16], [0], [1], []])
    return contract.changed(node, **{name: tuple(shape)})


@pytest.mark.parametrize("name", NAMES)
def test_plugins_refuse_what_is_not_declared(name: str) -> None:
    """With the sentence of the declaration, when an engine is built and when it runs; they take what is declared."""
    declaration, draws = contract.OPERATORS[name].declaration, random.Random(5)
    assert declaration is not None
    refused = 0
    for _ in range(60):
        node = with_another_axis(contract.draw(name, draws), draws)
        shapes = {item: shape for item, (_, shape) in node.inputs.items()}
        plugin = plugin_of(node)
        try:
            declaration.bound(shapes, node.attributes)
            outputs = plugin.outputs(tensors(node))
            with pytest.raises(UsageError, match="no CUDA driver"):  # which it asks for only where nothing is wrong
                plugin.prepare(tensors(node), outputs)
        except Misfit as misfit:
            refused += 1
            both = (tensors(node), made_of(node))
            for call, arguments in ((plugin.outputs, both[:1]), (plugin.prepare, both), (plugin.enqueue, both)):
                with pytest.raises(UsageError) as error:
                    call(*arguments)
                assert f"{name}: {misfit}" in error.value.cause
        finally:
            plugin.close()
    assert refused >= 5 or name == "FusedSwish"


@pytest.mark.parametrize("name", NAMES)
def test_output_shapes_are_right_for_sizes_that_only_a_run_knows(name: str) -> None:
    """Batches of 0 and 1 among them, or the plugin says that it has to know them."""
    draws, told = random.Random(6), 0
    for _ in range(30):
        node = contract.draw(name, draws)
        plugin = plugin_of(node)
        try:
            assert plugin.outputs(tensors(node), known=False) == plugin.outputs(tensors(node))
            told += 1
        except UsageError as error:
            assert "known when the engine is built" in error.cause
        finally:
            plugin.close()
    # A linear layer's weight has to be known: its sizes say how much workspace it takes.
    assert told == 30 or name in (*BROADCASTING, "FusedLinearLayerNorm")


def test_a_batch_that_is_empty_is_not_that_of_positions_for_all() -> None:
    attributes = {"num_tables": 2, "norm": "none", "epsilon": 1e-5, "outputs": "output"}
    names = {"inputs": "ids_1,table_1,ids_2,table_2"}
    plugin = harness.Plugin(library(), "FusedEmbedLayerNorm", {**attributes, **names})
    shapes = [("int64", (0, 7)), ("float32", (5, 8)), ("int64", (1, 7)), ("float32", (9, 8))]
    for order in (shapes, [*shapes[2:], *shapes[:2]]):
        (made,) = plugin.outputs([harness.Tensor(*item) for item in order], known=False)
        assert made.sizes == (0, 7, 8)
    plugin.close()


def made_of(node: contract.Drawn) -> list[harness.Tensor]:
    return [harness.Tensor(node.element, (1,)) for _ in node.outputs]
