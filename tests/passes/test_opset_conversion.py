"""Models of older opsets: converted, or left as they are where onnx's converter spoils them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from onnx import ModelProto, helper, version_converter

import onnx_fuse
from onnx_fuse.passes.opset_conversion import Convert
from onnx_fuse.passes.report import Log
from tests.helpers import assert_same_results
from tests.patterns.test_attention_layer_norm import NAME, attention


def old(norm: str = "", opset: int = 11) -> ModelProto:
    return attention(opset=opset, norm=norm)


def test_a_model_that_the_converter_keeps_is_fused() -> None:
    model = old()
    result = onnx_fuse.fuse(model)
    assert result.report.fused == {NAME: 1} and result.report.warnings == []
    assert_same_results(model, result.model)


def test_a_model_that_the_converter_changes_stays_and_the_converter_is_named() -> None:
    """Hardmax of opset 11 takes all axes from its axis on; the converter leaves that as it is."""
    model = old("normed = Hardmax <axis = 1> ({})")
    before = model.SerializeToString(deterministic=True)
    result = onnx_fuse.fuse(model)
    assert result.report.fused == {} and not result.changed
    assert result.model.SerializeToString(deterministic=True) == before
    (warning,) = result.report.warnings
    assert warning.startswith(
        "opset 11 is older than 13 and stays, so nothing was fused: onnx.version_converter failed, "
    )
    assert "computes something else: output" in warning


def test_unless_it_is_asked_not_to_compare() -> None:
    result = onnx_fuse.fuse(old("normed = Hardmax <axis = 1> ({})"), verify=False)
    assert result.report.fused == {NAME: 1}


def _without_an_input(made: ModelProto) -> None:
    made.graph.node[0].input[0] = "nowhere"


def _of_no_operator(made: ModelProto) -> None:
    made.graph.node.append(helper.make_node("NoSuchOperator", [], ["unread"]))


def _written_twice(made: ModelProto) -> None:
    made.graph.node.add().CopyFrom(made.graph.node[0])


@pytest.mark.parametrize("spoil", [_without_an_input, _of_no_operator, _written_twice])
@pytest.mark.parametrize("verify", [True, False])
def test_a_valid_model_is_not_called_invalid_for_what_the_converter_makes(
    spoil: Callable[[ModelProto], None], verify: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = version_converter.convert_version

    def spoilt(model: ModelProto, least: int) -> ModelProto:
        made = convert(model, least)
        spoil(made)
        return made

    monkeypatch.setattr(version_converter, "convert_version", spoilt)
    model = old()
    result = onnx_fuse.fuse(model, verify=verify)
    assert result.report.fused == {} and result.model.opset_import[0].version == 11
    (warning,) = result.report.warnings
    assert "onnx.version_converter failed, it made a model that is invalid: " in warning


def test_a_newer_model_is_not_converted() -> None:
    model, log = old(opset=13), Log()
    assert Convert().run(model, log) is model and log.warnings == []
    assert model.opset_import[0].version == 13
