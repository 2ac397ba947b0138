"""What is said wrongly of the operator of a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from onnx_fuse.errors import UsageError
from tests.onnx_fuse.own_kernels.kernels import MIXED, NARROW, assert_told, read


@pytest.mark.parametrize(
    "old, new, line, reason",
    [
        ("operator=MIXED", "operator=3", 39, "operator: 3 is neither the path of a learned fusion nor a FusedOp"),
        ("operator=MIXED", 'operator="mixed.onnx"', 40, "inputs: mixed.onnx says what they are"),
        ('"MixedRows"', '"Gelu"', 39, "operator: .* TensorRT would take it for an operator of its own"),
        ('domain="my.ops"', 'domain="ai.onnx.ml"', 39, "operator: .* is ONNX's own"),
        ("int64[B] ids", "int64[B ids", 40, "inputs: .* are no inputs"),
        ("int64[B] ids", "int64[] ids", 40, "inputs: the shape of ids is not given in full"),
        ("int64[B] ids, float[B, S, D] x", "float[B, S, D] x, int64[B] ids", 40, "inputs: the order .* is ids, x"),
        ("int64[B] ids", "int64[B] idx", 40, "inputs: MixedRows has no input 'idx'"),
        ("float[R, D] table", "double[R, D] table", 39, "operator: input table is double"),
        ('"scale": 0.5, ', "", 39, "operator: MixedRows lacks its attribute 'scale'"),
        ('"mode": "add"}', '"mode": [1]}', 39, "operator: the attribute mode is .1., no number or string"),
        ('"add", "multiply"]', '"multiply"]', 42, "choices: the attribute mode is a string, and 'add' is none"),
        ('choices={', 'choices={"scale": ["a"], ', 42, "choices: MixedRows has no string attribute scale"),
        ('multiples_of_16=["D"]', 'outputs={"z": ["B"]}', 51, "outputs: z is none of y, total"),
        ('multiples_of_16=["D"]', 'outputs={"total": ["B + C"]}', 51, "outputs: 'C' is none of"),
        ("return y, op.Reshape", "return y, op.NonZero(y) or op.Reshape", 39, "operator: output total is int64"),
        ("op.Gather(table", "op.Gather(tables", 39, "operator: the body of MixedRows fails: NameError: name 'tables'"),
        ("op.ints(-1))", "op.NonZero(y))", 38, "outputs: the .* of total does not follow from the body"),
    ],
)  # fmt: skip
def test_what_is_said_wrongly_is_told_with_its_line(old: str, new: str, line: int, reason: str, tmp_path: Path) -> None:
    assert_told(tmp_path, old, new, line, reason)


def test_a_namespace_in_which_the_name_is_taken(tmp_path: Path) -> None:
    text = MIXED.replace("MixedRows", "FusedSwish").replace('="my.ops"', '="my.ops", plugin_namespace="gr.ml.infra"')
    with pytest.raises(UsageError, match=r"line 39: operator: .* onnx-fuse has an operator of that name"):
        read(tmp_path, mixed=text)


def test_a_learned_fusion_that_is_not_there_or_damaged(tmp_path: Path) -> None:
    text = NARROW.replace("operator=TWICE", 'operator="twice.onnx"').replace('    inputs="float[M, 2, N] x",\n', "")
    with pytest.raises(UsageError, match=r"narrow.py, line \d+: operator: .*twice.onnx"):
        read(tmp_path, narrow=text)
    (tmp_path / "twice.onnx").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"narrow.py, line \d+: operator: .*twice.onnx"):
        read(tmp_path, narrow=text)
