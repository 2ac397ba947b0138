"""The report: near misses that differ only in the layer they are in count as one."""

from __future__ import annotations

from dataclasses import replace

from onnx_fuse.passes.report import NearMissRecord, group_near_misses


def test_near_misses_of_all_layers_are_one_group() -> None:
    def miss(reason: str) -> NearMissRecord:
        return NearMissRecord(
            fusion="F", node="n", op_type="Mul", graph="", failed_at="n", matched=1, total=2, reason=reason
        )

    layers = [miss(f"its output '/h.{n}/Add_{n}' is also read by node_linear_{n} outside") for n in range(12)]
    assert [count for _, count in group_near_misses(layers)] == [12]
    different = [
        miss(f"{kind} with epsilon {number}") for kind in ("float16", "float32") for number in ("1e-05", "1e-06")
    ]
    assert [count for _, count in group_near_misses(different)] == [1, 1, 1, 1]


def test_a_sentence_names_the_place_that_stopped_it() -> None:
    at = NearMissRecord("F", "root", "Mul", "", "/layer/Add_3", 1, 2, "found Add, pattern wants MatMul")
    assert at.sentence == "found Add, pattern wants MatMul (at /layer/Add_3)"
    for named in (replace(at, failed_at="root"), replace(at, reason="its output /layer/Add_3 is a graph output")):
        assert named.sentence == named.reason
