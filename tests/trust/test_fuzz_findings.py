"""What the fuzzer has found, each made again by hand, and a short run of it on cases that hypothesis draws."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnx_fuse
from onnx_fuse.errors import ModelError
from onnx_fuse.passes.files.encoding import broken_text
from onnx_fuse.passes.graph.constants import decode
from onnx_fuse.passes.graph.index import Graph
from tests import helpers
from tests.trust import fuzz
from tests.trust.fuzz import Case
from tests.trust.mutations import (
    MUTATIONS,
    SEEDS,
    attention_block,
    attention_core,
    branches,
    embedding,
    swish_and_gelu,
)

Edit = Callable[[ModelProto], None]


def spoiled(seed: Callable[[], ModelProto], edit: Edit) -> ModelProto:
    model = seed()
    edit(model)
    return model


def fused(model: ModelProto, **options: bool | str) -> onnx_fuse.FuseResult:
    result = onnx_fuse.fuse(model, enable=fuzz.OPT_IN, verify=False, **options)  # type: ignore[arg-type]
    assert not [item for item in result.report.warnings if " raised " in item], result.report.warnings
    return result


def node(model: ModelProto, output: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def weight(model: ModelProto, name: str, array: np.ndarray) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


class TestFindings:
    def test_a_batch_of_none_is_not_fused(self) -> None:
        """The bodies' Reshape to [0, -1, ..] does not load on what has no elements."""
        model = attention_block()
        for value in (*model.graph.input, *model.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param == "B":
                    dim.dim_value = 0
        result = fused(model)
        assert not result.report.matches
        assert any("has no elements" in miss.reason for miss in result.report.near_misses)

    def test_axes_of_a_scalar(self) -> None:
        """An axis was counted modulo a rank of 0."""
        model = embedding()
        node(model, "mean").input[0] = "epsilon"
        fused(model)

    def test_unsqueeze_to_axes_beyond_the_rank(self) -> None:
        """A generator ran dry inside a rule of shape inference."""
        for axes in ([7], [-9], [0, 0]):
            model = embedding()
            model.graph.initializer.append(numpy_helper.from_array(np.array(axes), "far"))
            node(model, "end").input[1] = "far"
            fused(model)

    def test_a_transpose_that_is_no_permutation(self) -> None:
        model = attention_block()
        for value in (*model.graph.input, *model.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                dim.dim_value = dim.dim_value or 2
        for perm in ([0, 3, 0, 2], [0, 1, 2, 9], [0, 1]):
            node(model, "moved").attribute[0].ints[:] = perm
            fused(model)

    def test_a_weight_whose_data_contradict_its_shape(self) -> None:
        for dims in ([3], [], [9], [-1]):
            model = attention_core()
            next(tensor for tensor in model.graph.initializer if tensor.name == "qs").dims[:] = dims
            with pytest.raises(ModelError, match="'qs'"):
                fused(model)
        tensor = TensorProto(name="t", data_type=TensorProto.INT64, dims=[3], raw_data=bytes(8))
        assert decode(tensor) is None

    def test_a_constant_whose_data_contradict_its_shape(self) -> None:
        model = attention_core()
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "half")
        bad = TensorProto(name="half", data_type=TensorProto.FLOAT, dims=[], raw_data=bytes(2))
        model.graph.initializer.remove(tensor)
        nodes = [helper.make_node("Constant", [], ["half"], value=bad), *map(helpers_copy, model.graph.node)]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        fused_or_refused(model)

    def test_a_type_that_onnx_does_not_know(self) -> None:
        model = branches()
        model.graph.output[0].type.tensor_type.elem_type = 99
        model.graph.input[0].type.tensor_type.elem_type = 99
        fused_or_refused(model)

    def test_what_nothing_makes_inside_a_function_or_branch(self) -> None:
        """onnx's checker does not look there; it was laid on the fusion."""
        model = branches()
        model.functions[0].output.append("c")
        with pytest.raises(ModelError, match="nothing makes the output c"):
            fused(model)
        model = branches()
        node(model, "u").attribute[0].g.output[0].name = "nowhere"
        fused_or_refused(model)

    def test_functions_of_another_opset_cannot_be_inlined(self) -> None:
        model = branches()
        model.opset_import[0].version = 21
        with pytest.raises(ModelError, match="inlined"):
            fused(model, functions="inline")

    @pytest.mark.parametrize("name", [b"Sigmoid_s", b"Mul_swish", b"swish_and_gelu"])
    def test_a_name_that_is_no_text(self, name: bytes, tmp_path: Path) -> None:
        model = swish_and_gelu()
        model.graph.name = "swish_and_gelu"
        path = tmp_path / "m.onnx"
        path.write_bytes(model.SerializeToString().replace(name, b"\xff\xfe" + name[2:]))
        read = ModelProto.FromString(path.read_bytes())
        assert broken_text(read) is not None and broken_text(model) is None
        for action in (onnx_fuse.explain, lambda item: onnx_fuse.fuse(item, enable=fuzz.OPT_IN, verify=False)):
            for item in (path, read):
                try:
                    action(item)
                except ModelError as error:
                    assert "no text" in error.cause

    def test_nothing_is_fused_that_no_output_depends_on(self) -> None:
        """Dead nodes that a fused node would have read were taken away with those that it replaced."""
        model = attention_block()
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["B", 1, 1, "S"]))
        result = fused(model)
        assert not result.report.matches
        assert result.model == model

    def test_added_nodes_have_names_of_their_own(self) -> None:
        """ONNX Runtime refuses two nodes of one name."""
        model = attention_core()
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "B"
        for one in (
            model,
            spoiled(swish_and_gelu, lambda item: setattr(item.graph.node[0], "name", "swish/FusedSwish")),
        ):
            result = fused(one, simplify=True)
            names = [node.name for node in result.model.graph.node if node.name]
            assert len(names) == len(set(names))
            helpers.session(result.model)
        graph = Graph(model.graph, model)
        graph.edit(add=[(0, helper.make_node("Identity", ["q"], ["q_again"], name=model.graph.node[0].name))])
        names = [node.name for node in model.graph.node]
        assert len(names) == len(set(names))

    def test_what_is_carried_behind_a_fused_node_is_written_once(self) -> None:
        """A move needed by another move behind the fused node came twice."""
        model = attention_block()
        weights = {"rows": np.array([-1, 8]), "back": np.array([0, 0, 8]), "wr": np.eye(8, dtype=np.float32)}
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
        made = [
            helper.make_node("Transpose", ["y"], ["first"], perm=[1, 0, 2]),
            helper.make_node("Reshape", ["first", "rows"], ["flattened"]),
            helper.make_node("Gemm", ["flattened", "wr"], ["gemm"]),
            helper.make_node("Reshape", ["gemm", "rows"], ["z"]),
            helper.make_node("Unsqueeze", ["first", "zero"], ["w"]),
        ]
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
        model.graph.node.extend(made)
        model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["R", 8]))
        model.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, "S", "B", 8]))
        helpers.assert_same_results(model, fused(model).model)
        helpers.assert_same_results(model, fused(model, simplify=True).model)


def helpers_copy(proto: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(proto)
    return copy


def fused_or_refused(model: ModelProto) -> None:
    with contextlib.suppress(ModelError):
        fused(model)


# -- a short run -----------------------------------------------------------------------------------------------------------

CASES = st.builds(
    Case,
    st.sampled_from(sorted(SEEDS)),
    st.lists(st.tuples(st.sampled_from(sorted(MUTATIONS)), st.integers(0, 1 << 32)), max_size=3).map(tuple),
    st.one_of(st.just(0), st.just(0), st.just(0), st.integers(1, 1 << 32)),
    st.booleans(),
    st.booleans(),
)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    yield
    ort.set_default_logger_severity(2)


@settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(CASES)
def test_spoiled_models(case: Case) -> None:
    outcome = fuzz.judge(case)
    assert not outcome.is_finding, outcome


@pytest.mark.parametrize(
    "case", [Case("branches", flip=4155714110, inline=True), Case("embedding", flip=3323276831, inline=True)], ids=str
)
def test_names_that_are_no_text_are_refused(case: Case) -> None:
    """A fusion stumbled over them, which was told as its own fault."""
    outcome = fuzz.judge(case)
    assert outcome.kind == "refused" and "is no text in UTF-8" in outcome.detail


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_the_seed_models_fuse(name: str) -> None:
    """A seed that does not fuse would make a fuzzer that finds nothing."""
    assert fuzz.judge(Case(name)).kind == "same"
    assert fuzz.judge(Case(name, simplify=True, inline=True)).kind == "same"


def test_a_wrong_model_is_told_from_a_right_one() -> None:
    """The fuzzer's own eye: a fused model with another epsilon, scale or weight differs."""
    model = attention_block()
    right = fused(model).model
    assert fuzz.compare(model, right).kind == "same"
    wrong = ModelProto.FromString(right.SerializeToString())
    weight(wrong, "bo", np.full(8, 0.3, np.float32))
    assert fuzz.compare(model, wrong).kind == "differs"
    broken = ModelProto.FromString(right.SerializeToString())
    del broken.graph.node[0]
    assert fuzz.compare(model, broken).kind == "unloadable"


def test_a_type_that_onnx_does_not_have() -> None:
    """A refusal names the type, which has no name."""
    case = Case("attention_block", mutations=(("change_declaration", 489257244),))
    assert not fuzz.judge(case).is_finding


def test_functions_that_the_converter_of_opsets_would_lose() -> None:
    """onnx's version converter drops a model's functions, and what called them could not be loaded."""
    case = Case("branches", mutations=(("change_version", 4215175573), ("change_version", 3535861432)))
    model = case.model()
    assert model.functions and not fuzz.judge(case).is_finding
    result = onnx_fuse.fuse(model, enable=["FusedSwish"], verify=False)
    assert result.model == model and "onnx's converter would lose the model's functions" in result.report.warnings[0]


@pytest.mark.parametrize(
    "case",
    [
        Case("attention_block", mutations=(("change_operator", 3551217269),)),  # a Split by fractions
        Case(
            "swish_and_gelu", mutations=(("insert_move", 2127969196), ("change_attribute", 1443596824))
        ),  # a Cast to no type
        Case(
            "branches", mutations=(("drop_node", 217400517), ("change_version", 701375564))
        ),  # a function of a later opset
    ],
    ids=str,
)
def test_what_no_exporter_writes(case: Case) -> None:
    assert not fuzz.judge(case).is_finding


def test_a_function_of_another_opset_is_left_alone() -> None:
    """Its body would be inlined into a model that has other operators."""
    model = SEEDS["branches"]()
    for entry in model.functions[0].opset_import:
        entry.version += 1 if not entry.domain else 0
    result = onnx_fuse.fuse(model, enable=["FusedSwish"], verify=False)
    assert any("its opset is" in warning for warning in result.report.warnings)
    assert result.model.functions[0] == model.functions[0]
