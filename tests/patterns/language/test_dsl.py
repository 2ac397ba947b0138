"""Patterns as data: what a traced function says, and what it is told when it says nothing."""

from __future__ import annotations

from typing import Any

import pytest

import onnx_fuse
from onnx_fuse.errors import PatternError
from onnx_fuse.patterns import Attribute, Constant, Optional, Pattern, Scalar, Value, pattern
from onnx_fuse.patterns.language.dsl import NEVER_SHOWN
from onnx_fuse.patterns.language.terms import AnyOf, Number, Op, Output, Shaped, Tree


@pattern
def silu(op, x, beta: Scalar):
    """x * sigmoid(beta x)."""
    return op.Mul(x, op.Sigmoid(op.any_of(op.Mul(x, beta), x)))


class TestTracing:
    def test_a_pattern_carries_its_function_s_name_and_text(self) -> None:
        assert (silu.name, silu.doc) == ("silu", "x * sigmoid(beta x).")
        assert "silu" in repr(silu)

    def test_its_root_is_what_matching_is_anchored_at(self) -> None:
        assert isinstance(silu.root, Op) and silu.root.op_types == ("Mul",)
        assert silu.root_keys == {("", "Mul")}

    def test_roots_of_alternatives_are_all_anchors(self) -> None:
        @pattern
        def several(op, x):
            gelu = op.domain("com.microsoft").FastGelu(x)
            return op.any_of(
                op.named("whole", op.Gelu(x)), gelu, op.node(["Erf", "Tanh"], x), op.tree("Add", op.Abs(x))
            )

        assert several.root_keys == {
            ("", "Gelu"), ("com.microsoft", "FastGelu"), ("", "Erf"), ("", "Tanh"), ("", "Add"),
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("annotation", "kind"),
        [
            (Value, "value"),
            (Constant, "constant"),
            (Scalar, "scalar"),
            (Optional, "optional"),
            (Attribute, "attribute"),
        ],
    )
    def test_annotations_say_what_a_variable_may_bind(self, annotation: Any, kind: str) -> None:
        def made(op: Any, x: Any, y: Any) -> Any:
            return op.Mul(x, y)

        made.__annotations__ = {"y": annotation}
        found = pattern(made)
        assert (found.variables["x"].kind, found.variables["y"].kind) == ("value", kind)

    def test_they_may_be_written_as_text(self) -> None:
        """`from __future__ import annotations` makes text of all annotations, as in this module."""
        assert silu.variables["beta"].kind == "scalar"

    def test_the_same_names_are_at_the_front_door(self) -> None:
        for name in ("pattern", "Attribute", "Constant", "Optional", "Scalar", "Fused", "FusedOp", "Fusion"):
            assert getattr(onnx_fuse, name).__module__.startswith("onnx_fuse.patterns")

    def test_numbers_stand_for_constants(self) -> None:
        @pattern
        def halved(op, x):
            return op.Mul(x, 0.5)

        assert isinstance(halved.root, Op)
        number = halved.root.inputs[1]
        assert isinstance(number, Number) and number.value == 0.5

    def test_dimensions_are_names_numbers_or_blanks(self) -> None:
        @pattern
        def shaped(op, x, y):
            return op.Add(op.shape(x, "B 16 _ -1"), op.shape(y, ["B", 16]))

        assert isinstance(shaped.root, Op)
        first, second = shaped.root.inputs
        assert isinstance(first, Shaped) and first.dims == ("B", 16, "_", -1)
        assert isinstance(second, Shaped) and second.dims == ("B", 16)

    def test_several_outputs_are_parts_of_one_node(self) -> None:
        @pattern
        def glu(op, x):
            value, gate = op.Split(x, outputs=2, axis=-1)
            return op.Mul(value, op.Sigmoid(gate))

        assert isinstance(glu.root, Op)
        value = glu.root.inputs[0]
        assert isinstance(value, Output) and value.index == 0 and value.op.attributes == {"axis": -1}

    def test_several_results(self) -> None:
        @pattern
        def both(op, x):
            total = op.Abs(x)
            return op.Relu(total), total

        assert len(both.others) == 1 and both.size == 2


class TestMistakes:
    def refused(self, function: Any) -> PatternError:
        with pytest.raises(PatternError) as caught:
            pattern(function)
        assert caught.value.cause and caught.value.remedy
        return caught.value

    def test_no_parameter(self) -> None:
        def nothing() -> None: ...

        assert "nothing has no parameter" in self.refused(nothing).cause

    def test_no_operator(self) -> None:
        assert "is a bare variable" in self.refused(lambda op, x: x).cause
        assert "is a bare variable" in self.refused(lambda op, x: op.any_of(x)).cause

    @pytest.mark.parametrize("result", [None, "Relu", True, [1]])
    def test_a_result_or_operand_that_is_no_term(self, result: Any) -> None:
        assert repr(result) in self.refused(lambda op, x: result).cause
        assert repr(result) in self.refused(lambda op, x: op.Mul(x, result)).cause

    def test_an_operator_that_onnx_does_not_have(self) -> None:
        error = self.refused(lambda op, x: op.Softmaxx(x))
        assert "Softmaxx" in error.cause and "Did you mean Softmax?" in error.remedy
        pattern(lambda op, x: op.domain("com.microsoft").FastGelu(x))

    @pytest.mark.parametrize("op_type", NEVER_SHOWN)
    def test_an_operator_that_the_view_does_not_show(self, op_type: str) -> None:
        error = self.refused(lambda op, x: op.Relu(op.node(("Abs", op_type), x)))
        assert op_type in error.cause and "The view has" in error.remedy

    def test_a_gemm_that_stays_one(self) -> None:
        assert pattern(lambda op, x, w: op.Gemm(x, w, transA=1)).size == 1

    def test_an_unknown_annotation(self) -> None:
        def odd(op, x: float):
            return op.Relu(x)

        odd.__annotations__ = {"x": float}
        error = self.refused(odd)
        assert "parameter x" in error.cause and "Scalar" in error.remedy


def test_terms_are_compared_by_identity() -> None:
    """Two nodes that look alike in a pattern may be two nodes of the graph."""

    @pattern
    def alike(op, x):
        return op.Add(op.Abs(x), op.Abs(x))

    assert isinstance(alike.root, Op)
    first, second = alike.root.inputs
    assert first != second and alike.size == 3


def test_requirements_are_kept_in_order_and_returned() -> None:
    @pattern
    def relu(op, x):
        return op.Relu(x)

    @relu.require
    def one(match: Any, view: Any) -> str | None:
        return None

    @relu.require
    def two(match: Any, view: Any) -> str | None:
        return None

    assert relu.requirements == [one, two] and one(None, None) is None


def test_only_operands_that_commute_are_swapped() -> None:
    def root(build: Any) -> Op:
        found = Pattern(build).root
        assert isinstance(found, Op)
        return found

    assert root(lambda op, x, y: op.Add(x, y)).commutative
    assert root(lambda op, x, y: op.node(["Add", "Mul"], x, y)).commutative
    assert not root(lambda op, x, y: op.Sub(x, y)).commutative
    assert not root(lambda op, x, y: op.node(["Add", "Sub"], x, y)).commutative
    assert not root(lambda op, x, y: op.domain("my").Add(x, y)).commutative


def test_an_optional_node_is_two_alternatives() -> None:
    @pattern
    def optional(op, x):
        return op.Relu(op.optional(op.Neg(x), x))

    assert isinstance(optional.root, Op)
    term = optional.root.inputs[0]
    assert isinstance(term, AnyOf) and len(term.alternatives) == 2


def test_trees_have_bounds() -> None:
    @pattern
    def tree(op, x):
        return op.tree("Add", op.Abs(x), least=2, most=5, count="n")

    assert isinstance(tree.root, Tree) and (tree.root.least, tree.root.most, tree.root.count) == (2, 5, "n")
