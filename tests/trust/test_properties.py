"""Random graphs grown around each pattern, changed at random: what fuses computes the same, and it is the same that fuses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests import helpers
from tests.trust import graphs
from tests.trust.graphs import ATTENTION, DECOMPOSED, DECOMPOSED_RMS, EMBEDDING, EVERY, GUARD, NORM, SKIP, SWISH, build

# The same examples on every run: a failure here is one that the next run shows again.
PROFILE = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
COMMUTATIVE = ("Add", "Mul", "And", "Or")
Steps = dict[str, Any]


# -- the graphs ---------------------------------------------------------------------------------------------------------


@st.composite
def attentions(draw: st.DrawFn) -> Steps:
    """Attention with a rim, a mask, a scale and a norm of some kind."""

    def one(*options: Any) -> Any:
        return draw(st.sampled_from(options))

    steps: Steps = {"inputs": {}}
    query, key = "{0}4 = Reshape({1}, heads)\n{2} = Transpose <perm = [0, 2, 1, 3]> ({0}4)", ""
    place = one("scores", "over", "query", "key", "both", "none")
    if place == "over":
        steps["scale"] = "scaled = Div({}, two)"
    elif place != "scores":
        steps["scale"] = ""
    factor = "root_half" if place == "both" else "half"
    source = {"q": "q", "k": "k"}
    lines = {"q": "", "k": ""}
    for name, where in (("q", "query"), ("k", "key")):
        if place in (where, "both"):
            lines[name] = f"{name}s = Mul({name}, {factor})\n"
            source[name] = f"{name}s"
    steps["query"] = lines["q"] + query.format("q", source["q"], "qh")
    key = one(
        "k4 = Reshape({}, heads)\nkt = Transpose <perm = [0, 2, 3, 1]> (k4)",
        "k4 = Reshape({}, heads)\nkh = Transpose <perm = [0, 2, 1, 3]> (k4)\nkt = Transpose <perm = [0, 1, 3, 2]> (kh)",
    )
    steps["key"] = lines["k"] + key.replace("{}", source["k"])
    mask = one("none", "bias", "keep", "drop", "bias and keep")
    if "bias" in mask:
        steps["inputs"]["m"] = one("[B,1,1,S]", "[B,1,S,S]", "[1,2,S,S]", "[S,S]", "[B,2,1,1]")
        steps["mask"] = "added = Add({}, m)"
    if mask in ("keep", "drop", "bias and keep"):
        steps["inputs"]["seen"] = one("bool[B,1,1,S]", "bool[B,1,S,S]", "bool[1,1,S,S]", "bool[B,2,S,S]")
        low = one("infinity", "tenthousand", "lowest")
        scores = "added" if "bias" in mask else "{}"
        where = f"masked = Where(seen, {low}, {scores})" if mask == "drop" else f"masked = Where(seen, {scores}, {low})"
        steps["mask"] = steps.get("mask", "") + "\n" + where
    if one(False, False, True):
        steps["guard"] = GUARD
    for name in ("projection", "bias", "residual"):
        if one(False, False, False, True):
            steps[name] = ""
    if one(False, False, True):
        steps["projection"] = "turned = Transpose <perm = [1, 0]> (weight)\nprojected = MatMul({}, turned)"
    steps["norm"] = one(
        NORM,
        NORM,
        DECOMPOSED,
        DECOMPOSED_RMS,
        "",
        "normed = LayerNormalization({}, gamma)",
        NORM.replace("-1", "2"),
        DECOMPOSED.replace("Pow(centred, two)", "Mul(centred, centred)"),
    )
    return steps


@st.composite
def embeddings(draw: st.DrawFn) -> Steps:
    terms = draw(st.permutations(["word", "place", "kind"]))[: draw(st.integers(1, 3))]
    looked_up = {"word": "Gather(words, ids)", "place": "Gather(places, spots)", "kind": "Gather(kinds, types)"}
    lines = [f"{term} = {looked_up[term]}" for term in terms]
    total = terms[0]
    for number, term in enumerate(terms[1:]):
        lines.append(f"total{number} = Add({total}, {term})")
        total = f"total{number}"
    norm = draw(st.sampled_from([NORM, DECOMPOSED, DECOMPOSED_RMS]))
    return {"first": "\n".join(lines), "second": "", "sum": f"total = Identity({total})", "norm": norm}


@st.composite
def skips(draw: st.DrawFn) -> Steps:
    return {
        "first": draw(st.sampled_from(["", "shifted_x = Add(x, bias)"])),
        "sum": draw(st.sampled_from(["total = Add(x, skip)", "total = Add(skip, x)"])),
        "norm": draw(st.sampled_from([NORM, DECOMPOSED, DECOMPOSED_RMS])),
        "after": draw(st.sampled_from(["", "end = Add(normed, total)"])),
    }


@st.composite
def swishes(draw: st.DrawFn) -> Steps:
    return {
        "gate": draw(
            st.sampled_from(["gate = Sigmoid(x)"] + [f"inner = Mul(x, {c})\ngate = Sigmoid(inner)" for c in ("two", "half")])
        ),
        "product": draw(st.sampled_from(["product = Mul(x, gate)", "product = Mul(gate, x)"])),
        "after": draw(st.sampled_from(["", "end = Add(product, x)"])),
    }  # fmt: skip


@st.composite
def grown(draw: st.DrawFn) -> ModelProto:
    """A graph that one of the fusions is for."""
    fusion = draw(st.sampled_from([ATTENTION, ATTENTION, ATTENTION, EMBEDDING, SKIP, SWISH]))
    steps = draw({ATTENTION: attentions(), EMBEDDING: embeddings(), SKIP: skips(), SWISH: swishes()}[fusion])
    return build(fusion, **steps)


# -- the changes --------------------------------------------------------------------------------------------------------


class Perturbed:
    """A model under change; it stays in topological order."""

    def __init__(self, model: ModelProto, draw: st.DrawFn) -> None:
        self.model, self.draw = model, draw
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.types = {item.name: item.type.tensor_type for item in (*inferred.value_info, *inferred.output, *inferred.input)}  # fmt: skip
        self.given: set[str] = set()

    def pick(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def floats(self) -> list[str]:
        """Float values that nodes make, of known rank."""
        made = [name for node in self.model.graph.node for name in node.output]
        return [
            name
            for name in made
            if name in self.types and self.types[name].elem_type == TensorProto.FLOAT and self.types[name].HasField("shape")
        ]  # fmt: skip

    def float_value(self) -> str:
        found = self.floats()
        if not found:
            reject()  # a changed constant has made nonsense of the shapes
        return str(self.pick(found))

    def name(self, kind: str) -> str:
        taken = {item.name for item in (*self.model.graph.initializer, *self.model.graph.node)}
        taken |= {value for node in self.model.graph.node for value in node.output} | self.given
        found = next(name for number in range(1, 1000) if (name := f"{kind}_{number}") not in taken)
        self.given.add(found)
        return found

    def constant(self, values: list[int]) -> str:
        name = self.name("ints")
        self.model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name

    def swap(self) -> None:
        """The operands of a commutative node."""
        nodes = [node for node in self.model.graph.node if node.op_type in COMMUTATIVE]
        if nodes:
            node = self.pick(range(len(nodes)))
            nodes[node].input[:] = list(nodes[node].input)[::-1]

    def detour(self) -> None:
        """Something between a value and its readers that changes nothing."""
        value = self.float_value()
        rank = len(self.types[value].shape.dim)
        kind = self.pick(["Identity", "Cast", "Reshape", "Transpose", "Unsqueeze", "Dropout"])
        after = self.name("detour")
        between = self.name("between")
        nodes: list[NodeProto]
        if kind == "Cast":
            nodes = [helper.make_node("Cast", [value], [after], to=TensorProto.FLOAT)]
        elif kind in ("Identity", "Dropout"):
            nodes = [helper.make_node(kind, [value], [after])]
        elif kind == "Transpose" and rank > 1:
            perm = self.draw(st.permutations(range(rank)))
            back = [perm.index(axis) for axis in range(rank)]
            nodes = [
                helper.make_node("Transpose", [value], [between], perm=perm),
                helper.make_node("Transpose", [between], [after], perm=back),
            ]
        elif kind == "Reshape":
            shape = self.name("shape")
            nodes = [
                helper.make_node("Shape", [value], [shape]),
                helper.make_node("Reshape", [value, self.constant([-1])], [between]),
                helper.make_node("Reshape", [between, shape], [after]),
            ]
        else:
            axis = self.constant([self.draw(st.integers(0, rank))])
            nodes = [
                helper.make_node("Unsqueeze", [value, axis], [between]),
                helper.make_node("Squeeze", [between, axis], [after]),
            ]
        self.insert(value, nodes, {value: after})

    def insert(self, after: str, nodes: list[NodeProto], renames: dict[str, str]) -> None:
        """Nodes behind the one that makes `after`; whoever comes later reads the new names."""
        kept = list(self.model.graph.node)
        place = next(index for index, node in enumerate(kept) if after in node.output) + 1
        for node in kept[place:]:
            node.input[:] = [renames.get(name, name) for name in node.input]
        for node in nodes:
            node.name = self.name(node.op_type)
        copies = [helper_copy(node) for node in (*kept[:place], *nodes, *kept[place:])]
        del self.model.graph.node[:]
        self.model.graph.node.extend(copies)

    def consumer(self) -> None:
        """Somebody else reads a value, and what comes of it is an output."""
        value = self.float_value()
        made = self.name("seen")
        self.insert(value, [helper.make_node(self.pick(["Neg", "Abs"]), [value], [made])], {})
        output = self.model.graph.output.add(name=made)
        output.type.tensor_type.CopyFrom(self.types[value])

    def dead(self) -> None:
        """Somebody reads a value, and nothing comes of it."""
        value = self.float_value()
        self.insert(value, [helper.make_node("Neg", [value], [self.name("dead")])], {})

    def expose(self) -> None:
        """A value becomes an output."""
        outputs = {item.name for item in self.model.graph.output}
        free = [name for name in self.floats() if name not in outputs]
        if free:
            value = self.pick(free)
            self.model.graph.output.add(name=value).type.tensor_type.CopyFrom(self.types[value])

    def change(self) -> None:
        """Another number in a constant, or another axis or permutation: another function, still to be computed."""
        places: list[tuple[str, int]] = [("constant", index) for index in range(len(self.model.graph.initializer))]
        places += [("node", i) for i, node in enumerate(self.model.graph.node) for item in node.attribute if item.name in ("axis", "perm", "axes")]  # fmt: skip
        if not places:
            return
        kind, index = self.pick(places)
        if kind == "constant":
            tensor = self.model.graph.initializer[index]
            array = numpy_helper.to_array(tensor).copy()
            where = self.draw(st.integers(0, array.size - 1))
            change = self.pick([1, -1, 2]) if array.dtype.kind == "i" else self.pick([1.0, -0.5, 1e-3])
            array.reshape(-1)[where] += array.dtype.type(change)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            return
        node = self.model.graph.node[index]
        for item in node.attribute:
            if item.name == "axis":
                item.i = self.pick([-1, -2, 1, 2])
            elif item.name == "axes":
                item.ints[:] = [self.pick([-1, -2, 1])]
            elif item.name == "perm":
                item.ints[:] = self.draw(st.permutations(list(item.ints)))


def helper_copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


HARMLESS = ("swap", "detour", "dead")
CHANGES = (*HARMLESS, "consumer", "expose", "change")


@st.composite
def perturbed(draw: st.DrawFn, kinds: tuple[str, ...] = CHANGES) -> ModelProto:
    model = draw(grown())
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=4)):
        getattr(Perturbed(model, draw), kind)()
    return model


def shuffled(model: ModelProto, random: Any) -> ModelProto:
    """The same model with its nodes in another topological order."""
    copy = helpers.copied(model)
    ready = {item.name for item in (*copy.graph.input, *copy.graph.initializer)}
    waiting, ordered = list(model.graph.node), []
    while waiting:
        free = [node for node in waiting if all(not name or name in ready for name in node.input)]
        node = random.choice(free)
        ordered.append(node)
        ready.update(node.output)
        waiting.remove(node)
    del copy.graph.node[:]
    copy.graph.node.extend(ordered)
    return copy


def renamed(model: ModelProto, random: Any) -> ModelProto:
    """The same model with every value and node under another name."""
    copy = helpers.copied(model)
    graph = copy.graph
    values = {item.name for item in (*graph.input, *graph.initializer, *graph.output)}
    values |= {name for node in graph.node for name in node.output if name}
    numbers = list(range(len(values)))
    random.shuffle(numbers)
    names = dict(zip(sorted(values), (f"t.{number}" for number in numbers), strict=True))
    for item in (*graph.input, *graph.initializer, *graph.output, *graph.value_info):
        item.name = names.get(item.name, item.name)
    for number, node in enumerate(graph.node):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.name = random.choice(["", f"n/{number}"])
    return copy


# -- the properties -----------------------------------------------------------------------------------------------------


def given_to(model: ModelProto) -> list[dict[str, Any]]:
    """Inputs of two sizes, masks of both kinds among them; rejected where the model itself does not run."""
    feeds = graphs.feeds_of(model, {"B": 2, "S": 3}, {"B": 1, "S": 1})
    try:
        onnx.checker.check_model(model, full_check=True)
        session = helpers.session(model)
        for one in feeds:
            session.run(None, one)
    except Exception:
        reject()
    return feeds


def what_fused(outcome: graphs.Outcome) -> list[str]:
    """Operators, parts, inputs and attributes, in an order that names and positions have no say in."""
    found = []
    nodes = {node.name: node for node in outcome.model.graph.node}
    for match in outcome.report.matches:
        attributes = outcome.attributes(nodes[match.node])
        record = [match.operator, list(match.parts), sorted(match.inputs), sorted(match.outputs)]
        found.append(json.dumps([*record, sorted((key, str(value)) for key, value in attributes.items())]))
    return sorted(found)


@settings(PROFILE, max_examples=100)
@given(model=perturbed())
def test_what_is_fused_computes_the_same(model: ModelProto) -> None:
    feeds = given_to(model)
    outcome = graphs.fused(model, EVERY)
    graphs.assert_equal(model, outcome.model, feeds, 1e-4)
    for match in outcome.report.matches:
        assert match.replaced


@settings(PROFILE, max_examples=60)
@given(model=perturbed(HARMLESS))
def test_harmless_changes_do_not_stop_a_fusion(model: ModelProto) -> None:
    feeds = given_to(model)
    outcome = graphs.fused(model, EVERY)
    assert outcome.report.fused
    graphs.assert_equal(model, outcome.model, feeds)


@settings(PROFILE, max_examples=60)
@given(model=perturbed(), random=st.randoms(use_true_random=False))
def test_order_and_names_do_not_decide_what_fuses(model: ModelProto, random: Any) -> None:
    given_to(model)
    want = what_fused(graphs.fused(model, EVERY))
    assert what_fused(graphs.fused(shuffled(model, random), EVERY)) == want
    assert what_fused(graphs.fused(renamed(model, random), EVERY)) == want


@settings(PROFILE, max_examples=40)
@given(model=perturbed())
def test_fusing_twice_changes_nothing(model: ModelProto) -> None:
    given_to(model)
    once = graphs.fused(model, EVERY).model
    again = graphs.fused(once, EVERY)
    assert again.report.fused == {}
    assert again.model.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)
