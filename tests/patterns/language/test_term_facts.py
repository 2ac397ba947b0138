"""What terms say before anything is matched."""

from __future__ import annotations

import time

from onnx_fuse.patterns import pattern


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
