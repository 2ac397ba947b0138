"""Where in the model a node belongs, in the model's own words: "encoder.layer.2.attention", and what to change in an export.

Exporters leave the module a node comes from in its metadata (torch's dynamo exporter), in its name (torch's older exporter,
tf2onnx), or only in the names of the weights it reads. A block is such a path of modules, with dots; a layer is a block up to its
first numbered part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from onnx_fuse.passes.refusals import kind_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, StringStringEntryProto

    from onnx_fuse.passes.graph.index import Graph

_SCOPES = "pkg.torch.onnx.name_scopes"
_NAMESPACE = "namespace"
_MOST = 4096
_WEIGHT = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*\.[A-Za-z_]\w*")
_NUMBER = r"(?<![^.])(?:_?\d+|(?:layer|block|stage|encoder|decoder)s?_*\d+)(?![^.])"
_NUMBERED = re.compile(_NUMBER, re.IGNORECASE)
# What a list of layers is called: in "model.0.encoder.layer.2" it is "layer" that counts layers, not "model".
_LISTED = re.compile(rf"(?<![^.])(?:layers?|blocks?|h|stages?|resblocks|groups)_*\.{_NUMBER}", re.IGNORECASE)
_NO_MODULE = ("StatefulPartitionedCall", "PartitionedCall", "_empty_nn_module_stack")
_ODD = re.compile("|".join(("//", *_NO_MODULE)))


def block_of(node: NodeProto) -> str:
    """The module a node belongs to, from its metadata, its name, or the names of what it reads and makes; "" where none tells."""
    return _block(_origin(node))


def _origin(node: NodeProto) -> str | tuple[str]:
    """What tells a node's block, equal for nearly all nodes of one block: the path its name lies in, or else the block itself."""
    entries = node.metadata_props
    if entries:
        found = _from_metadata(entries)
        if found is not None:
            return (found,)
    name = node.name
    folder, slash, _ = name.rpartition("/")
    if slash and "::" not in name:
        return str(folder)
    found = next((path for name in node.output if (path := _from_path(name)) is not None), None)
    if found is None:
        found = next((name.rpartition(".")[0] for name in node.input if _WEIGHT.fullmatch(name)), "")
    return (found,)


def _block(origin: str | tuple[str]) -> str:
    return _dotted(origin[:_MOST]) if isinstance(origin, str) else origin[0]


def _count_blocks(nodes: Iterable[NodeProto]) -> dict[str, int]:
    """Block -> number of its nodes, in order of appearance."""
    origins: dict[str | tuple[str], int] = {}
    for node in nodes:
        origin = _origin(node)
        origins[origin] = origins.get(origin, 0) + 1
    counts: dict[str, int] = {}
    for origin, count in origins.items():
        block = _block(origin)
        counts[block] = counts.get(block, 0) + count
    return counts


def block_of_all(nodes: Sequence[NodeProto], root: NodeProto | None = None) -> str:
    """The deepest block that holds nearly all of the nodes that have one; of three in four, where that would leave the layer.

    Where the nodes lie in two layers, it is the block of `root`.
    """
    blocks = _count_blocks(nodes)
    blocks.pop("", None)
    counts: dict[str, int] = {}
    for block, number in blocks.items():
        above = block
        while above:
            counts[above] = counts.get(above, 0) + number
            above = above.rpartition(".")[0]
    named = sum(blocks.values())
    for least in (0.95, 0.75):
        common = ""
        for above, count in counts.items():
            if count >= least * named and (not common or above.count(".") > common.count(".")):
                common = above
        if is_layer(common):
            return common
    own = block_of(root) if root is not None else ""
    return own if is_layer(own) else common or own


def layer_of(block: str) -> str:
    """A block up to the layer: "encoder.layer.2" for "encoder.layer.2.attention"; the block itself where none is numbered."""
    return _layer(block) or block


def is_layer(block: str) -> bool:
    """Whether a block lies in a numbered layer (or is one)."""
    return _layer(block) is not None


@lru_cache(maxsize=4096)
def _layer(block: str) -> str | None:
    numbered = _LISTED.search(block) or _NUMBERED.search(block)
    return None if numbered is None else block[: numbered.end()]


def template(name: str) -> str:
    """A name with its numbers removed: equal for the same place in two layers."""
    return re.sub(r"\d+", "#", name)


def span(names: Sequence[str]) -> str:
    """The names of several equal blocks: "encoder.layer.0 … encoder.layer.11"."""
    distinct = list(dict.fromkeys(names))
    if len(distinct) == 1:
        return distinct[0]
    return f"{distinct[0]} … {distinct[-1]}" if len(distinct) > 2 else ", ".join(distinct)


def outline(model: ModelProto) -> dict[str, int]:
    """Layer -> number of its nodes, in the order of the main graph: a picture of the model in a few blocks.

    Outside of numbered layers a block is cut one part below what all blocks share ("model.embeddings"). Constants do not count.
    """
    counts = _count_blocks(node for node in model.graph.node if node.op_type != "Constant")
    depth = len(shared(counts)) + 1
    layers: dict[str, int] = {}
    for block, count in counts.items():
        layer = _layer(block) or ".".join(block.split(".")[:depth])
        layers[layer] = layers.get(layer, 0) + count
    return layers


def shared(blocks: Iterable[str]) -> tuple[str, ...]:
    """The parts that all blocks (but "") begin with, without numbered ones: the name of the model as a whole."""
    paths = [block.split(".") for block in blocks if block]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1 or _NUMBERED.fullmatch(parts[0]):
            break
        common.append(parts[0])
    while common and any(len(path) > len(common) and _NUMBERED.fullmatch(path[len(common)]) for path in paths):
        common.pop()  # "layers" of "layers.0" belongs to the layer's name
    return tuple(common)


def _from_metadata(entries: Iterable[StringStringEntryProto]) -> str | None:
    for entry in entries:
        key = entry.key
        if key == _SCOPES:
            return _innermost(entry.value[:_MOST].strip("[]"), ",")
        if key == _NAMESPACE:
            return _innermost(entry.value[:_MOST], "/")
    return None


@lru_cache(maxsize=4096)
def _innermost(text: str, separator: str) -> str | None:
    """The last module of a list of scopes, in which the operator comes last: "['', 'm', 'add']" or ": W/m: Model/add: aten"."""
    scopes = [part.split(":")[0].strip(" '\"") for part in text.split(separator)]
    if len(scopes) < 2:
        return None
    return next((scope for scope in reversed(scopes[:-1]) if scope and not scope.startswith(_NO_MODULE)), "")


def _from_path(name: str) -> str | None:
    """ "encoder.layer.0.attention" for "/encoder/layer.0/attention/MatMul"; None for a name that is no path."""
    folder, slash, _ = name.rpartition("/")
    return _dotted(folder[:_MOST]) if slash and "::" not in name else None


@lru_cache(maxsize=4096)
def _dotted(folder: str) -> str:
    if _ODD.search(folder) is None:
        return folder.strip("/").replace("/", ".")
    return ".".join([part for part in folder.split("/") if part and not part.startswith(_NO_MODULE)])


# --- advice -----------------------------------------------------------------------------------------------------------

_PROBABILITIES = (
    "Export without the attention probabilities: output_attentions=False, or need_weights=False for "
    "torch.nn.MultiheadAttention."
)
_KEPT = re.compile(r"its output (\S+) (is a graph output|is also read by (\S+) )")


def advise(reason: str, graph: Graph | None = None) -> str:
    """What to change in the export so that a refusal goes away; "" where nothing is known to help.

    Args:
        reason: the sentence of a near miss, or of a warning.
        graph: the graph it is about, to look up what makes the value that the sentence names.
    """
    kept = _KEPT.search(reason)
    if kept is not None:
        value = kept[1]
        producer = graph.producers.get(value) if graph is not None else None
        if producer is not None and producer.op_type == "Softmax":
            return _PROBABILITIES
        kind = kind_of(value)
        if kind.name == "key-value-cache":
            return kind.advice
        if kept[3] is None:
            return f"Leave {value} out of what the model returns (hidden states: output_hidden_states=False)."
        return ""
    kind = kind_of(reason)
    if kind.name in ("sizes-differ", "mask-shape", "shape-unknown"):
        return _about_sizes(reason, kind.advice)
    return kind.advice


_FIXED_SIZES = "Export with fixed sizes: without dynamic axes."
_SIZE = re.compile(r"\bis (\S+?),|match it is (\S+)")


def _about_sizes(reason: str, advice: str) -> str:
    """What helps against sizes that are not known to be equal: names for those that have none, nothing for numbers that differ."""
    sizes = [left or right for left, right in _SIZE.findall(reason)]
    if sizes and all(size.isdecimal() for size in sizes):
        return ""
    return _FIXED_SIZES if "unk__" in reason else advice
