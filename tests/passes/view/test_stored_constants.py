"""Constants as they are stored: read when they are asked for, and no further than that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.view.overlay import Overlay
from onnx_fuse.passes.view.stored_constants import StoredConstants
from tests.helpers import Builder


def stored(made: onnx.ModelProto, folder: Path | None = None) -> tuple[Overlay, StoredConstants]:
    overlay = Overlay(Graph(made.graph, made))
    return overlay, StoredConstants(overlay, folder)


def test_a_constant_of_the_view_is_stored_like_one_of_the_model() -> None:
    made = Builder(x=[2])
    name = made.array(np.array([3, 4], np.int64))
    overlay, found = stored(made.model(made.node("Abs", "x")))
    own = overlay.array(np.array([3, 4], np.int64))
    assert found.has(name) and found.has(own) and not found.has("x") and not found.has(made.nodes[0].output[0])
    assert found.info(name) == found.info(own) and found.content(name) == found.content(own)
    assert found.info("x") is None and found.array("x") is None and found.content("x") is None


def test_the_content_of_small_integers_is_known_and_of_others_the_shape_alone() -> None:
    made = Builder(x=[2])
    shape, weight = made.array(np.array([2, -1], np.int64)), made.array(np.ones((2, 3), np.float32))
    _, found = stored(made.model(made.node("Abs", "x")))
    known = found.info(shape), found.info(weight)
    assert known[0] is not None and (known[0].shape, known[0].content) == ((2,), (2, -1))
    assert known[1] == (TensorProto.FLOAT, (2, 3), None)
    assert found.looked_at == {shape}  # the weight was not decoded


def test_equal_bytes_of_another_type_or_shape_are_another_content() -> None:
    made = Builder(x=[2])
    zeros = [np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros(4, np.int32), np.zeros(4, np.float32)]
    names = [made.array(array) for array in zeros]
    _, found = stored(made.model(made.node("Abs", "x")))
    contents = [found.content(name) for name in names]
    assert contents[0] == contents[3] and len(set(contents)) == 3


@pytest.mark.parametrize("known", [True, False])
def test_small_constants_in_external_data_are_read_where_the_folder_is_known(tmp_path: Path, known: bool) -> None:
    made = Builder(x=[2])
    name = made.array(np.array([1.5, 2.5], np.float32))
    path = tmp_path / "model.onnx"
    onnx.save(
        made.model(made.node("Add", "x", name)), path, save_as_external_data=True, location="data", size_threshold=0
    )
    _, found = stored(onnx.load(path, load_external_data=False), tmp_path if known else None)
    array = found.array(name)
    assert found.has(name) and (array is not None) == known
    if array is not None:
        np.testing.assert_array_equal(array, [1.5, 2.5])


def test_what_is_larger_than_the_limit_is_not_read() -> None:
    made = Builder(x=[2])
    name = made.array(np.ones(16, np.float32))
    _, found = stored(made.model(made.node("Abs", "x")))
    assert found.array(name, 15) is None and found.array(name, 16) is not None
