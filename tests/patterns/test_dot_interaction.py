"""InteractionTritonFast: products of all pairs of features fuse however they are selected, in the order the model has."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import Tensor

import onnx_fuse
from examples.models.dlrm import DLRM, DotInteraction
from tests import helpers
from tests.helpers import Array
from tests.torch_export import DYNAMO, OPSETS, SCRIPT, USUAL, exported

NAME = "InteractionTritonFast"
F, D = 5, 8
LOWER = [(i, j) for i in range(F) for j in range(i)]
LOWER_WITH = [(i, j) for i in range(F) for j in range(i + 1)]
UPPER = [(i, j) for i in range(F) for j in range(i + 1, F)]
ROWS, COLUMNS = torch.tensor(LOWER).T
PLACES = ROWS * F + COLUMNS
MASK = torch.ones(F, F, dtype=torch.bool).tril(-1)
INPUTS = {"dense": torch.randn(3, D), "sparse": torch.randn(3, F - 1, D)}
AXES = {name: {0: "B"} for name in INPUTS}


def attributes(node: NodeProto) -> dict[str, Any]:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def fused(model: ModelProto | Path) -> tuple[ModelProto, NodeProto]:
    """The fused model, proven equal, and its one fused node."""
    result = onnx_fuse.fuse(model)
    assert result.report.fused == {NAME: 1}, [miss.reason for miss in result.report.near_misses]
    assert result.report.warnings == []
    return result.model, next(node for node in result.model.graph.node if node.op_type == NAME)


def refused(model: ModelProto) -> list[str]:
    result = onnx_fuse.fuse(model, fusions=[NAME], verify=False)
    assert result.report.fused == {}
    assert result.report.warnings == []
    return [miss.reason for miss in result.report.near_misses]


def reference(features: Array, triangle: str, diagonal: int, dense: str) -> Array:
    """The operator in float64, entry by entry."""
    features = features.astype(np.float64)
    count = features.shape[1]
    pairs = [
        (i, j)
        for i in range(count)
        for j in range(count)
        if (j < i if triangle == "lower" else j > i) or (diagonal and i == j)
    ]
    out = np.stack([(features[:, i] * features[:, j]).sum(-1) for i, j in pairs], axis=1)
    ends = {"none": [out], "first": [features[:, 0], out], "last": [out, features[:, 0]]}[dense]
    return np.concatenate(ends, axis=1)


# -- exported from torch -----------------------------------------------------------------------------------------------


class Interaction(torch.nn.Module):
    """Features built by `build`, their products by `multiply`, some of these selected by `select`, the rest by `finish`."""

    def __init__(
        self,
        select: Callable[[Tensor], Tensor],
        build: Callable[[Tensor, Tensor], Tensor] = lambda dense, sparse: torch.cat([dense.unsqueeze(1), sparse], 1),
        multiply: Callable[[Tensor], Tensor] = lambda e: torch.bmm(e, e.transpose(1, 2)),
        finish: Callable[[Tensor, Tensor], Tensor] = lambda dense, pairs: torch.cat([dense, pairs], 1),
    ) -> None:
        super().__init__()
        self.parts = (select, build, multiply, finish)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        select, build, multiply, finish = self.parts
        return finish(dense, select(multiply(build(dense, sparse))))


def by_index(z: Tensor) -> Tensor:
    return z[:, ROWS, COLUMNS]


def tril(z: Tensor) -> Tensor:
    rows, columns = torch.tril_indices(z.shape[1], z.shape[2], offset=-1)
    return z[:, rows, columns]


def triu(z: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(F, F, offset=1)
    return z[:, rows, columns]


def from_lists(z: Tensor) -> Tensor:
    """As facebookresearch/dlrm writes it."""
    _, ni, nj = z.shape
    rows = torch.tensor([i for i in range(ni) for j in range(i)])
    columns = torch.tensor([j for i in range(nj) for j in range(i)])
    return z[:, rows, columns]


SELECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "indices": by_index,
    "tril_indices": tril,
    "triu_indices": triu,
    "lists": from_lists,
    "index_select": lambda z: torch.index_select(z.reshape(-1, F * F), 1, PLACES),
    "flattened": lambda z: z.flatten(1)[:, PLACES],
    "gather": lambda z: torch.gather(z.flatten(1), 1, PLACES.unsqueeze(0).expand(z.shape[0], -1)),
    "rows sliced": lambda z: torch.cat([z[:, i, :i] for i in range(1, F)], 1),
    "rows unbound": lambda z: torch.cat([row[:, :i] for i, row in enumerate(z.unbind(1)) if i], 1),
    "columns sliced": lambda z: torch.cat([z[:, i + 1 :, i] for i in range(F - 1)], 1),
    "mask": lambda z: z[:, MASK],
    "masked_select": lambda z: torch.masked_select(z, MASK).view(-1, len(LOWER)),
    "the other way round": lambda z: z[:, COLUMNS, ROWS],
}
# What the exporter itself cannot write, or writes wrongly.
UNEXPORTED = {(SCRIPT, "tril_indices"), (SCRIPT, "mask"), (DYNAMO, "masked_select")}

FEATURES = ",".join(f"feature_{number}" for number in range(1, F + 1))
BUILT: dict[str, tuple[dict[str, Callable[..., Tensor]], str, str]] = {
    "einsum": ({"multiply": lambda e: torch.einsum("bfd,bgd->bfg", e, e)}, "dense,sparse", "first"),
    "matmul": ({"multiply": lambda e: e @ e.permute(0, 2, 1)}, "dense,sparse", "first"),
    "features on the last axis": (
        {"build": lambda d, s: torch.cat([d.unsqueeze(1), s], 1).transpose(1, 2), "multiply": lambda e: torch.bmm(e.transpose(1, 2), e)},
        "dense,sparse",
        "first",
    ),
    "concatenated and viewed": ({"build": lambda d, s: torch.cat([d, *s.unbind(1)], 1).view(d.shape[0], -1, D)}, FEATURES, "first"),
    "stacked": ({"build": lambda d, s: torch.stack([d, *s.unbind(1)], 1)}, FEATURES, "first"),
    "dense last": ({"finish": lambda d, p: torch.cat([p, d], 1)}, "dense,sparse", "last"),
    "no dense": ({"finish": lambda d, p: p.relu()}, "dense,sparse", "none"),
    "three blocks": ({"build": lambda d, s: torch.cat([s, s[:, :1]], 1), "finish": lambda d, p: p}, "E", "none"),
    "row 0 of E": ({"build": lambda d, s: torch.cat([s, s.sin()[:, :1]], 1), "finish": lambda d, p: p}, "E", "none"),
    "padded": ({"finish": lambda d, p: torch.cat([d, p, torch.zeros(d.shape[0], 1)], 1)}, "dense,sparse", "first"),
    "more beside": ({"finish": lambda d, p: torch.cat([d.sin(), d, p, d.cos()], 1)}, "dense,sparse", "first"),
    "another beside": ({"finish": lambda d, p: torch.cat([d.sin(), p], 1)}, "dense,sparse", "none"),
}  # fmt: skip


class InnerProducts(torch.nn.Module):
    """PNN (arXiv 1611.00144): pairs gathered, then multiplied."""

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        return (sparse[:, [0, 0, 0, 1, 1, 2]] * sparse[:, [1, 2, 3, 2, 3, 3]]).sum(-1)


class Interactions(torch.nn.Module):
    """Many of them side by side, each on features of its own."""

    def __init__(self, parts: dict[str, torch.nn.Module]) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(parts.values())

    def forward(self, dense: Tensor, sparse: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(dense + number, sparse + number) for number, part in enumerate(self.parts))


Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module", params=USUAL, ids=lambda item: f"{item[0]}{item[1]}")
def found(request: pytest.FixtureRequest) -> Found:
    """Form -> attributes of the node it has become, all of them exported, fused and verified at once."""
    exporter: tuple[str, int] = request.param
    forms: dict[str, torch.nn.Module] = {name: Interaction(select) for name, select in SELECTIONS.items()}
    forms.update((name, Interaction(by_index, **parts)) for name, (parts, _, _) in BUILT.items())
    forms["PNN"] = InnerProducts()
    forms = {name: form for name, form in forms.items() if (exporter[0], name) not in UNEXPORTED}
    result = onnx_fuse.fuse(exported(Interactions(forms), INPUTS, AXES, *exporter))
    assert result.report.fused == {NAME: len(forms)}, [miss.reason for miss in result.report.near_misses]
    # Fused nodes stand in the order of the forms.
    nodes = [node for node in result.model.graph.node if node.op_type == NAME]
    assert "MatMul" not in helpers.operators(result.model)
    return dict(zip(forms, map(attributes, nodes), strict=True))


@pytest.mark.parametrize("name", SELECTIONS)
def test_every_exported_selection_is_fused(name: str, found: Found) -> None:
    if name not in found:
        pytest.skip("the exporter does not write it")
    upper = name in ("triu_indices", "columns sliced")
    assert (found[name]["triangle"], found[name]["self_interaction"]) == ("upper" if upper else "lower", 0)
    assert (found[name]["inputs"], found[name]["concat_dense"]) == ("dense,sparse", "first")


@pytest.mark.parametrize("name", BUILT)
def test_what_the_features_are_built_of_and_lead_to(name: str, found: Found) -> None:
    _, inputs, dense = BUILT[name]
    assert (found[name]["inputs"], found[name]["concat_dense"], found[name]["triangle"]) == (inputs, dense, "lower")


def test_inner_products_of_gathered_pairs(found: Found) -> None:
    assert (found["PNN"]["triangle"], found["PNN"]["inputs"]) == ("upper", "E")


@pytest.mark.parametrize("exporter", OPSETS, ids=lambda item: f"{item[0]}{item[1]}")
def test_dlrm_in_every_opset(exporter: tuple[str, int]) -> None:
    inputs = {"dense": torch.randn(3, 13), "ids": torch.randint(0, 50, (3, 3))}
    model = exported(_dlrm(), inputs, {name: {0: "B"} for name in inputs}, *exporter)
    fused_model, node = fused(model)
    assert attributes(node)["inputs"] == "feature_1,feature_2,feature_3,feature_4"
    assert "MatMul" not in helpers.operators(fused_model)


_DLRM: list[DLRM] = []


def _dlrm() -> DLRM:
    if not _DLRM:
        torch.manual_seed(3)
        _DLRM.append(DLRM())
    return _DLRM[0]


@pytest.mark.parametrize(("triangle", "diagonal"), [("lower", True), ("upper", False)])
def test_the_reference_model(triangle: Any, diagonal: bool) -> None:
    """The upper triangle with the dense feature first is torchrec's InteractionArch."""
    model = exported(DotInteraction(F, triangle, diagonal), INPUTS, AXES, SCRIPT, 17)
    made, node = fused(model)
    found = attributes(node)
    assert (found["triangle"], found["self_interaction"], found["concat_dense"]) == (triangle, int(diagonal), "first")
    given = helpers.feeds(model, B=4)
    features = np.concatenate([given["dense"][:, None], given["sparse"]], axis=1)
    np.testing.assert_allclose(
        helpers.run(made, given)[0], reference(features, triangle, int(diagonal), "first"), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("features", [65, 200])
def test_indices_in_external_data(features: int, tmp_path: Path) -> None:
    """torch.onnx.export puts index lists of this length into external data."""
    rows, columns = np.tril_indices(features, -1)
    model = helpers.model(
        f"(float[B,{features},4] e) => (float[B,P] y) {{ t = Transpose <perm = [0, 2, 1]> (e)  z = MatMul(e, t)"
        "  zt = Transpose <perm = [1, 2, 0]> (z)  g = GatherND(zt, pairs)  y = Transpose <perm = [1, 0]> (g) }",
        weights={"pairs": np.stack([rows, columns], axis=1)},
    )
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0)
    assert fused(tmp_path / "model.onnx")[1].input == ["e"]


@pytest.mark.parametrize("count", [64, 200])
def test_many_features(count: int) -> None:
    """What is absorbed is followed, not matched input by input: there is no limit to the number of features."""
    builder = helpers.Builder(**{f"x{number}": ("B", 4) for number in range(count)})
    axis = builder.constant(1)
    rows = [builder.node("Unsqueeze", f"x{number}", axis) for number in range(count)]
    e = builder.node("Concat", *rows, axis=1)
    z = builder.node("MatMul", e, builder.node("Transpose", e, perm=[0, 2, 1]))
    flat = builder.node("Reshape", z, builder.constant(0, -1))
    i, j = np.tril_indices(count, -1)
    out = builder.node("Gather", flat, builder.array(i * count + j), axis=1)
    model, node = fused(builder.model(builder.node("Concat", "x0", out, axis=1)))
    assert len(node.input) == count
    assert helpers.operators(model) == [NAME]


# -- written out -------------------------------------------------------------------------------------------------------


def selecting(
    text: str, *, weights: dict[str, Array] | None = None, inputs: str = f"float[B,{F},{D}] e", opset: int = 17
) -> ModelProto:
    """A model that makes z from e, and y from z as the text says."""
    held = {"flat": np.array([0, F * F]), **(weights or {})}
    held = {name: array for name, array in held.items() if name in text}
    product = "" if "z =" in text else "t = Transpose <perm = [0, 2, 1]> (e)  z = MatMul(e, t)"
    kind = "float16" if "float16" in inputs else "float"
    model = helpers.model(f"({inputs}) => ({kind}[B,P] y) {{ {product} {text} }}", opset=opset, weights=held)
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return model


def places(pairs: list[tuple[int, int]]) -> Array:
    return np.array([i * F + j for i, j in pairs])


def gathered(pairs: list[tuple[int, int]], **options: Any) -> ModelProto:
    text = "f = Reshape(z, flat)  y = Gather <axis = 1> (f, pick)"
    return selecting(text, weights={"pick": places(pairs)}, **options)


ORDERS: dict[str, tuple[list[tuple[int, int]], str, int]] = {
    "lower": (LOWER, "lower", 0),
    "lower with the diagonal": (LOWER_WITH, "lower", 1),
    "upper": (UPPER, "upper", 0),
    "upper with the diagonal": (sorted((j, i) for i, j in LOWER_WITH), "upper", 1),
    "lower by columns": (sorted(LOWER, key=lambda pair: pair[::-1]), "upper", 0),
    "some pairs turned": ([pair if sum(pair) % 2 else pair[::-1] for pair in LOWER], "lower", 0),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_is_read_from_the_indices(name: str) -> None:
    pairs, triangle, diagonal = ORDERS[name]
    _, node = fused(gathered(pairs))
    found = attributes(node)
    assert (found["triangle"], found["self_interaction"], found["inputs"]) == (triangle, diagonal, "E")


SWAPPED = [LOWER[1], LOWER[0], *LOWER[2:]]
REFUSED: dict[str, tuple[list[tuple[int, int]], str]] = {
    "two pairs swapped": (
        SWAPPED,
        "the products are in the order of neither triangle: number 0 is of features (2, 0), "
        "lower has (1, 0) there, upper (0, 1)",
    ),
    "a pair missing": (LOWER[:-1], "9 products are selected, a triangle of 5 features has 10, without the diagonal"),
    "a pair twice": ([*LOWER[:-1], LOWER[0]], "in the order of neither triangle: number 9 is of features (1, 0)"),
    "the diagonal alone": ([(i, i) for i in range(F)], "5 products are selected, a triangle of 5 features has 15"),
    "a square": (list(itertools.product(range(F), range(F))), "25 products are selected"),
    "one with itself": ([*LOWER, (2, 2)], "11 products are selected, a triangle of 5 features has 15, the diagonal included"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_orders_and_subsets_are_refused(name: str) -> None:
    pairs, sentence = REFUSED[name]
    (reason,) = refused(gathered(pairs))
    assert sentence in reason


MASKED = {
    "compress": ("f = Reshape(z, flat)  y = Compress <axis = 1> (f, keep)", {"keep": MASK.numpy().reshape(-1)}),
    "negative indices": ("f = Reshape(z, flat)  y = Gather <axis = -1> (f, pick)", {"pick": places(LOWER) - F * F}),
    "batched GatherND": (
        "s = Shape <start = 0, end = 1> (e)  t2 = Concat <axis = 0> (s, tail)  x = Expand(pairs, t2)"
        "  y = GatherND <batch_dims = 1> (z, x)",
        {"pairs": np.array([LOWER]), "tail": np.array([1, 1])},
    ),
    "two steps": (
        "f = Reshape(z, flat)  g = Gather <axis = 1> (f, first)  y = Gather <axis = 1> (g, then)",
        {"first": places(LOWER)[::-1].copy(), "then": np.arange(len(LOWER))[::-1].copy()},
    ),
    "reversed twice": (
        "f = Reshape(z, flat)  g = Gather <axis = 1> (f, first)  y = Slice(g, last, start, one, back)",
        {"first": places(LOWER)[::-1].copy(), "last": np.array([-1]), "start": np.array([-(1 << 62)]), "one": np.array([1]), "back": np.array([-1])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKED)
def test_other_ways_of_picking(name: str) -> None:
    text, weights = MASKED[name]
    _, node = fused(selecting(text, weights=weights))
    assert attributes(node)["triangle"] == "lower"


UNPROVEN: dict[str, tuple[str, dict[str, Array], str, list[str]]] = {
    "indices that are an input": ("f = Reshape(z, flat)  y = Gather <axis = 1> (f, pick)", {}, "int64[P] pick", []),
    "another factor": (
        "t = Transpose <perm = [0, 2, 1]> (o)  z = MatMul(e, t)  f = Reshape(z, flat)  y = Gather <axis = 1> (f, pick)",
        {"pick": places(LOWER)},
        f"float[B,{F},{D}] o",
        ["t is not e transposed"],
    ),
    "a weight between": (
        "w = MatMul(e, weight)  t = Transpose <perm = [0, 2, 1]> (e)  z = MatMul(w, t)  f = Reshape(z, flat)"
        "  y = Gather <axis = 1> (f, pick)",
        {"pick": places(LOWER), "weight": np.eye(D, dtype=np.float32)},
        "",
        ["t is not w transposed"],
    ),
    "only the first of the batch": (
        "f = Reshape(z, flat)  y = GatherElements <axis = 1> (f, pick)", {"pick": places(LOWER)[None]}, "", [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNPROVEN)
def test_what_cannot_be_proven_is_refused(name: str) -> None:
    text, weights, more, reasons = UNPROVEN[name]
    inputs = ", ".join(filter(None, (f"float[B,{F},{D}] e", more)))
    assert refused(selecting(text, weights=weights, inputs=inputs)) == reasons


def test_products_that_something_else_reads_stay() -> None:
    model = gathered(LOWER)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["B", F, F]))
    assert refused(model) == ["its output z is a graph output"]


def test_the_width_must_be_known() -> None:
    assert refused(gathered(LOWER, inputs=f"float[B,{F},N] e")) == ["the width of a feature is N, it must be known"]


def test_a_batch_that_is_merged_with_the_pairs_stays() -> None:
    text = "f = Reshape(z, line)  y0 = Gather <axis = 0> (f, pick)  y = Reshape(y0, out)"
    weights = {"line": np.array([-1]), "pick": places(LOWER), "out": np.array([1, -1])}
    assert refused(selecting(text, weights=weights)) == []


@pytest.mark.parametrize("opset", [13, 18])
def test_float16(opset: int) -> None:
    _, node = fused(gathered(LOWER, inputs=f"float16[B,{F},{D}] e", opset=opset))
    assert attributes(node)["triangle"] == "lower"


class Bags(torch.nn.Module):
    """Features of EmbeddingBag, as in facebookresearch/dlrm."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = torch.nn.ModuleList(torch.nn.EmbeddingBag(7, D, mode="sum") for _ in range(F - 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        dense = dense.relu()
        e = torch.stack([dense, *(bag(ids[:, number]) for number, bag in enumerate(self.bags))], 1)
        return torch.cat([dense, by_index(e @ e.transpose(1, 2))], 1)


def test_features_whose_batch_the_exporter_does_not_know() -> None:
    """The script exporter writes an EmbeddingBag as a Loop, whose result has some batch; Concat says it is that of the others."""
    inputs = {"dense": torch.randn(3, D), "ids": torch.randint(0, 7, (3, F - 1, 2))}
    _, node = fused(exported(Bags(), inputs, {name: {0: "B"} for name in inputs}, SCRIPT, 17))
    assert (attributes(node)["inputs"], attributes(node)["concat_dense"]) == (FEATURES, "first")


# -- the body ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("triangle", ["lower", "upper"])
@pytest.mark.parametrize("diagonal", [0, 1])
@pytest.mark.parametrize("dense", ["none", "first", "last"])
@pytest.mark.parametrize("inputs", ["E", "dense,sparse", "features"])
def test_the_body_against_numpy(triangle: str, diagonal: int, dense: str, inputs: str) -> None:
    from onnx_fuse.patterns.dot_interaction import InteractionTritonFast

    for count, opset, dtype in ((2, 13, np.float32), (5, 18, np.float16), (9, 23, np.float32)):
        features = np.random.default_rng(count).standard_normal((3, count, D)).astype(dtype)
        given = {
            "E": {"E": features},
            "dense,sparse": {"dense": features[:, 0], "sparse": features[:, 1:]},
            "features": {f"feature_{number + 1}": features[:, number] for number in range(count)},
        }[inputs]
        chosen = {"triangle": triangle, "self_interaction": diagonal, "concat_dense": dense}
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        node = InteractionTritonFast.make_node({name: name for name in given}, {"output": "y"}, chosen, "n")
        function = InteractionTritonFast.make_function(list(given), ["output"], chosen, {"": opset}, kind)
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info(name, kind, array.shape) for name, array in given.items()],
            [helper.make_tensor_value_info("y", kind, None)],
        )
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("gr.ml.infra", 1)]
        model = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)
        got = helpers.run(model, {name: np.ascontiguousarray(array) for name, array in given.items()})[0]
        assert got.dtype == dtype
        tolerance = 1e-5 if dtype == np.float32 else 2e-3
        want = reference(features, triangle, diagonal, dense)
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def test_an_empty_batch() -> None:
    model, _ = fused(selecting("f = Flatten(z)  y = Gather <axis = 1> (f, pick)", weights={"pick": places(LOWER)}))
    assert helpers.run(model, {"e": np.empty((0, F, D), np.float32)})[0].shape == (0, len(LOWER))


# -- features of which only the first is known -------------------------------------------------------------------------

# The bag of an EmbeddingBag is a loop over sequences, whose shape nobody knows.
JOINED = """
    sequence = SequenceConstruct(bag)
    looked_up = ConcatFromSequence <axis = 0> (sequence)
    CAT
    e = Reshape(cat, whole)
    t = Transpose <perm = [0, 2, 1]> (e)
    z = MatMul(e, t)
    f = Reshape(z, flat)
    p = Gather <axis = 1> (f, pick)
    y = Concat <axis = 1> (dense, p)"""


def joined(cat: str, dense: str = "float[3,8] dense") -> ModelProto:
    weights = {"whole": np.array([3, F, D]), "flat": np.array([3, F * F]), "pick": places(LOWER)}
    text = JOINED.replace("CAT", cat)
    return helpers.model(f"({dense}, float[3,32] bag, float[3,8] x) => (float[3,P] y) {{ {text} }}", weights=weights)


@pytest.mark.parametrize(
    "cat",
    ["cat = Concat <axis = 1> (dense, looked_up)", "two = Concat <axis = -1> (dense, looked_up)  cat = Identity(two)"],
)
def test_the_dense_feature_is_found_before_what_nobody_knows(cat: str) -> None:
    _, node = fused(joined(cat))
    assert (attributes(node)["concat_dense"], attributes(node)["inputs"]) == ("first", "E")


@pytest.mark.parametrize(
    "cat",
    [
        "cat = Concat <axis = 1> (looked_up, dense)",
        "cat = Concat <axis = 1> (x, looked_up)",
        "dt = Relu(dense)  cat = Concat <axis = 1> (dt, looked_up)",
    ],
    ids=["last", "another", "changed"],
)
def test_what_is_not_the_first_of_them_stays_beside(cat: str) -> None:
    result = onnx_fuse.fuse(joined(cat), fusions=[NAME])
    node = next(node for node in result.model.graph.node if node.op_type == NAME)
    assert attributes(node)["concat_dense"] == "none"


# -- pairs that are concatenated ---------------------------------------------------------------------------------------

ROWS_OF = "  ".join(f"r{number} = Reshape(x{number}, row)" for number in range(4))


def pairs(left: str, right: str, end: str = "y = ReduceSum <keepdims = 0> (m, last)", axis: int = 1) -> ModelProto:
    """PNN as DeepCTR writes it: the features of all pairs side by side, twice."""
    inputs = ", ".join(f"float[B,8] x{number}" for number in range(4))
    text = f"{ROWS_OF} p = Concat <axis = {axis}> ({left})  q = Concat <axis = {axis}> ({right})  m = Mul(p, q)  {end}"
    weights = {"row": np.array([0, 1, 8]), "last": np.array([-1])}
    return helpers.model(f"({inputs}) => (float[B,k] y) {{ {text} }}", weights=weights)


@pytest.mark.parametrize(
    ("left", "right", "triangle"),
    [
        ("r0, r0, r0, r1, r1, r2", "r1, r2, r3, r2, r3, r3", "upper"),
        ("r1, r2, r2, r3, r3, r3", "r0, r0, r1, r0, r1, r2", "lower"),
        ("r0, r1, r0", "r1, r0, r0", None),
    ],
)
def test_pairs_of_concatenated_rows(left: str, right: str, triangle: str | None) -> None:
    model = pairs(left, right)
    if triangle is None:
        assert refused(model)
        return
    made, node = fused(model)
    assert attributes(node)["triangle"] == triangle
    assert "Mul" not in helpers.operators(made)
    for sizes in ({"B": 1}, {"B": 4}):
        helpers.assert_same_results(model, made, tolerance=1e-4, **sizes)


@pytest.mark.parametrize(
    ("left", "right", "axis"),
    [("r0, r1, r2", "r1, r2, r2", 1), ("r0, r0, r1", "r1, r2, r2", 2), ("x0, x0, x1", "x1, x2, x2", 1)],
    ids=["a pair with itself", "along the width", "rows of no axis"],
)
def test_what_is_no_concatenation_of_pairs(left: str, right: str, axis: int) -> None:
    end = "y = Identity(m)" if axis == 2 or "x0" in left else "y = ReduceSum <keepdims = 0> (m, last)"
    refused(pairs(left, right, end, axis))
