"""What terms say before anything is matched."""

from __future__ import annotations

import time

from onnx_fuse.patterns import pattern
from onnx_fuse.patterns.language.term_facts import choices
from onnx_fuse.patterns.language.terms import AnyOf, Named, Op


class TestSize:
    def test_a_shared_node_counts_once_and_of_alternatives_the_largest(self) -> None:
        @pattern
        def shared(op, x):
            root = op.Sqrt(op.Abs(x))
            return op.Div(op.any_of(x, op.Neg(root)), root)

        @pattern
        def silu(op, x, beta):
            return op.Mul(x, op.Sigmoid(op.any_of(op.Mul(x, beta), x)))

        assert silu.size == 3 and shared.size == 4

    def test_trees_count_their_least(self) -> None:
        @pattern
        def looked_up(op, table, ids):
            return op.LayerNormalization(op.tree("Add", op.Gather(table, ids), least=3))

        assert looked_up.size == 1 + 2 + 3

    def test_it_is_found_quickly_whatever_the_alternatives(self) -> None:
        started = time.process_time()

        @pattern
        def nested(op, x):
            term = op.Abs(x)
            for _ in range(60):
                term = op.Add(op.any_of(term, term), term)
            return term

        assert nested.size == 61 and time.process_time() - started < 2


class TestChoices:
    @staticmethod
    def shown(term: AnyOf, op_type: str) -> list[str | list[str]]:
        """The alternatives to try by their operators, in a list those that cannot fit."""
        found: list[str | list[str]] = []
        for item in choices(term, ("", op_type)):
            if isinstance(item, tuple):
                found.append([op.op_types[0] for op in item])
            else:
                found.append(item.op_types[0] if isinstance(item, Op) else type(item).__name__)
        return found

    @staticmethod
    def alternatives(made: object) -> AnyOf:
        root = made.root  # type: ignore[attr-defined]
        term = root.inputs[0]
        assert isinstance(term, AnyOf)
        return term

    def test_what_cannot_fit_is_put_together_where_it_stands(self) -> None:
        @pattern
        def several(op, x):
            nested = op.any_of(op.Sin(x), op.named("cos", op.Cos(x)))
            return op.Relu(op.any_of(op.Abs(x), nested, op.Neg(x), op.Exp(x), op.domain("my").Neg(x), x))

        term = self.alternatives(several)
        assert self.shown(term, "Neg") == [["Abs", "Sin", "Cos"], "Neg", ["Exp", "Neg"], "Variable"]
        assert self.shown(term, "Cos") == [["Abs"], "AnyOf", ["Neg", "Exp", "Neg"], "Variable"]
        assert [type(item) for item in choices(term, None)] == [tuple, type(several.variables["x"])]

    def test_a_shape_may_fit_whatever_makes_the_value(self) -> None:
        @pattern
        def shaped(op, x):
            return op.Relu(op.any_of(op.shape(op.Abs(x), "B S"), op.tree("Add", x), op.Sin(x)))

        assert self.shown(self.alternatives(shaped), "Neg") == ["Shaped", "Tree", ["Sin"]]

    def test_they_are_found_quickly_whatever_they_share(self) -> None:
        started = time.process_time()
        term = AnyOf((Op(("Abs",), ()), Op(("Sin",), ())))
        for _ in range(60):
            term = AnyOf((term, Named(term, "again")))
        assert self.shown(term, "Neg") == [["Abs", "Sin"] * 2]
        assert self.shown(term, "Sin") == ["AnyOf", "Named"]
        assert time.process_time() - started < 2
