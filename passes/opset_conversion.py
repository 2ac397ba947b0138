"""Models older than the bodies can be written for: brought to the oldest opset that can, or left alone with a sentence."""

from __future__ import annotations

from onnx import FunctionProto, ModelProto, version_converter

from onnx_fuse.errors import ModelError
from onnx_fuse.passes.files.checker import check
from onnx_fuse.passes.files.external_data import materialise
from onnx_fuse.passes.graph.onnx_inference import in_bounds
from onnx_fuse.passes.report import Log

OLDEST = 13
"""The oldest opset that bodies are written for."""


class Convert:
    """Brings a model of an older opset to `least` with onnx's version converter.

    What it cannot convert stays as it is, and the report says so; before `OLDEST` the fusions then have nothing to work on.

    Args:
        least: the opset to convert to.
        spoils: what is wrong with the model that the converter makes, a clause; None where nothing is known to be.
    """

    name = "convert"
    atomic = True

    def __init__(self, least: int = OLDEST, spoils: str | None = None) -> None:
        self.least = least
        self.spoils = spoils

    def run(self, model: ModelProto, log: Log) -> ModelProto:
        opset = opset_of(model)
        if opset == 0 or opset >= self.least:
            return model
        so = ", so nothing was fused" if opset < OLDEST else ""
        if self.spoils is not None:
            log.warnings.append(_spoilt(opset, self.least, so, self.spoils))
            return model
        if model.functions or model.training_info:
            log.warnings.append(
                f"opset {opset} is older than {self.least} and was not converted{so}: onnx's converter would lose the model's "
                "functions. Inline them first (onnx.inliner)."
            )
            return model
        materialise(model)  # the converter drops what it finds in no field of numbers
        try:
            converted = in_bounds(lambda: version_converter.convert_version(model, self.least), model)
        except Exception as error:
            sentence = " ".join(str(error).split())[:300].rstrip(".")
            log.warnings.append(f"opset {opset} is older than {self.least} and could not be converted{so}: {sentence}.")
            return model
        try:
            check(converted)
        except ModelError as error:
            log.warnings.append(_spoilt(opset, self.least, so, f"it made a model that is invalid: {error.cause}"))
            return model
        converted.metadata_props.extend(
            entry for entry in model.metadata_props if entry not in converted.metadata_props
        )
        return converted


def _spoilt(opset: int, least: int, so: str, problem: str) -> str:
    return f"opset {opset} is older than {least} and stays{so}: onnx.version_converter failed, {problem.rstrip('.')}."


def opset_of(model: ModelProto | FunctionProto) -> int:
    """Version of ONNX's own operators that a model or function uses; 0 where it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
