"""What the cost model has to know of the plugins: which kernels each launches for a node, over how much, and what they refuse.

It repeats what plugin_csrc/operators/<operator> does; tests hold the two together. A variant that is not in the table of kernels is
passed over, as a plugin passes it over: the next one that takes the node runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto, TensorProto, helper

from onnx_fuse.passes.select.cost_model import Device
from onnx_fuse.passes.select.kernel_table import Kernel, Kernels
from onnx_fuse.passes.select.roofline import Launch
from onnx_fuse.patterns.language.operator import DOMAIN

_LARGEST_HEAD, _MOST_FEATURES, _MOST_TABLES, _MOST_LEVELS, _MOST_WINDOWS = 256, 64, 8, 128, 4
_BLOCKS_OF_INTERACTION = 8  # on a multiprocessor; they stay, and take one tile of samples after the other

ELEMENTS: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
"""Types that plugins compute in, in the words of the kernels' names."""


@dataclass(frozen=True)
class Tensor:
    """A value: its shape, its type (of TensorProto), and the value whose bytes these are, perhaps in another shape."""

    shape: tuple[int, ...]
    dtype: int
    source: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * int(helper.tensor_dtype_to_np_dtype(self.dtype).itemsize)


@dataclass(frozen=True)
class PluginFacts:
    """How a plugin runs a node.

    Attributes:
        launches: of its kernels, in their order; none where the node has no elements.
        refusal: why it has no kernel for the node; None where it has.
    """

    launches: tuple[Launch, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True)
class _Call:
    """A fused node: attributes, inputs and outputs by the operator's names, the word for its type T, and where it runs."""

    attributes: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    element: str
    device: Device
    kernels: Kernels

    def shape(self, name: str) -> tuple[int, ...]:
        return self.inputs[name].shape

    @property
    def bytes_of_one(self) -> int:
        """Of an element of type T."""
        return 4 if self.element == "fp32" else 2

    @property
    def vector(self) -> int:
        """Elements in 16 bytes."""
        return 16 // self.bytes_of_one

    def moved(self, *names: str) -> int:
        """Bytes of those of its inputs and outputs that it has, each tensor once."""
        found = [(self.inputs.get(name) or self.outputs.get(name)) for name in names]
        return sum({item.source: item.bytes for item in found if item is not None}.values())

    def kind(self, name: str) -> str:
        """What an optional input is: "" (absent), "T", "float32" or "bytes"."""
        item = self.inputs.get(name)
        if item is None:
            return ""
        if item.bytes == math.prod(item.shape):
            return "bytes"
        return "T" if ELEMENTS.get(item.dtype) == self.element else "float32"

    def first(self, *names: str) -> Kernel:
        """The first of these variants that there is."""
        return next(self.kernels[name] for name in names if name in self.kernels)

    def holding(self, start: str, size: int, otherwise: str) -> Kernel:
        """The smallest of the variants `start` + number that hold so many columns; `otherwise` where none does."""
        held = [int(end) for name in self.kernels if name.startswith(start) and (end := name[len(start) :]).isdigit()]
        return self.first(*(f"{start}{number}" for number in sorted(held) if size <= number), otherwise)


def plugin_facts(
    node: NodeProto, tensor: Callable[[str], Tensor], device: Device, kernels: Kernels
) -> PluginFacts | None:
    """What is known of the plugin of a fused node; None for an operator that is not ours, or a type that it does not have.

    Args:
        node: the fused node.
        tensor: what is known of a value.
        device: that it runs on.
        kernels: the table for the device (`kernel_table.kernels`).
    """
    facts = _FACTS.get(node.op_type) if node.domain == DOMAIN else None
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}

    def named(what: str, values: Sequence[str]) -> dict[str, Tensor]:
        names = attributes.get(what, b"").decode().split(",")
        return {name: tensor(value) for name, value in zip(names, values, strict=False) if value}

    outputs = named("outputs", node.output)
    element = ELEMENTS.get(next(iter(outputs.values())).dtype) if outputs else None
    if facts is None or element is None:
        return None
    found = facts(_Call(attributes, named("inputs", node.input), outputs, element, device, kernels))
    return PluginFacts(tuple(item for item in found.launches if item.programs), found.refusal)


def _norm_rows(call: _Call, rows: int, width: int, moved: int, *, lengths: bool = False, wide: bool = False) -> Launch:
    """The launch that normalises rows; `wide` where a float32 skip stands beside type T, which is loaded after the rest."""
    start = f"norm_rows.{call.element}."
    is_odd = width % call.vector != 0
    kernel = call.first(start + "any") if is_odd else call.holding(start, width, start + "wide")
    whole = kernel.name.removeprefix(start).isdigit()
    steps = 1 if whole else 1 + math.ceil(width / kernel.tile["BLOCK"])
    serial = steps * (2 if wide else 1) + lengths
    return Launch(kernel, math.ceil(rows / kernel.tile["ROWS"]), moved, serial_loads=serial)


def _skip(call: _Call) -> PluginFacts:
    shape = call.shape("x")
    moved = call.moved("x", "skip", "bias", "gamma", "beta", "output", "residual_sum")
    wide = call.kind("skip") == "float32" and call.element != "fp32"
    return PluginFacts((_norm_rows(call, _rows(shape), shape[-1], moved, wide=wide),))


def _rows(shape: Sequence[int]) -> int:
    return math.prod(shape[:-1]) if shape[-1] else 0


def _swish(call: _Call) -> PluginFacts:
    kernel = call.first(f"fused_swish.{call.element}")
    programs = math.ceil(math.prod(call.shape("x")) / kernel.tile["BLOCK"])
    return PluginFacts((Launch(kernel, programs, call.moved("x", *call.outputs)),))


def _linear_launches(call: _Call, rows: int, inner: int, width: int, read: int, rest: Sequence[str]) -> list[Launch]:
    """A product with what follows it; `read` is what it reads of x, `rest` the names of all other inputs and outputs."""
    has_norm = call.attributes["norm"] != b"none"
    start = f"linear.{call.element}."
    is_aligned = inner % 16 == 0 and width % 16 == 0
    held = 512 if is_aligned and has_norm and 128 < width <= 512 else 128
    kernel = call.first(*([f"{start}h{held}"] if is_aligned else []), start + "any")
    columns = kernel.tile["COLUMNS"]
    programs = math.ceil(rows / kernel.tile["ROWS"]) * math.ceil(width / columns)
    products = 2.0 * rows * inner * width
    if not has_norm or width <= columns:
        return [Launch(kernel, programs, read + call.moved(*rest), products)]
    sums = 4 * rows * width
    first = call.moved(*(name for name in rest if name not in (*_AFTER, *call.outputs)))
    last = call.moved(*(name for name in rest if name in (*_AFTER, *call.outputs)))
    return [
        Launch(kernel, programs, read + first + sums, products),
        _norm_rows(call, rows, width, sums + last),
    ]


_AFTER = ("gamma", "beta")


def _linear(call: _Call) -> PluginFacts:
    inner, width = call.shape("weight")
    rest = ("weight", "bias", *_AFTER, *call.outputs)
    return PluginFacts(
        tuple(_linear_launches(call, _rows((*call.shape("x")[:-1], width)), inner, width, call.moved("x"), rest))
    )


def _extra(call: _Call, bias: str, length: int) -> str | None:
    """The end of the name of a variant that has these kinds of bias and mask as constants; None where there is none."""
    kinds = {bias: call.kind(bias), "mask": call.kind("mask")}
    extra = ".bias" * bool(kinds[bias]) + ".mask" * bool(kinds["mask"])
    if kinds[bias] not in ("", "T") or kinds["mask"] not in ("", "bytes"):
        return None
    return None if extra and (length % 8 or not _is_dense(call, length, bias)) else extra


def _is_dense(call: _Call, length: int, bias: str) -> bool:
    """Whether bias and mask, where they are there, do not broadcast their last axis."""
    return all(call.shape(name)[-1] == length for name in (bias, "mask") if name in call.inputs)


def _heads(call: _Call, start: str, size: int, value_size: int, is_dense: bool) -> list[str]:
    """Names of the variants for heads of these sizes that take every bias and mask, the best first."""
    larger = max(size, value_size)
    held = next(held for held in (32, 64, 128, 256) if larger <= held)
    names = [f"{start}.{call.element}.d{64 if larger <= 64 else 256}.any"]
    if size % 16 == 0 and value_size % 16 == 0 and is_dense:
        names.insert(0, f"{start}.{call.element}.d{held if call.element == 'fp32' else max(held, 64)}")
    return names


def _tiles(kernel: Kernel, queries: int, keys: int, causal: bool, blocks: int) -> tuple[int, int]:
    """(tiles in which every key counts, tiles with the diagonal or the end of the keys), of so many batches and heads."""
    rows, columns = kernel.tile["ROWS"], kernel.tile["COLUMNS"]
    full = rim = 0
    for first in range(0, queries, rows):
        end = min(keys, first + rows) if causal else keys
        whole = min(end, first if causal else end) // columns
        full += whole
        rim += math.ceil(end / columns) - whole
    return full * blocks, rim * blocks


def _attention(call: _Call) -> PluginFacts:
    query, key, value = (call.shape(name) for name in ("query", "key", "value"))
    heads = call.attributes["num_heads"]
    is_split = call.attributes["layout"] == b"BHSD"
    size = query[-1] if is_split else query[-1] // heads
    value_size = value[-1] if is_split else value[-1] // call.attributes["num_key_value_heads"]
    if max(size, value_size) > _LARGEST_HEAD:
        return PluginFacts(refusal=f"heads of {max(size, value_size)} are above {_LARGEST_HEAD}")
    batch, queries, keys = query[0], query[-2], key[-2]
    causal = call.attributes["causal"] != b"none"
    is_dense = _is_dense(call, keys, "attention_bias")
    read = ("query", "key", "value", "attention_bias", "mask")
    rim = ("out_bias", "residual", *_AFTER)
    scored = 2.0 * batch * heads * queries * keys * (size + value_size)
    width = call.shape("out_weight")[1] if "out_weight" in call.inputs else 0
    inner = heads * value_size
    rows = batch * queries
    held = next((held for held in (128, 512) if 0 < width <= held), None)
    projected = call.kernels.get(f"fused_attention_layer_norm.projected.{call.element}.h{held}")
    is_aligned = size % 16 == 0 and value_size % 16 == 0 and width % 16 == 0 and is_dense
    if projected is not None and is_aligned and max(size, value_size) <= 64:
        programs = batch * math.ceil(queries / projected.tile["ROWS"])
        if programs >= call.device.multiprocessors:
            moved = call.moved(*read, "out_weight", *rim, *call.outputs)
            return PluginFacts((Launch(projected, programs, moved, scored + 2.0 * rows * inner * width),))
    extra = _extra(call, "attention_bias", keys)
    names = _heads(call, "fused_attention_layer_norm", size, value_size, is_dense)
    if extra is not None and size == value_size and call.attributes["scale"] > 0:
        whole = f"fused_attention_layer_norm.whole.{call.element}.d{size}{extra}"
        names = [f"{whole}.large", whole, *names]
    kernel = call.first(*names)
    programs = batch * heads * math.ceil(queries / kernel.tile["ROWS"]) if value_size else 0
    tiles = _tiles(kernel, queries, keys, causal and queries == keys, batch * heads)
    has_rim = bool(width) or call.attributes["norm"] != b"none" or any(name in call.inputs for name in rim)
    if not has_rim:
        return PluginFacts((Launch(kernel, programs, call.moved(*read, *call.outputs), scored, tiles=tiles),))
    context = (call.bytes_of_one if width else 4) * rows * inner
    first = Launch(kernel, programs, call.moved(*read) + context, scored, tiles=tiles)
    if width:
        rest = ("out_weight", *rim, *call.outputs)
        return PluginFacts((first, *_linear_launches(call, rows, inner, width, context, rest)))
    return PluginFacts((first, _norm_rows(call, rows, inner, context + call.moved(*rim, *call.outputs))))


def _hstu(call: _Call) -> PluginFacts:
    batch, length, width = call.shape("q")
    heads = call.attributes["num_heads"]
    size, value_size = width // heads, call.shape("v")[-1] // heads
    if max(size, value_size) > _LARGEST_HEAD:
        return PluginFacts(refusal=f"heads of {max(size, value_size)} are above {_LARGEST_HEAD}")
    operator, causal = "hstu_hierarchical_attention", bool(call.attributes["causal"])
    is_dense = _is_dense(call, length, "bias")
    if call.attributes["mode"] == b"silu":
        names = _heads(call, f"{operator}.silu", size, value_size, is_dense)
        extra = _extra(call, "bias", length)
        if extra is not None and size == value_size:
            tiles = f"{operator}.tiles.{call.element}.d{size}{extra}"
            names = [f"{tiles}.large", tiles, *names]
    else:
        start = f"{operator}.level_softmax.{call.element}"
        is_small = max(size, value_size) <= 64 and size % 16 == 0 and value_size % 16 == 0 and is_dense
        names = [*([f"{start}.d64"] if is_small else []), f"{start}.d256.any"]
    kernel = call.first(*names)
    programs = batch * heads * math.ceil(length / kernel.tile["ROWS"]) if value_size else 0
    pairs = length * (length + 1) / 2 if causal else length**2
    products = 2.0 * batch * heads * pairs * (size + value_size)
    tiles_of = _tiles(kernel, length, length, causal, batch * heads)
    if call.attributes["norm"] != b"layer" or heads == 1:
        moved = call.moved(*call.inputs, *call.outputs)
        return PluginFacts((Launch(kernel, programs, moved, products, tiles=tiles_of),))
    sums = 4 * batch * length * heads * value_size
    after = (*_AFTER, "u", "lengths")
    first = call.moved(*(name for name in call.inputs if name not in after or name == "lengths")) + sums
    last = _norm_rows(
        call,
        batch * length,
        heads * value_size,
        sums + call.moved(*after, *call.outputs),
        lengths="lengths" in call.inputs,
    )
    return PluginFacts((Launch(kernel, programs, first, products, tiles=tiles_of), last))


def _embeddings(call: _Call) -> PluginFacts:
    tables = [name for name in call.inputs if name.startswith("table_")]
    if len(tables) > _MOST_TABLES:
        return PluginFacts(refusal=f"{len(tables)} tables are more than {_MOST_TABLES}")
    shape = call.outputs["output"].shape
    rows, width = _rows(shape), shape[-1]
    start = f"fused_embed_layer_norm.{call.element}."
    is_plain = width % call.vector == 0 and all(call.kind(name) == "T" for name in tables)
    kernel = call.holding(start, width, start + "any") if is_plain else call.first(start + "any")
    is_general = kernel.name == start + "any"
    serial = 2 * len(tables) if is_general else 2 * math.ceil(len(tables) / 3)  # all ids, then all rows, of 3 tables
    moved = call.moved(*(name for name in call.inputs if name not in tables), *call.outputs)
    looked_up = {}
    for name in tables:  # only the rows that are asked for
        table, asked = call.inputs[name], math.prod(call.shape(name.replace("table", "ids")))
        looked_up[table.source] = min(table.bytes, asked * table.bytes // max(table.shape[0], 1))
    programs = math.ceil(rows / kernel.tile["ROWS"])
    return PluginFacts((Launch(kernel, programs, moved + sum(looked_up.values()), serial_loads=serial),))


def _levels(call: _Call) -> PluginFacts:
    batch, length, width = call.shape("x")
    levels, windows = call.shape("level_embeddings")[0], list(call.attributes.get("windows", ()))
    if levels > _MOST_LEVELS:
        return PluginFacts(refusal=f"{levels} levels are more than {_MOST_LEVELS}")
    if len(windows) > _MOST_WINDOWS:
        return PluginFacts(refusal=f"{len(windows)} windows are more than {_MOST_WINDOWS}")
    start = f"hierarchical_sequence_fusion.{call.element}.l"
    is_dense = "level_mask" not in call.inputs or call.shape("level_mask")[-1] == levels
    most = 16 if levels <= 16 else _MOST_LEVELS
    names = [f"{start}{most}"] if width % 16 == 0 and is_dense else []
    kernel = call.first(*names, f"{start}{_MOST_LEVELS}.any")
    reach = max((window // 2 for window in windows), default=0)
    of_windows = math.ceil((2 * reach + 1) / 4) if reach else 0
    serial = math.ceil(width / kernel.tile["BLOCK"]) * (2 + of_windows)
    programs = math.ceil(batch * length / kernel.tile["ROWS"])
    moved = call.moved(*call.inputs, *call.outputs)
    return PluginFacts((Launch(kernel, programs, moved, 4.0 * batch * length * width * levels, serial),))


def _features(call: _Call) -> PluginFacts:
    shapes = [item.shape for item in call.inputs.values()]
    batch, size = shapes[0][0], shapes[0][-1]
    features = sum(shape[1] if len(shape) == 3 else 1 for shape in shapes)
    if features > _MOST_FEATURES:
        return PluginFacts(refusal=f"{features} features are more than {_MOST_FEATURES}")
    start = f"interaction_triton_fast.{call.element}."
    held = next(held for held in (16, 32, 64) if features <= held)
    kernel = call.first(*([] if size % 16 else [f"{start}f{held}"]), start + "any")
    pieces = math.ceil(batch / kernel.tile["SAMPLES"]) if call.outputs["output"].shape[-1] else 0
    programs = min(pieces, _BLOCKS_OF_INTERACTION * call.device.multiprocessors)
    own = features if call.attributes["self_interaction"] else -features
    products = float(batch * (features**2 + own) * size)
    return PluginFacts((Launch(kernel, programs, call.moved(*call.inputs, *call.outputs), products, pieces=pieces),))


def _fm(call: _Call) -> PluginFacts:
    batch, features, size = call.shape("E")
    start = f"fm_interaction.{call.element}."
    largest = max(int(name[len(start) :]) for name in call.kernels if name.startswith(start) and name[-1].isdigit())
    is_odd = size % call.vector != 0
    kernel = call.first(start + "any") if is_odd else call.holding(start, size, f"{start}{largest}")
    serial = math.ceil(features / 8) * math.ceil(size / kernel.tile["BLOCK"])  # 8 features at once
    programs = math.ceil(batch / kernel.tile["SAMPLES"])
    return PluginFacts((Launch(kernel, programs, call.moved("E", *call.outputs), serial_loads=serial),))


def _interests(call: _Call) -> PluginFacts:
    batch, length, size = call.shape("items")
    start = "sequence_recommendation_interaction."
    launches = []
    first_three = [name for name in call.outputs if name != "cooccurrence"]
    if first_three:
        kernel = call.first(f"{start}interests.{call.element}")
        programs = batch * math.ceil(size / kernel.tile["BLOCK"])
        chunks = math.ceil(size / kernel.tile["BLOCK"]) if "scores" in call.outputs else 1  # scores take all columns
        is_masked = "mask" in call.inputs  # which is read twice
        serial = is_masked + math.ceil(length / kernel.tile["ROWS"]) * (chunks + is_masked)
        moved = call.moved(*call.inputs, *first_three)
        launches.append(Launch(kernel, programs, moved, serial_loads=serial))
    if "cooccurrence" in call.outputs:
        is_odd = size % call.vector != 0
        kernel = call.first(f"{start}cooccurrence.{call.element}" + ".any" * is_odd)
        programs = batch * math.ceil(length / kernel.tile["ROWS"]) ** 2
        moved = call.moved("items", "mask", "cooccurrence")
        launches.append(Launch(kernel, programs, moved, 2.0 * batch * length**2 * size))
    return PluginFacts(tuple(launches))


_FACTS = {
    "FusedSwish": _swish,
    "FusedSkipLayerNorm": _skip,
    "FMInteraction": _fm,
    "FusedAttentionLayerNorm": _attention,
    "FusedLinearLayerNorm": _linear,
    "HSTUHierarchicalAttention": _hstu,
    "FusedEmbedLayerNorm": _embeddings,
    "HierarchicalSequenceFusion": _levels,
    "InteractionTritonFast": _features,
    "SequenceRecommendationInteraction": _interests,
}
