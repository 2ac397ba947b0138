"""Weights of one name are compared byte for byte, wherever and however they are held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_fuse.runtime.verify import weights
from onnx_fuse.runtime.verify.weights import changed_weights
from tests import helpers

VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)


def model(values: np.ndarray = VALUES) -> ModelProto:
    return helpers.model("(float[n,4] x) => (float[n,6] y) { y = MatMul(x, w) }", weights={"w": values})


def outside(made: ModelProto, folder: Path, name: str = "w.bin") -> ModelProto:
    """The model with its weight in a file."""
    folder.mkdir(exist_ok=True)
    onnx.save(made, folder / "m.onnx", save_as_external_data=True, location=name, size_threshold=0)
    return onnx.load(folder / "m.onnx", load_external_data=False)


def test_equal_bytes_in_any_form(tmp_path: Path) -> None:
    listed = model()
    listed.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [4, 6], VALUES.ravel().tolist()))
    one, other = outside(model(), tmp_path / "one"), outside(model(), tmp_path / "other")
    forms = [(model(), None), (listed, None), (one, tmp_path / "one"), (other, tmp_path / "other")]
    for first, first_dir in forms:
        for second, second_dir in forms:
            assert changed_weights(first, first_dir, second, second_dir) == ([], 1)


def test_the_same_place_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = outside(model(), tmp_path)
    monkeypatch.setattr(weights, "_bytes", lambda *_: pytest.fail("read"))
    assert changed_weights(made, tmp_path, made, tmp_path) == ([], 1)


@pytest.mark.parametrize("place", [0, 50, 95])
def test_one_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """In the first, a middle and the last piece of a file."""
    monkeypatch.setattr(weights, "_CHUNK", 16)
    made = outside(model(), tmp_path)
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[place] ^= 1
    (tmp_path / "w.bin").write_bytes(data)
    sentence = f"the weight 'w' has other bytes than in the original, from byte {place} on"
    assert changed_weights(model(), None, made, tmp_path) == ([sentence], 1)


def test_type_shape_and_strings() -> None:
    assert changed_weights(model(), None, model(VALUES.T.copy()), None)[0] == [
        "the weight 'w' is float[6, 4], was float[4, 6]"
    ]
    assert changed_weights(model(), None, model(VALUES.astype(np.float16)), None)[0] == [
        "the weight 'w' is float16[4, 6], was float[4, 6]"
    ]
    words = [model(np.array(text, object)) for text in (["a", "b"], ["a", "c"])]
    assert changed_weights(words[0], None, words[0], None)[0] == []
    assert changed_weights(words[0], None, words[1], None)[0] == [
        "the weight 'w' holds other strings than in the original"
    ]


def test_constants_and_branches_count_and_names_used_twice_do_not() -> None:
    def branched(inside: float, twice: float) -> ModelProto:
        made = helpers.model(
            "(bool c, float[2] x) => (float[2] y) { k = Constant <value = float[2] {1, 2}> ()  z = Add(x, k)  y = If (c) < "
            "then_branch = t () => (float[2] a) { a = Add(z, v) }, else_branch = e () => (float[2] b) { b = Add(z, u) } > }"
        )
        branches = made.graph.node[-1].attribute
        branches[0].g.initializer.append(numpy_helper.from_array(np.float32([inside, 1]), "v"))
        branches[1].g.initializer.append(numpy_helper.from_array(np.float32([1, 1]), "u"))
        made.graph.initializer.append(numpy_helper.from_array(np.float32([twice]), "u"))
        return made

    assert changed_weights(branched(1, 1), None, branched(1, 2), None) == ([], 2)
    assert len(changed_weights(branched(1, 1), None, branched(3, 1), None)[0]) == 1


def test_a_file_that_is_missing_is_a_difference(tmp_path: Path) -> None:
    made = outside(model(), tmp_path)
    (tmp_path / "w.bin").unlink()
    assert changed_weights(model(), None, made, tmp_path)[0] == [
        "the weight 'w' cannot be compared: No such file or directory"
    ]
