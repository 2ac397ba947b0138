"""Fusions of a few nodes that no model has, so that tests can say exactly what is fused."""

from __future__ import annotations

from typing import Any

from onnx import ModelProto

from onnx_fuse.passes.files.checker import check
from onnx_fuse.passes.graph.index import graphs
from onnx_fuse.passes.report import NearMissRecord, Report
from onnx_fuse.patterns import Fusion, fusions, pattern
from tests.helpers import assert_same_results, fused, fusion_of, model


@pattern
def bump(op, x):
    return op.Cos(op.Neg(op.Sin(x)))


@pattern
def long_bump(op, x):
    return op.Sqrt(op.Abs(op.Cos(op.Neg(op.Sin(x)))))


@pattern
def pair(op, x):
    total = op.named("total", op.Elu(x))
    return op.Softsign(total)


BUMP = fusion_of(bump, lambda op, x: op.Cos(op.Neg(op.Sin(x))), name="Bump")


LONG = fusion_of(long_bump, lambda op, x: op.Sqrt(op.Abs(op.Cos(op.Neg(op.Sin(x))))), name="Long")


def pair_body(op: Any, x: str) -> tuple[str, str]:
    total = op.Elu(x)
    return op.Softsign(total), total


PAIR = fusion_of(pair, pair_body, name="Pair", outputs=("output", "total"), optional={"total": "total"})


SWISH = next(fusion for fusion in fusions() if fusion.name == "FusedSwish")


def rewritten(text: str, *chosen: Fusion, **options: Any) -> tuple[ModelProto, ModelProto, Report]:
    """The model before and after, which is valid, computes the same, and is what fusing gives every time."""
    before = model(text, **options)
    after, report = fused(before, *chosen)
    again, _ = fused(before, *chosen)
    assert after.SerializeToString() == again.SerializeToString()
    check(after, full=True)
    assert all(graph.unsound() is None for graph in graphs(after))
    assert_same_results(before, after)
    return before, after, report


def reasons(report: Report) -> list[str]:
    return [miss.reason for miss in report.near_misses]


def the_miss(report: Report, fusion: str) -> NearMissRecord:
    (found,) = [miss for miss in report.near_misses if miss.fusion == fusion]
    return found
