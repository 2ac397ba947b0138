"""Nodes drawn from the operators' declarations, and what plugins make of them, held against the bodies.

A drawn node's body is written out as a model of standard operators, `fuse` makes fused nodes of it again, each becomes a plugin
that enqueues to the recording driver, and Triton's interpreter runs what was enqueued, on tensors that lie in NaN. The result has
to be what ONNX Runtime makes of the model.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from onnx import ModelProto, TensorProto, ValueInfoProto, helper
from onnx.inliner import inline_local_functions

import onnx_fuse
from onnx_fuse.passes.fuse.fuse_pass import FusePass
from onnx_fuse.passes.pipeline import Pipeline
from onnx_fuse.patterns.language.declaration import Declaration, Shape
from onnx_fuse.patterns.language.operator import DOMAIN, FusedOp
from onnx_fuse.plugin_csrc.kernels.manifest import Variant
from onnx_fuse.plugin_csrc.operators import catalogue
from onnx_fuse.runtime.verify.float32_twin import widen
from tests import helpers
from tests.plugin_csrc.built import enqueued
from tests.plugin_csrc.reference import TYPES as TORCH
from tests.plugin_csrc.reference import interpret

Array = np.ndarray

FUSIONS = [*onnx_fuse.fusions()]
OPERATORS: dict[str, FusedOp] = {fusion.operator.name: fusion.operator for fusion in FUSIONS}
VARIANTS = {variant.name: variant for variant in catalogue.variants()}
KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
INTEGERS = {"int32": TensorProto.INT32, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
NUMPY = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "bool": np.dtype(bool)}
ALLOWED = {"float32": 2e-5, "float16": 8e-3, "bfloat16": 6e-2}
"""Greatest error relative to the greatest number of an output: many times what rounding in the kernels costs, and far less than
what a number read from a wrong place does."""


def dtype_of(kind: str) -> np.dtype[Any]:
    return NUMPY.get(kind) or np.dtype(kind)


# -- nodes ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Drawn:
    """A node: input -> (type, shape), and all else that a body needs. `element` is T. The tensors of one that is `skewed` begin
    at no multiple of 16 bytes, as slices of others may."""

    operator: str
    element: str
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    sizes: Mapping[str, int]
    skewed: bool = False
    facts: frozenset[str] = field(default_factory=frozenset)
    """What of the declaration it uses."""

    def __str__(self) -> str:
        inputs = ", ".join(f"{name} {kind}{list(shape)}" for name, (kind, shape) in self.inputs.items())
        return f"{self.operator}({inputs}) -> {', '.join(self.outputs)}, {dict(self.attributes)}"


@dataclass(frozen=True)
class Rules:
    """What an operator's declaration does not say of its nodes.

    Attributes:
        sizes: size -> what it may be; 0 is drawn besides for those in `empty`.
        attributes: attribute -> what it may be, drawn in this order; a function gets those before it.
        inputs: given the attributes and a draw of optional inputs, which of them the node has.
        outputs: given the inputs, the outputs it may have.
    """

    sizes: Mapping[str, Sequence[int]]
    attributes: Mapping[str, Any]
    empty: Sequence[str] = ("B", "S", "N", "Sq")
    inputs: Callable[[Mapping[str, Any], set[str]], Iterable[str]] = lambda attributes, drawn: drawn
    outputs: Callable[[Iterable[str], set[str]], Iterable[str]] = lambda inputs, drawn: drawn


_BATCH, _LENGTH, _WIDTH = (1, 2, 3), (1, 2, 5, 17, 33), (8, 16, 25, 48, 300)
_HEADS, _HEAD = (1, 2, 3), (8, 16, 20, 32, 48)
_NORM = {"norm": ("none", "layer", "rms"), "epsilon": (1e-5,)}


def _with_norm(attributes: Mapping[str, Any], drawn: set[str]) -> set[str]:
    """An RMSNorm has no shift, and without a norm there is neither."""
    return drawn - {"none": {"gamma", "beta"}, "rms": {"beta"}}.get(attributes["norm"], set())


def _hstu(attributes: Mapping[str, Any], drawn: set[str]) -> set[str]:
    if attributes["mode"] == "level_softmax":
        return drawn & {"mask"}
    return _with_norm(attributes, drawn)


def _of_interaction(attributes: Mapping[str, Any], drawn: set[str]) -> set[str]:
    return {"E"} if "E" in drawn else {"dense", "sparse"} if "dense" in drawn else {"feature_*"}


RULES = {
    "FMInteraction": Rules({"B": _BATCH, "F": (1, 2, 5), "D": _WIDTH}, {"reduce": (0, 1)}),
    "FusedAttentionLayerNorm": Rules(
        {"B": _BATCH, "Sq": _LENGTH, "Sk": (*_LENGTH, 40), "d": _HEAD, "dv": _HEAD, "Ho": (16, 25, 96, 144)},
        {
            "num_heads": (1, 2, 4),
            "num_key_value_heads": lambda so_far: [item for item in (1, 2, 4) if so_far["num_heads"] % item == 0],
            "scale": (0.25,),
            "causal": ("none", "upper_left", "lower_right"),
            "masked_row": ("zero", "uniform"),
            "mask_value": lambda so_far: (-float("inf"),) if so_far["masked_row"] == "zero" else (-1e4, -3.4e38),
            **_NORM,
            "layout": ("BSH", "BHSD"),
        },
        inputs=_with_norm,
    ),
    "FusedEmbedLayerNorm": Rules(
        {"B": _BATCH, "S": _LENGTH, "H": _WIDTH, "V": (3, 40)}, {"num_tables": (1, 2, 3), **_NORM}, inputs=_with_norm
    ),
    "FusedLinearLayerNorm": Rules(
        {"...": _BATCH, "K": (16, 25, 80), "H": (16, 25, 144)}, _NORM, empty=("...",), inputs=_with_norm
    ),
    "FusedSkipLayerNorm": Rules({"...": _BATCH, "H": _WIDTH}, _NORM, empty=("...",), inputs=_with_norm),
    "FusedSwish": Rules({"...": _LENGTH}, {"beta": (1.0, 1.5)}, empty=("...",)),
    "HierarchicalSequenceFusion": Rules(
        {"B": _BATCH, "S": _LENGTH, "H": _WIDTH, "L": (1, 3, 17)},
        {
            "temperature": (0.7,),
            "windows": ([1], [3], [1, 5]),
            "window_weights": lambda so_far: ([0.5 * (width > 1) for width in so_far["windows"]],),
            "pad": ("truncate", "zero"),
        },
    ),
    "HSTUHierarchicalAttention": Rules(
        {"B": _BATCH, "N": _LENGTH, "d": _HEAD, "dv": _HEAD},
        {
            "mode": ("silu", "silu", "silu", "level_softmax"),
            "num_heads": _HEADS,
            "alpha": (0.25,),
            "bias_order": ("outside_alpha", "inside_alpha"),
            "norm_length": (0.0, 50.0),
            "causal": lambda so_far: (0, 1) if so_far["mode"] == "silu" else (0,),
            "norm": lambda so_far: ("none", "layer", "group") if so_far["mode"] == "silu" else ("none",),
            "gate_activation": lambda so_far: ("none", "silu", "sigmoid") if so_far["mode"] == "silu" else ("none",),
            "epsilon": (1e-5,),
            "num_levels": lambda so_far: (1,) if so_far["mode"] == "silu" else (1, 2, 3),
            "decay": lambda so_far: (1.0,) if so_far["mode"] == "silu" else (0.9,),
        },
        inputs=_hstu,
    ),
    "InteractionTritonFast": Rules(
        {"B": _BATCH, "F": (2, 3, 18), "D": _WIDTH},
        {"triangle": ("lower", "upper"), "self_interaction": (0, 1), "concat_dense": ("none", "first", "last")},
        inputs=_of_interaction,
    ),
    "SequenceRecommendationInteraction": Rules(
        {"B": _BATCH, "S": _LENGTH, "D": _WIDTH},
        {"short_window": (3,), "decay": (0.1,), "normalize": (0, 1)},
        outputs=lambda inputs, drawn: (
            (drawn - {"scores"} | ({"scores"} if "user" in inputs else set())) or {"long_term"}
        ),
    ),
}


def draw(name: str, draws: random.Random) -> Drawn:
    """A node of an operator with shapes, types and optional inputs that its declaration allows."""
    operator, rules = OPERATORS[name], RULES[name]
    declaration = operator.declaration
    assert declaration is not None
    attributes: dict[str, Any] = {}
    for attribute, values in rules.attributes.items():
        attributes[attribute] = draws.choice(values(attributes) if callable(values) else values)
    sizes = {size: draws.choice(values) for size, values in rules.sizes.items()}
    sizes |= {size: attributes[attribute] for size, attribute in declaration.sizes.items()}
    if draws.random() < 0.1:
        sizes[draws.choice([size for size in rules.empty if size in sizes])] = 0
    element, skewed = draws.choice(["float32", *KINDS]), draws.random() < 0.2
    often = draws.choice((0.2, 0.5, 0.8))
    optional = {tensor.name for tensor in declaration.inputs if tensor.optional and draws.random() < often}
    wanted = {*rules.inputs(attributes, optional), *(item.name for item in declaration.inputs if not item.optional)}
    made = {item.name for item in declaration.outputs if not item.optional or draws.random() < 0.5}
    made = {*rules.outputs(wanted, made)}
    before = [sizes[declared] for declared in ("...",) if declared in sizes for _ in range(draws.choice((1, 2)))]
    inputs: dict[str, tuple[str, tuple[int, ...]]] = {}
    facts = {
        element,
        f"skewed={skewed}",
        *(f"{key}={value}" for key, value in attributes.items()),
        *(f"makes {item}" for item in made),
    }
    # A size of 0 comes by chance: pairs with it would soon be all that is new.
    facts |= {
        f"{size} is {'1' if found == 1 else 16 if found % 16 == 0 else 'odd'}" for size, found in sizes.items() if found
    }
    for numbers, tensors in _groups(declaration, wanted, attributes, sizes):
        for number, tensor in itertools.product(numbers, tensors):
            kind = draws.choice(tensor.types)
            given = declaration.given(attributes, wanted)
            form = draws.choice(tensor.shapes_of(given, tensor.name.replace("*", number)))
            shape, told = _shape(form, {**sizes, f"V{number}": sizes.get("V", 0)}, before, draws)
            inputs[tensor.name.replace("*", number)] = (element if kind == "T" else kind, shape)
            facts |= {f"{tensor.name} {item}" for item in (kind, form.text, *told)}
    facts |= {f"no {tensor.name}" for tensor in declaration.inputs if tensor.name not in wanted}
    inputs = _of_whole_batch(inputs, sizes, element) if "ids_1" in inputs else inputs
    present = operator.present(dict.fromkeys(inputs, "x"))
    outputs = tuple(item.name for item in declaration.outputs if item.name in made)
    return Drawn(
        name, element, {item: inputs[item] for item in present}, outputs, attributes, sizes, skewed, frozenset(facts)
    )


def _groups(
    declaration: Declaration, wanted: set[str], attributes: Mapping[str, Any], sizes: Mapping[str, int]
) -> Iterator[tuple[Sequence[str], list[Any]]]:
    """The inputs in their order: ("",) with one of them, or the numbers of those that are variadic, together."""
    variadic = [item for item in declaration.inputs if item.name in wanted and item.name.endswith("*")]
    count = attributes.get("num_tables", sizes.get("F", 0))
    yield [str(number) for number in range(1, count + 1)], variadic
    yield ("",), [item for item in declaration.inputs if item.name in wanted and item not in variadic]


def _shape(
    form: Shape, sizes: Mapping[str, int], before: Sequence[int], draws: random.Random
) -> tuple[tuple[int, ...], list[str]]:
    """A shape of a form, and which of its axes broadcast."""
    shape, told = list(before) if form.rest else [], []
    for number, axis in enumerate(form.axes):
        size = axis.size(sizes)
        assert size is not None, (form, sizes)
        broadcasts = axis.broadcasts and draws.random() < 0.5
        told += [f"axis {number} {'broadcasts' if broadcasts else 'is whole'}"] if axis.broadcasts else []
        shape.append(1 if broadcasts else size)
    return tuple(shape), told


def _of_whole_batch(
    inputs: Mapping[str, tuple[str, tuple[int, ...]]], sizes: Mapping[str, int], element: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The same where the first ids have the batch and the positions, as some have to, and the first table is T."""
    ids, table = inputs["ids_1"], inputs["table_1"]
    return {**inputs, "ids_1": (ids[0], (sizes["B"], sizes["S"])), "table_1": (element, table[1])}


def drawn_pairwise(names: Sequence[str], count: int, seed: int) -> list[Drawn]:
    """So many nodes of each operator: of a few draws each time the one that shows most pairs of facts for the first time."""
    chosen = []
    for name in names:
        draws, seen = random.Random(f"{name} {seed}"), set()
        for _ in range(count):
            pairs = {
                node: set(itertools.combinations(sorted(node.facts), 2))
                for node in (draw(name, draws) for _ in range(8))
            }
            best = max(pairs, key=lambda node: len(pairs[node] - seen))
            seen |= pairs[best]
            chosen.append(best)
    return chosen


# -- models ---------------------------------------------------------------------------------------------------------------


def model_of(node: Drawn) -> ModelProto:
    """A model of this node alone, with its body."""
    operator, kinds = OPERATORS[node.operator], {**KINDS, **INTEGERS}
    made = operator.make_node(
        {name: name for name in node.inputs}, {name: name for name in node.outputs}, node.attributes, "node"
    )
    body = operator.make_function([*node.inputs], node.outputs, node.attributes, {"": 20}, KINDS[node.element])
    inputs = [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, shape) in node.inputs.items()]
    outputs = [helper.make_tensor_value_info(name, KINDS[node.element], _output(node, name)) for name in node.outputs]
    graph = helper.make_graph([made], "drawn", inputs, outputs)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)


def _output(node: Drawn, name: str) -> list[int | None]:
    declaration = OPERATORS[node.operator].declaration
    assert declaration is not None
    form = declaration.tensor(name).shapes_of(declaration.given(node.attributes, node.inputs), name)[0]
    first = next(iter(node.inputs.values()))[1]
    before = first[: -len(form.axes) or None] if form.rest else ()
    return [*before, *(axis.size(node.sizes) for axis in form.axes)]


def values_of(node: Drawn, seed: int) -> dict[str, Array]:
    """Values for the inputs: such that nothing of them is a number that another place of the tensor has."""
    draws, values = np.random.default_rng(seed), {}
    for name, (kind, shape) in node.inputs.items():
        mask = name.endswith("mask")
        if kind == "bool" or mask:
            value = draws.random(shape) < 0.7
        elif name == "lengths":
            value = draws.integers(0, node.sizes["N"] + 1, shape)
        elif name.startswith("ids"):
            value = draws.integers(-node.sizes["V"], node.sizes["V"], shape)
        else:
            value = draws.standard_normal(shape) * (0.3 if name.endswith("weight") else 1.0)
        values[name] = value.astype(dtype_of(kind))
    return values


def fused_again(model: ModelProto) -> ModelProto:
    """What `fuse` makes of the model with its body written out."""
    fused = inline_local_functions(model)
    Pipeline([FusePass(FUSIONS)]).run(fused)
    return fused


def run(model: ModelProto, values: Mapping[str, Array], also: Sequence[str] = ()) -> dict[str, Array]:
    """The outputs of a model in ONNX Runtime, and values inside of it."""
    model = widen(model)
    known = {item.name for item in model.graph.output}
    given = {item.name for item in model.graph.input}
    model.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(also) if name not in known | given)
    feeds = {
        name: value.astype(np.float32) if value.dtype == ml_dtypes.bfloat16 else value for name, value in values.items()
    }
    found = helpers.session(model).run(None, feeds)
    return {**feeds, **dict(zip((item.name for item in model.graph.output), found, strict=True))}


# -- memory ---------------------------------------------------------------------------------------------------------------


class Memory:
    """Tensors in a sea of NaN: whatever is read beside one of them, or before it was written, shows."""

    def __init__(self, size: int) -> None:
        self.bytes = torch.full((size,), 255, dtype=torch.uint8)
        self.used = 0
        self.places: list[tuple[int, int]] = []

    @property
    def address(self) -> int:
        return int(self.bytes.data_ptr())

    def room(self, size: int, skew: int = 0) -> int:
        """The address of so many bytes, with space around them: a multiple of 256, or `skew` bytes after one."""
        first = -(-(self.address + self.used + 256) // 256) * 256 - self.address
        self.used = first + max(size + skew, 256)
        assert self.used + 256 <= len(self.bytes), "the tests need more memory"
        return self.address + first + skew

    def put(self, array: Array, skew: int = 0) -> int:
        address = self.room(array.nbytes, skew)
        self.bytes[address - self.address :][: array.nbytes] = torch.from_numpy(
            np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8).copy()
        )
        return address

    def get(self, address: int, kind: str, shape: Sequence[int]) -> Array:
        size = int(np.prod(shape)) * dtype_of(kind).itemsize
        raw = self.bytes[address - self.address :][:size].numpy().tobytes()
        return np.frombuffer(raw, dtype=dtype_of(kind)).reshape(shape)

    def seen(self, address: int, kind: str) -> Any:
        """All that lies from an address on, as a kernel sees it that takes a pointer to this type of Triton's."""
        dtype = {**TORCH, "i32": torch.int32, "i8": torch.int8}[kind]
        rest = self.bytes[address - self.address :]
        return rest[: len(rest) // dtype.itemsize * dtype.itemsize].view(dtype)


# -- plugins --------------------------------------------------------------------------------------------------------------

WORKSPACE = 1 << 19


@dataclass(frozen=True)
class Job:
    """A fused node of a model that was drawn, with what it reads and what it has to make; `outputs`: name -> address."""

    drawn: Drawn
    run: Mapping[str, Any]
    outputs: Mapping[str, int]
    wanted: Mapping[str, Array]
    refound: bool
    memory: Memory
    workspace: int


def jobs_of(node: Drawn, seed: int) -> list[Job]:
    """The fused nodes that `fuse` makes of a drawn node's body, or that node itself where it finds none."""
    model, values = model_of(node), values_of(node, seed)
    before = run(inline_local_functions(model), values)
    # A body computes in float32: of another T, `fuse` would find the operator in float32 with casts around it.
    fused = fused_again(model) if node.element == "float32" else model
    refound = fused is not model and any(item.op_type == node.operator for item in fused.graph.node)
    fused = fused if refound else model
    nodes = [item for item in fused.graph.node if item.domain == DOMAIN]
    after = run(fused, values, [name for item in nodes for name in (*item.input, *item.output)])
    jobs = []
    for item in nodes:
        named = {found.name: helper.get_attribute_value(found) for found in item.attribute}
        attributes = {
            key: value.decode() if isinstance(value, bytes) else value
            for key, value in named.items()
            if not key.startswith("plugin_")
        }
        kinds = {name: _kind(after[name], node.element) for name in (*item.input, *item.output)}
        inputs = [after[name].astype(dtype_of(kinds[name])) for name in item.input]
        names = attributes["outputs"].split(",")
        wanted = {name: before.get(value, after[value]) for name, value in zip(names, item.output, strict=True)}
        memory = Memory(sum(array.nbytes + 1024 for array in (*inputs, *wanted.values())) + WORKSPACE + 2048)
        workspace = memory.room(WORKSPACE)
        size = dtype_of(node.element).itemsize
        outputs = {name: memory.room(value.size * size, 4 * node.skewed) for name, value in wanted.items()}
        given = [
            [kind, list(array.shape), memory.put(array, max(array.itemsize, 4) * node.skewed)]
            for kind, array in zip((kinds[name] for name in item.input), inputs, strict=True)
        ]
        made = [[node.element, list(value.shape), outputs[name]] for name, value in wanted.items()]
        task = {
            "name": item.op_type,
            "attributes": attributes,
            "inputs": given,
            "outputs": made,
            "workspace": workspace,
        }
        jobs.append(Job(node, task, outputs, wanted, refound, memory, workspace))
    return jobs


def _kind(array: Array, element: str) -> str:
    """The type that a value has where T is bfloat16, which ONNX Runtime computes in float32."""
    return element if array.dtype == np.float32 and element == "bfloat16" else str(array.dtype)


def problem(job: Job, answer: Mapping[str, Any]) -> str | None:
    """What is wrong with what a plugin enqueued; None where it computes what it has to, or says that it takes no such address."""
    if "error" in answer:
        return None if job.drawn.skewed and "takes multiples of" in answer["error"] else str(answer["error"])
    if answer["workspace"] > WORKSPACE:
        return f"it wants {answer['workspace']} bytes of workspace"
    before = job.memory.bytes.clone()
    kernels = [VARIANTS[name] for name in answer["kernels"]]
    for launch in answer["launches"]:
        variant = kernels.pop(0)
        while variant.function.__name__ != launch["kernel"]:  # its grid was empty
            variant = kernels.pop(0)
        interpret(variant, tuple(launch["grid"]), _arguments(variant, launch["arguments"], job.memory))
    wrong = _wrong(job, before)
    job.memory.bytes.copy_(before)
    return wrong


def _arguments(variant: Variant, found: Sequence[Any], memory: Memory) -> list[Any]:
    values = iter(found)
    arguments = []
    for kind in variant.signature.values():
        value = next(values)
        if kind.startswith("*"):
            value = memory.seen(value, kind[1:])
        elif kind.startswith("tensordesc"):
            value = _mapped(value, [next(values) for _ in range(4)], kind, memory)
        arguments.append(value)
    assert [*values] == [0, 0], "two hidden pointers come last"
    return arguments


def _mapped(found: Mapping[str, int], behind: Sequence[int], kind: str, memory: Memory) -> Any:
    """The matrix that a tensor map describes, whose sizes and strides stand behind it again, for the interpreter."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    element, block = kind.removeprefix("tensordesc<").removesuffix("]>").split("[")
    rows, columns = (int(size) for size in block.split(","))
    step = found["row_bytes"] // 2
    assert behind == [found["rows"], found["columns"], step, 1]
    assert (found["box_rows"], found["box_columns"]) == (rows, 64), "the boxes that the kernel waits for"
    sizes = [found["rows"], found["columns"]]
    return TensorDescriptor(memory.seen(found["address"], element), sizes, [step, 1], [rows, columns])


def _wrong(job: Job, before: Any) -> str | None:
    memory = job.memory
    after, element = memory.bytes.clone(), job.drawn.element
    for name, address in job.outputs.items():
        wanted = job.wanted[name].astype(np.float64)
        found = memory.get(address, element, wanted.shape).astype(np.float64)
        if not wanted.size:
            continue
        unequal = np.isnan(found) & ~np.isnan(wanted)
        if unequal.any():
            return f"{name}: {unequal.sum()} of {wanted.size} are NaN"
        error = np.nanmax(np.abs(found - wanted), initial=0.0) / (np.nanmax(np.abs(wanted), initial=0.0) or 1.0)
        if error > ALLOWED[element]:
            return f"{name}: wrong by {error:.2g} of the greatest number"
        size = wanted.size * dtype_of(element).itemsize
        after[address - memory.address :][:size] = before[address - memory.address :][:size]
    after[job.workspace - memory.address :][:WORKSPACE] = before[job.workspace - memory.address :][:WORKSPACE]
    return None if torch.equal(before, after) else "it writes beside its outputs"


@dataclass
class Outcome:
    """What became of drawn nodes.

    Attributes:
        wrong: (node, what is wrong).
        refound: how many nodes `fuse` found again.
        impossible: how many ONNX Runtime cannot run.
        operators: fused nodes by operator.
    """

    wrong: list[tuple[Drawn, str]] = field(default_factory=list)
    refound: int = 0
    impossible: int = 0
    operators: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Enqueued:
    """The fused nodes of drawn ones, what their plugins enqueued, and how many drawn nodes ONNX Runtime cannot run."""

    jobs: Sequence[Job]
    answers: Sequence[Mapping[str, Any]]
    impossible: int


def enqueued_by(nodes: Sequence[Drawn], folder: Path, seed: int, **environment: str) -> Enqueued:
    """What the plugins of drawn nodes enqueue; `environment` is for the recording driver."""
    jobs: list[Job] = []
    impossible = 0
    for number, node in enumerate(nodes):
        try:
            jobs += jobs_of(node, seed + number)
        except Exception as error:  # of ONNX Runtime's, which have no class of their own
            if 0 not in node.sizes.values():
                raise AssertionError(f"{node}: {error}") from error
            impossible += 1
    answers = enqueued([job.run for job in jobs], folder, FAKE_CUDA_MULTIPROCESSORS="1", **environment)
    return Enqueued(jobs, answers, impossible)


def judged(enqueued: Enqueued) -> Outcome:
    """What enqueued kernels compute, held against the bodies."""
    outcome = Outcome(impossible=enqueued.impossible)
    for job, answer in zip(enqueued.jobs, enqueued.answers, strict=True):
        outcome.refound += job.refound
        outcome.operators[job.run["name"]] += 1
        found = problem(job, answer)
        if found is not None:
            outcome.wrong.append((job.drawn, f"{found} ({job.run})"))
    return outcome


def changed(node: Drawn, **shapes: tuple[int, ...]) -> Drawn:
    """The same node with other shapes of some inputs."""
    return replace(node, inputs={name: (kind, shapes.get(name, shape)) for name, (kind, shape) in node.inputs.items()})
