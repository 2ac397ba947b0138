"""HSTUHierarchicalAttention: it fires on every exported form, refuses its relatives, and computes the same."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

import onnx_fuse
from examples.models import hstu
from onnx_fuse.patterns import hstu_attention
from onnx_fuse.patterns.hstu_attention import HSTUHierarchicalAttention
from tests import helpers
from tests.helpers import Array
from tests.models.torch_export import EVERY_EXPORT, EXPORTERS, Source, sampled

NAME = "HSTUHierarchicalAttention"
RANDOM = np.random.default_rng(3)
HIDDEN, HEADS, SIZE, VALUE, LONGEST = 16, 2, 4, 8, 40
WIDTH = HEADS * VALUE
SLOW_SAMPLE = ("heads_side_by_side", "divided_at_the_end", "masked_before_silu")

# -- exported forms ---------------------------------------------------------------------------------------------------------


class Form(nn.Module):
    """One way to write HSTU attention: a function (self, x [B, N, HIDDEN], mask [B, N, N] bool, lengths [B]) -> y."""

    def __init__(self, name: str, heads: int = HEADS) -> None:
        super().__init__()
        self.name, self.heads = name, heads
        self.uvqk = nn.Linear(HIDDEN, 2 * heads * (SIZE + VALUE))
        self.gamma = nn.Parameter(1 + 0.2 * torch.randn(heads * VALUE))
        self.beta = nn.Parameter(0.2 * torch.randn(heads * VALUE))
        self.bias = nn.Parameter(torch.randn(1, heads, LONGEST, LONGEST))

    def forward(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return FORMS[self.name][0](self, x, mask, lengths)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u [B, N, h*dv], and q, k, v as [B, N, h*d]."""
        wide, narrow = self.heads * VALUE, self.heads * SIZE
        u, v, q, k = torch.split(self.uvqk(x), [wide, wide, narrow, narrow], dim=-1)
        return u, q, k, v

    def in_heads(self, *values: Tensor) -> list[Tensor]:
        return [item.view(*item.shape[:2], self.heads, -1).transpose(1, 2) for item in values]

    def merged(self, value: Tensor) -> Tensor:
        return value.transpose(1, 2).flatten(2)

    def norm(self, value: Tensor) -> Tensor:
        return F.layer_norm(value, (self.heads * VALUE,), self.gamma, self.beta, 1e-6)


Write = Callable[[Form, Tensor, Tensor, Tensor], Tensor]
FORMS: dict[str, tuple[Write, dict[str, Any]]] = {}


def form(**expected: Any) -> Callable[[Write], Write]:
    """Registers a form with what its fused node must have: attributes, and `inputs`."""

    def register(write: Write) -> Write:
        FORMS[write.__name__] = (write, expected)
        return write

    return register


@form(alpha=SIZE**-0.5, norm_length=64.0, bias_order="inside_alpha", inputs="q,k,v,bias,mask,u,gamma,beta", causal=0)
def heads_side_by_side(self: Form, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """NVIDIA's: u, v, q, k of each head next to each other; the bias is scaled with the scores."""
    batch, length, _ = x.shape
    four = F.silu(self.uvqk(x)).view(batch, length, HEADS, 2 * (SIZE + VALUE))
    u, v, q, k = torch.split(four, [VALUE, VALUE, SIZE, SIZE], dim=-1)
    scores = q.transpose(1, 2) @ k.transpose(1, 2).transpose(-1, -2) + self.bias[:, :, :length, :length]
    weights = (F.silu(scores * SIZE**-0.5) / 64).masked_fill(~mask[:, None], 0.0)
    return self.norm(self.merged(weights @ v.transpose(1, 2))) * u.reshape(batch, length, WIDTH)


@form(alpha=0.5, norm_length=0.0, gate_activation="sigmoid", inputs="q,k,v,u,gamma,beta", causal=1)
def batch_matmul(self: Form, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """Batch and heads in one axis."""
    batch, length, _ = x.shape
    u, q, k, v = self.split(x)
    q, k, v = (item.reshape(batch * HEADS, length, -1) for item in self.in_heads(q, k, v))
    weights = F.silu(torch.bmm(q, k.transpose(1, 2)) * 0.5) / length
    weights = weights * torch.tril(torch.ones(length, length))
    merged = torch.bmm(weights, v).view(batch, HEADS, length, VALUE).transpose(1, 2).reshape(batch, length, WIDTH)
    return self.norm(merged) * torch.sigmoid(u)


@form(num_heads=1, norm_length=0.0, gate_activation="silu", inputs="q,k,v,mask,u,gamma,beta", causal=0)
def one_head_in_three_axes(self: Form, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    u, q, k, v = self.split(x)
    weights = torch.where(mask, F.silu(q @ k.transpose(1, 2)), torch.zeros(())) / x.shape[1]
    return self.norm(weights @ v) * F.silu(u)


@form(num_heads=1, norm_length=0.0, inputs="q,k,v,bias,u,gamma,beta", causal=1)
def one_head_in_four_axes(self: Form, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    length = x.shape[1]
    u, q, k, v = self.split(x)
    q, k, v = self.in_heads(q, k, v)
    weights = F.silu(q @ k.transpose(-1, -2) + self.bias[:, :, :length, :length]) / length
    weights = weights * (torch.arange(length)[:, None] >= torch.arange(length)[None, :])
    return self.norm(self.merged(weights @ v)) * u


@form(alpha=0.5, norm_length=1.0, norm="none", inputs="q,k,v,mask,scale,u", causal=0)
def divided_by_each_length(self: Form, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """A scale on q, SiLU in two operators, and a divisor for each sequence."""
    u, q, k, v = self.split(x)
    q, k, v = self.in_heads(q * 0.5, k, v)
    scores = q @ k.transpose(-1, -2)
    weights = scores * torch.sigmoid(scores) / lengths.float().view(-1, 1, 1, 1)
    return self.merged((weights * mask[:, None].float()) @ v) * u


@form(norm_length=0.0, norm="layer", gate_activation="silu", inputs="q,k,v,mask,u", causal=1)
def divided_at_the_end(self: Form, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """1/N after the product with v, three masks, and the norm in small operators."""
    length = x.shape[1]
    u, q, k, v = self.split(x)
    q, k, v = self.in_heads(q, k, v)
    present = torch.arange(length)[None, :] < lengths[:, None]
    weights = F.silu(q @ k.transpose(-1, -2)) * (mask & present[:, None, :])[:, None]
    weights = weights * torch.tril(torch.ones(length, length, dtype=torch.bool))
    merged = self.merged(weights @ v / length)
    centred = merged - merged.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * F.silu(u)


@form(norm_length=0.0, norm="group", inputs="q,k,v,u,gamma,beta", causal=1)
def norm_of_each_head(self: Form, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """One scale and shift of [dv] for all heads; what the mask drops is told."""
    length = x.shape[1]
    u, q, k, v = self.split(x)
    q, k, v = self.in_heads(q, k, v)
    future = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
    weights = (F.silu(q @ k.transpose(-1, -2)) / length).masked_fill(future, 0.0)
    normed = F.layer_norm((weights @ v).transpose(1, 2), (VALUE,), self.gamma[:VALUE], self.beta[:VALUE], 1e-6)
    return normed.reshape(*x.shape[:2], WIDTH) * u


@form(norm_length=float(LONGEST), norm="group", inputs="q,k,v,u,gamma,beta", causal=1)
def group_norm_of_flat_rows(self: Form, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """GroupNorm of [B*N, h*dv], with a scale and a shift of all of it."""
    length = x.shape[1]
    u, q, k, v = self.split(x)
    q, k, v = self.in_heads(q, k, v)
    weights = F.silu(q @ k.transpose(-1, -2)) / LONGEST * torch.tril(torch.ones(1, 1, length, length))
    rows = self.merged(weights @ v).reshape(-1, WIDTH)
    return F.group_norm(rows, HEADS, self.gamma, self.beta, 1e-6).view(x.shape[0], length, WIDTH) * u


@form(alpha=SIZE**-0.5, norm_length=float(LONGEST), inputs="q,k,v,bias,mask,u,gamma,beta", causal=1)
def masked_before_silu(self: Form, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """torch-rechub's: scores of -1e4, of which SiLU is zero; slices instead of a split."""
    batch, length, _ = x.shape
    narrow = HEADS * SIZE
    projected = F.silu(self.uvqk(x))
    q, k = projected[..., :narrow], projected[..., narrow : 2 * narrow]
    u, v = projected[..., 2 * narrow : 2 * narrow + WIDTH], projected[..., 2 * narrow + WIDTH :]
    q, k, v = (item.reshape(batch, length, HEADS, -1).transpose(1, 2) for item in (q, k, v))
    scores = torch.matmul(q, k.transpose(-2, -1)) * SIZE**-0.5 + self.bias[:, :, :length, :length]
    valid = torch.tril(torch.ones(length, length, dtype=torch.bool))[None, None]
    valid = valid & (torch.arange(length)[None, :] < lengths[:, None])[:, None, None]
    weights = F.silu(scores.masked_fill(~valid, -1e4)) / LONGEST
    return self.norm(self.merged(weights @ v)) * u


@form(norm_length=0.0, norm="layer", inputs="q,k,v,mask,lengths,u,gamma,beta", causal=0)
def rows_and_keys_beyond_the_lengths(self: Form, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    length = x.shape[1]
    u, q, k, v = self.split(x)
    q, k, v = self.in_heads(q, k, v)
    present = torch.arange(length)[None, :] < lengths[:, None]
    weights = F.silu(q @ k.transpose(-1, -2)) / length * (mask & present[:, None, :])[:, None]
    return self.norm(self.merged(weights @ v)) * u * present.unsqueeze(-1)


@form(norm_length=0.0, norm="none", inputs="q,k,v,lengths", causal=1)
def rows_beyond_the_lengths(self: Form, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """Causal, so that no row that is kept sees a key beyond the length."""
    length = x.shape[1]
    _, q, k, v = self.split(x)
    q, k, v = self.in_heads(q, k, v)
    weights = F.silu(q @ k.transpose(-1, -2)) / length * torch.tril(torch.ones(length, length))
    return self.merged(weights @ v) * (lengths[:, None] > torch.arange(length)).unsqueeze(-1).float()


class Forms(nn.Module):
    """Forms side by side: one export serves them all."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.forms = nn.ModuleList(Form(name, FORMS[name][1].get("num_heads", HEADS)) for name in names)

    def forward(self, x: Tensor, mask: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        return tuple(form(x, mask, lengths) for form in self.forms)


@functools.cache
def forms(names: tuple[str, ...]) -> Source:
    torch.manual_seed(0)
    inputs = {
        "x": torch.randn(3, 7, HIDDEN),
        "mask": torch.rand(3, 7, 7) > 0.3,
        "lengths": torch.tensor([7, 4, 1]),
    }
    axes = {"x": {0: "B", 1: "N"}, "mask": {0: "B", 1: "N", 2: "N"}, "lengths": {0: "B"}}
    return Source(Forms(names).eval(), inputs, axes, [f"out_{name}" for name in names], LONGEST - 1)


@pytest.mark.parametrize(
    ("exporter", "opset", "dynamic"),
    sampled(
        *((*exporter, dynamic) for exporter in EXPORTERS for dynamic in (False, True)),
        usual={("script", 14, True), ("script", 17, False), ("dynamo", 18, True)},
    ),
)
def test_every_form_fuses(exporter: str, opset: int, dynamic: bool) -> None:
    names = tuple(FORMS) if EVERY_EXPORT or exporter == "script" else SLOW_SAMPLE
    original = forms(names).export(exporter, opset, dynamic=dynamic)
    result = onnx_fuse.fuse(original)
    assert result.report.verification["passed"]
    made = {node.output[0]: node for node in result.model.graph.node}
    for name in names:
        expected = FORMS[name][1]
        node = made[f"out_{name}"]
        assert node.op_type == NAME, name
        found = attributes_of(node)
        wanted = dict(expected)
        if not dynamic and wanted["norm_length"] == 0.0:
            wanted["norm_length"] = 7.0
        assert {key: found[key] for key in wanted} == wanted, name


def attributes_of(node: NodeProto) -> dict[str, Any]:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


@functools.cache
def before_and_after() -> tuple[tuple[str, ...], ModelProto, ModelProto]:
    names = tuple(name for name in FORMS if name != "divided_by_each_length")  # where 0 / 0 is NaN in both
    original = forms(names).export("script", 17)
    return names, original, onnx_fuse.fuse(original, verify=False).model


@pytest.mark.parametrize("masked", ["nothing", "rows", "everything"])
@pytest.mark.parametrize(("lengths", "length"), [([0, 6, 3], 6), ([1], 1), ([0], 2)])
def test_forms_agree_on_odd_masks_and_lengths(masked: str, lengths: list[int], length: int) -> None:
    """Empty sequences, single positions, rows and whole sequences without a key."""
    names, original, fused = before_and_after()
    batch = len(lengths)
    mask = np.ones((batch, length, length), dtype=bool)
    mask[:, :: 1 if masked == "everything" else 2] = masked == "nothing"
    x = RANDOM.standard_normal((batch, length, HIDDEN)).astype(np.float32)
    feeds = {"x": x, "mask": mask, "lengths": np.array(lengths)}
    for name, want, got in zip(names, helpers.run(original, feeds), helpers.run(fused, feeds), strict=True):
        # LayerNorm of rows of zeros and tiny numbers magnifies rounding: what is compared is how much it can be magnified.
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3, err_msg=name)


SOURCES: dict[str, Callable[[], Source]] = {}


def source(make: Callable[[], Source]) -> Callable[[], Source]:
    SOURCES[make.__name__] = functools.lru_cache(maxsize=None)(make)
    return SOURCES[make.__name__]


@source
def research() -> Source:
    torch.manual_seed(1)
    inputs = {
        "input_ids": torch.randint(1, 50, (3, 7)),
        "timestamps": torch.randint(0, 10**6, (3, 7)).sort(-1).values,
    }
    axes = {key: {0: "B", 1: "N"} for key in inputs}
    return Source(hstu.ResearchHSTU(50, layers=2).eval(), inputs, axes)


@source
def research_concat() -> Source:
    made = research()
    return Source(hstu.ResearchHSTU(50, layers=2, concat=True).eval(), made.inputs, made.axes)


def ops(**options: Any) -> Source:
    torch.manual_seed(2)
    inputs = {"x": torch.randn(3, 7, 32), "lengths": torch.tensor([7, 5, 3]), "candidates": torch.tensor([2, 1, 3])}
    axes = {"x": {0: "B", 1: "N"}, "lengths": {0: "B"}, "candidates": {0: "B"}}
    return Source(hstu.OpsHSTU(layers=2, **options).eval(), inputs, axes)


@source
def ops_layer_norm() -> Source:
    return ops(window=3)


@source
def ops_group_norm() -> Source:
    return ops(group_norm=True)


PARTS = {
    "research": ("bias", "mask", "norm", "gate"),
    "research_concat": ("bias", "mask", "norm"),
    "ops_layer_norm": ("mask", "norm", "gate"),
    "ops_group_norm": ("mask", "norm", "gate"),
}


@pytest.mark.parametrize(
    ("name", "exporter", "opset"),
    sampled(
        *((name, *exporter) for name in PARTS for exporter in EXPORTERS),
        usual={(name, "script", 14 + 3 * (place % 2)) for place, name in enumerate(PARTS)}
        | {("ops_group_norm", "dynamo", 23)},
    ),
)
def test_models_fuse(name: str, exporter: str, opset: int) -> None:
    made = SOURCES[name]()
    result = onnx_fuse.fuse(made.export(exporter, opset))
    assert result.report.verification["passed"]
    assert [match.parts for match in result.report.matches if match.operator == NAME] == [PARTS[name]] * 2
    assert not [miss for miss in result.report.near_misses if miss.fusion == NAME and "also read" not in miss.reason]
    with torch.no_grad():
        wanted = made.module(*made.inputs.values()).numpy()
    found = helpers.run(result.model, {key: value.numpy() for key, value in made.inputs.items()})[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


# -- the body ---------------------------------------------------------------------------------------------------------------


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def normed(x: Array, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)


def reference(inputs: dict[str, Array], attributes: dict[str, Any]) -> Array:
    """The operator in float64, position by position."""
    wide = {name: array.astype(np.float64) for name, array in inputs.items()}
    heads, (batch, length, width) = attributes["num_heads"], inputs["v"].shape
    q, k, v = (wide[name].reshape(batch, length, heads, wide[name].shape[-1] // heads) for name in "qkv")
    bias = np.broadcast_to(wide.get("bias", np.zeros(())), (batch, heads, length, length))
    mask = np.broadcast_to(wide.get("mask", np.ones(())), (batch, heads, length, length))
    scale = np.broadcast_to(wide.get("scale", np.ones(())), (batch, 1, length, 1))
    lengths = inputs.get("lengths", np.full(batch, length))
    divisor = 1.0 if "scale" in inputs else attributes["norm_length"] or length
    attended = np.zeros((batch, length, heads, width // heads))
    for b, i, head in np.ndindex(batch, length, heads):
        for j in range(min(length, lengths[b])):
            if attributes["causal"] and j > i:
                continue
            score = q[b, i, head] @ k[b, j, head]
            inside = attributes["bias_order"] == "inside_alpha"
            added = bias[b, head, i, j]
            score = attributes["alpha"] * (score + added) if inside else attributes["alpha"] * score + added
            attended[b, i, head] += silu(score) * mask[b, head, i, j] * scale[b, 0, i, 0] / divisor * v[b, j, head]
    if attributes["norm"] == "group":
        attended = normed(attended, attributes["epsilon"])
        attended = attended * wide.get("gamma", np.ones(1)).reshape(-1 if "gamma" not in wide else heads, -1)
        attended = attended + wide.get("beta", np.zeros(1)).reshape(-1 if "beta" not in wide else heads, -1)
    y = attended.reshape(batch, length, width)
    if attributes["norm"] == "layer":
        y = normed(y, attributes["epsilon"]) * wide.get("gamma", 1.0) + wide.get("beta", 0.0)
    if "u" in wide:
        gate = {"none": lambda x: x, "silu": silu, "sigmoid": lambda x: silu(x) / x}[attributes["gate_activation"]]
        y = y * gate(wide["u"])
    present = np.arange(length)[None, :, None] < lengths[:, None, None]
    return np.where(present, y, 0.0)


ATTRIBUTES = {
    "num_heads": HEADS,
    "alpha": 0.5,
    "bias_order": "outside_alpha",
    "norm_length": 0.0,
    "causal": 0,
    "norm": "none",
    "gate_activation": "none",
    "epsilon": 1e-5,
    "mode": "silu",
    "num_levels": 1,
    "decay": 1.0,
}


def drawn(name: str, batch: int, length: int) -> Array:
    """An input of the operator; the name may say which kind of it: mask_bool, gamma_heads."""
    shapes: dict[str, tuple[int, ...]] = {
        "q": (batch, length, HEADS * SIZE),
        "k": (batch, length, HEADS * SIZE),
        "v": (batch, length, WIDTH),
        "u": (batch, length, WIDTH),
        "bias": (1, HEADS, length, length),
        "mask": (batch, 1, 1, length),
        "mask_bool": (batch, 1, length, length),
        "scale": (batch, 1, length, 1),
        "gamma": (WIDTH,),
        "beta": (WIDTH,),
        "gamma_heads": (HEADS,),
        "beta_heads": (HEADS,),
    }
    if name == "lengths":
        return RANDOM.integers(0, length + 1, batch)
    array = RANDOM.standard_normal(shapes[name])
    return array > 0 if name == "mask_bool" else (array > 0 if name == "mask" else array).astype(np.float32)


def operator_model(inputs: dict[str, Array], attributes: dict[str, Any], opset: int = 17) -> ModelProto:
    """One node of the operator and its body."""
    names = HSTUHierarchicalAttention.present(dict.fromkeys(inputs, "x"))
    dtype = helper.np_dtype_to_tensor_dtype(inputs["q"].dtype)
    node = HSTUHierarchicalAttention.make_node({name: name for name in names}, {"y": "y"}, attributes, "fused")
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(inputs[name].dtype), inputs[name].shape)
        for name in names
    ]
    graph = helper.make_graph([node], "main", values, [helper.make_tensor_value_info("y", dtype, inputs["v"].shape)])
    function = HSTUHierarchicalAttention.make_function(names, ["y"], attributes, {"": opset}, dtype)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("gr.ml.infra", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("bias", {"norm_length": 9.0}),
    ("bias mask", {"bias_order": "inside_alpha", "causal": 1}),
    ("mask_bool u", {"gate_activation": "sigmoid", "norm": "layer"}),
    ("scale u gamma beta", {"gate_activation": "silu", "norm": "layer", "causal": 1}),
    ("u gamma_heads beta_heads", {"norm": "group"}),
    ("u gamma beta lengths", {"norm": "group", "causal": 1}),
    ("gamma lengths mask_bool", {"norm": "layer", "norm_length": 64.0}),
    ("lengths mask bias scale u gamma beta", {"norm": "layer", "gate_activation": "silu"}),
    ("lengths", {"causal": 1}),
]


@pytest.mark.parametrize(("names", "changes"), CASES, ids=[names or "bare" for names, _ in CASES])
@pytest.mark.parametrize(("batch", "length"), [(2, 5), (1, 1), (3, 8)])
def test_body_computes_the_definition(names: str, changes: dict[str, Any], batch: int, length: int) -> None:
    attributes = {**ATTRIBUTES, **changes}
    inputs = {name.split("_")[0]: drawn(name, batch, length) for name in ["q", "k", "v", *names.split()]}
    found = helpers.run(operator_model(inputs, attributes), inputs)[0]
    np.testing.assert_allclose(found, reference(inputs, attributes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ["inside_alpha", "outside_alpha"])
def test_what_is_masked_may_have_a_bias_of_minus_infinity(order: str) -> None:
    attributes = {**ATTRIBUTES, "bias_order": order}
    inputs = {name.split("_")[0]: drawn(name, 2, 5) for name in ("q", "k", "v", "bias", "mask_bool")}
    expected = reference(inputs, attributes)
    lowest = np.broadcast_to(inputs["bias"], (2, HEADS, 5, 5))
    inputs["bias"] = np.where(inputs["mask"], lowest, -np.inf).astype(np.float32)
    found = helpers.run(operator_model(inputs, attributes), inputs)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [13, 18, 23])
@pytest.mark.parametrize(("batch", "length"), [(0, 3), (2, 0)])
def test_body_takes_empty_axes(opset: int, batch: int, length: int) -> None:
    attributes = {**ATTRIBUTES, "norm": "group", "causal": 1}
    inputs = {name: drawn(name, batch, length) for name in ("q", "k", "v", "mask_bool", "u", "lengths", "gamma")}
    inputs["mask"] = inputs.pop("mask_bool")
    assert helpers.run(operator_model(inputs, attributes, opset), inputs)[0].shape == (batch, length, WIDTH)


def test_float16_is_divided_after_the_sum() -> None:
    """Weights of 1/2048 are subnormal in float16; their sum is not."""
    length = 2048
    inputs = {name: 0.3 * drawn(name, 1, length) for name in "qkv"}
    half = {name: array.astype(np.float16) for name, array in inputs.items()}
    found = helpers.run(operator_model(half, ATTRIBUTES), half)[0]
    wanted = helpers.run(operator_model(inputs, ATTRIBUTES), inputs)[0]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32), wanted, rtol=5e-3, atol=5e-3 * np.abs(wanted).max())


# -- near relatives ---------------------------------------------------------------------------------------------------------

STEPS = {
    "query": "q4 = Reshape(q, heads)\nqh = Transpose <perm = [0, 2, 1, 3]> (q4)",
    "key": "k4 = Reshape(k, heads)\nkt = Transpose <perm = [0, 2, 3, 1]> (k4)",
    "value": "v4 = Reshape(v, heads)\nvh = Transpose <perm = [0, 2, 1, 3]> (v4)",
    "product": "product = MatMul(qh, kt)",
    "scale": "scaled = Mul({}, half)",
    "score_mask": "",
    "activation": "gate = Sigmoid({})\nactive = Mul({}, gate)",
    "length": "divided = Mul({}, eighth)",
    "mask": "masked = Mul({}, mask)",
    "context": "context = MatMul({}, vh)",
    "merge": "moved = Transpose <perm = [0, 2, 1, 3]> ({})\nmerged = Reshape(moved, flat)",
    "norm": "normed = LayerNormalization <axis = -1> ({}, gamma, beta)",
    "gate": "out = Mul({}, u)",
}
INPUTS = {
    **dict.fromkeys("qkvu", "float[B,N,8]"),
    "mask": "float[B,1,N,N]",
    "keep": "bool[B,1,1,N]",
    "row": "float[B,N,1]",
    "head": "float[1,2,1,1]",
    "one": "float[B,1,1,1]",
    "other": "float[B,N,8]",
    "mask_3": "float[3,1,1,1]",
}
CONSTANTS = (
    "<int64[4] heads = {0, 0, 2, 4}, int64[3] flat = {0, 0, 8}, float half = {0.5}, float eighth = {0.125}, float zero = {0}, "
    "float minus = {-0.125}, float two = {2}, float small = {-1}, float low = {-10000}, "
    "float[8] gamma = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] beta = {8, 7, 6, 5, 4, 3, 2, 1}, "
    "float[4] gamma_4 = {1, 2, 3, 4}, float[4] beta_4 = {4, 3, 2, 1}, int64[3] outer = {2, 8, -1}>"
)


def attention(outputs: str = "", inputs: dict[str, str] | None = None, **steps: str) -> ModelProto:
    """HSTU attention as text, with other steps; {} is the result of the step before."""
    assert steps.keys() <= STEPS.keys()
    lines: list[str] = []
    value = ""
    for text in (STEPS | steps).values():
        if text:
            lines.append(text.replace("{}", value))
            value = text.splitlines()[-1].split("=")[0].strip()
    declared = ", ".join(f"{kind} {name}" for name, kind in {**INPUTS, **(inputs or {})}.items())
    body = "\n".join(lines)
    return helpers.model(f"({declared}) => (float[B,N,8] {value}{outputs}) {CONSTANTS} {{ {body} }}")


def in_float16(made: ModelProto) -> ModelProto:
    for value in (*made.graph.input, *made.graph.output):
        kind = value.type.tensor_type
        kind.elem_type = TensorProto.FLOAT16 if kind.elem_type == TensorProto.FLOAT else kind.elem_type
    for tensor in made.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return made


def fused_node(made: ModelProto) -> NodeProto | None:
    return next((node for node in made.graph.node if node.op_type == NAME), None)


def test_the_text_form_fuses() -> None:
    original = attention()
    result = onnx_fuse.fuse(original)
    node = fused_node(result.model)
    assert node is not None and len(result.model.graph.node) == 1
    assert attributes_of(node)["norm_length"] == 8.0 and attributes_of(node)["inputs"] == "q,k,v,mask,u,gamma,beta"
    helpers.assert_same_results(original, result.model, B=2, N=5)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("found Softmax", {"activation": "active = Softmax <axis = -1> ({})"}),
    "relu": ("found Relu", {"activation": "active = Relu({})"}),
    "sigmoid alone": ("found Sigmoid", {"activation": "active = Sigmoid({})"}),
    "gelu": ("found Gelu", {"activation": "active = Gelu({})"}),
    "a steeper sigmoid": (
        "attribute alpha is 2, pattern wants 1",
        {"scale": "", "activation": "steep = Mul({}, two)\ngate = Sigmoid(steep)\nactive = Mul({}, gate)"},
    ),
    "scores masked with -1": (
        "masked scores become -1, of which SiLU is not zero",
        {"score_mask": "kept = Where(keep, {}, small)"},
    ),
    "more keys than queries": (
        "there are N queries and M keys",
        {"inputs": {**dict.fromkeys("kv", "float[B,M,8]"), "mask": "float[B,1,N,M]"}},
    ),
    "a divisor for each head": ("divided by something else", {"length": "divided = Div({}, head)"}),
    "two divisors": (
        "found Div once, pattern wants Swish",
        {"length": "once = Div({}, one)\ndivided = Div(once, one)"},
    ),
    "a negative length": ("divided by something else", {"length": "divided = Mul({}, minus)"}),
    "a mask with a batch of its own": (
        "dimension B of qh is B, elsewhere in the match it is 3",
        {"mask": "masked = Mul({}, mask_3)"},
    ),
    "heads merged in another order": (
        "attribute perm is [0, 2, 3, 1]",
        {"merge": "moved = Transpose <perm = [0, 2, 3, 1]> ({})\nmerged = Reshape(moved, flat)"},
    ),
}


@pytest.mark.parametrize("relative", REFUSED)
def test_relatives_are_refused(relative: str) -> None:
    says, steps = REFUSED[relative]
    opset = 20 if relative == "gelu" else 17
    original = attention(norm="", gate="", **steps)
    original.opset_import[0].version = opset
    result = onnx_fuse.fuse(original, verify=False)
    assert fused_node(result.model) is None
    attempt = helpers.attempt(hstu_attention.hstu_attention, original, original.graph.output[0].name)
    told = [miss.reason for miss in result.report.near_misses if miss.fusion == NAME]
    assert any(says in reason for reason in [getattr(attempt, "reason", ""), *told])


LEFT_OUT: dict[str, tuple[str, dict[str, str]]] = {
    "RMSNorm": (
        "none",
        {
            "norm": "square = Mul({}, {})\nmean = ReduceMean <axes = [-1]> (square)\nmore = Add(mean, half)\n"
            "root = Sqrt(more)\nnormed = Div({}, root)"
        },
    ),
    "a norm over positions": (
        "none",
        {
            "norm": "mean = ReduceMean <axes = [1]> ({})\ncentred = Sub({}, mean)\nsquare = Mul(centred, centred)\n"
            "variance = ReduceMean <axes = [1]> (square)\nmore = Add(variance, half)\nroot = Sqrt(more)\n"
            "normed = Div(centred, root)"
        },
    ),
    "a gate of one number a row": ("layer", {"gate": "out = Mul({}, row)"}),
    "a gate made of the norm": ("layer", {"gate": "steep = Mul({}, two)\nopen = Tanh(steep)\nout = Mul({}, open)"}),
    "a sum for a gate": ("layer", {"gate": "out = Add({}, u)"}),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_is_no_part_stays_outside(what: str) -> None:
    norm, steps = LEFT_OUT[what]
    original = attention(**steps)
    result = onnx_fuse.fuse(original)
    node = fused_node(result.model)
    assert (
        node is not None and attributes_of(node)["norm"] == norm and "u" not in attributes_of(node)["inputs"].split(",")
    )
    assert [match.left_out for match in result.report.matches if match.operator == NAME] != [()]
    helpers.assert_same_results(original, result.model, B=2, N=5)


def test_weights_that_are_read_elsewhere_stay() -> None:
    original = attention(outputs=", float[B,2,N,N] masked")
    result = onnx_fuse.fuse(original)
    assert fused_node(result.model) is None
    assert any("masked is a graph output" in miss.reason for miss in result.report.near_misses)


def test_a_float16_model_fuses() -> None:
    original = in_float16(attention())
    result = onnx_fuse.fuse(original)
    node = fused_node(result.model)
    assert node is not None and attributes_of(node)["norm_length"] == 8.0
    helpers.assert_same_results(original, result.model, tolerance=2e-2, B=2, N=5)


@pytest.mark.parametrize(
    ("array", "causal"),
    [
        (np.tril(np.ones((5, 5))), 1),
        (np.tril(np.ones((1, 1, 5, 5))), 1),
        (np.tril(np.ones((5, 5)), -1), 0),
        (np.tril(np.ones((5, 5)), 1), 0),
        (np.triu(np.ones((5, 5))), 0),
        (np.ones((5, 5)), 0),
        (2 * np.tril(np.ones((5, 5))), 0),
    ],
)
def test_a_causal_mask_is_proven(array: Array, causal: int) -> None:
    original = attention(
        inputs={**dict.fromkeys("qkvu", "float[B,5,8]"), "row": "float[B,5,1]"}, mask="masked = Mul({}, lower)"
    )
    original.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), "lower"))
    del original.graph.input[4]
    result = onnx_fuse.fuse(original)
    node = fused_node(result.model)
    assert node is not None and attributes_of(node)["causal"] == causal
    assert ("mask" in attributes_of(node)["inputs"]) != bool(causal)
    helpers.assert_same_results(original, result.model, B=2)


def test_a_triangle_of_one_is_not_causal() -> None:
    """[[1]] is a lower triangle, and keeps everything where it is broadcast."""
    original = attention(mask="masked = Mul({}, corner)")
    original.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 1), np.float32), "corner"))
    result = onnx_fuse.fuse(original)
    node = fused_node(result.model)
    assert node is None or attributes_of(node)["causal"] == 0
    helpers.assert_same_results(original, result.model, B=2, N=5)


def test_a_length_that_is_no_whole_number_is_kept() -> None:
    original = attention(length="divided = Mul({}, odd)")
    original.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1 / 1000.4, np.float32), "odd"))
    node = fused_node(onnx_fuse.fuse(original).model)
    assert node is not None and attributes_of(node)["norm_length"] == pytest.approx(1000.4, rel=1e-6)


@pytest.mark.parametrize("diagonal", [-1, 0, 1])
@pytest.mark.parametrize("kind", ["Trilu", "GreaterOrEqual", "Greater", "LessOrEqual", "Less"])
def test_a_causal_mask_is_proven_at_run_time(kind: str, diagonal: int) -> None:
    """Triangles made from the run-time N: only the one with the diagonal is causal."""
    size = "shape = Shape(q)\nsecond = Gather(shape, first)\n"
    if kind == "Trilu":
        made = (
            size
            + "square = Concat <axis = 0> (second_1, second_1)\nones = ConstantOfShape <value = float[1] {1}> (square)\nlower = Trilu <upper = 0> (ones, diagonal)"
        )
        made = made.replace("square =", "second_1 = Unsqueeze(second, axis_0)\nsquare =")
    else:
        made = size + (
            f"column = Range(start, second, step)\nshifted = Add(column, diagonal)\nrow_ids = Unsqueeze(shifted, axis_1)\n"
            f"allowed = {kind}(row_ids, column)\nlower = Cast <to = 1> (allowed)"
        )
    original = attention(mask=made + "\nmasked = Mul({}, lower)")
    numbers = {"first": 1, "start": 0, "step": 1, "diagonal": diagonal}
    arrays = {name: np.array(number) for name, number in numbers.items()}
    arrays |= {"axis_0": np.array([0]), "axis_1": np.array([1])}
    original.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    result = onnx_fuse.fuse(original)
    node = fused_node(result.model)
    causal = kind in ("Trilu", "GreaterOrEqual") and diagonal == 0
    assert node is not None and attributes_of(node)["causal"] == int(causal)
    helpers.assert_same_results(original, result.model, B=2, N=5)
