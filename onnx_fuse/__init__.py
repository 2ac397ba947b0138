"""onnx-fuse: compiler passes that fuse subgraphs of ONNX models into single nodes backed by TensorRT plugins.

    result = onnx_fuse.fuse("model.onnx")
    result.save("fused.onnx")
    print(result.report.fused)

Everything here is imported on first use, so that `import onnx_fuse` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_fuse.versions import __version__

_EXPORTS = {
    "fuse": "onnx_fuse.api",
    "explain": "onnx_fuse.api",
    "FuseResult": "onnx_fuse.api",
    "fusions": "onnx_fuse.api",
    "export": "onnx_fuse.exporting.step",
    "finish_export": "onnx_fuse.exporting.step",
    "Exported": "onnx_fuse.exporting.step",
    "custom_op": "onnx_fuse.exporting.custom_ops",
    "LearnedFusion": "onnx_fuse.learning",
    "OwnKernel": "onnx_fuse.own_kernels.declaration",
    "verify": "onnx_fuse.runtime.verify.verification",
    "Verification": "onnx_fuse.runtime.verify.verification",
    "Pipeline": "onnx_fuse.passes.pipeline",
    "Report": "onnx_fuse.passes.report",
    "Graph": "onnx_fuse.passes.graph.index",
    "pattern": "onnx_fuse.patterns.language.dsl",
    "Attribute": "onnx_fuse.patterns.language.dsl",
    "Constant": "onnx_fuse.patterns.language.dsl",
    "Optional": "onnx_fuse.patterns.language.dsl",
    "Scalar": "onnx_fuse.patterns.language.dsl",
    "Fused": "onnx_fuse.patterns.language.operator",
    "FusedOp": "onnx_fuse.patterns.language.operator",
    "Fusion": "onnx_fuse.patterns.language.operator",
    "OnnxFuseError": "onnx_fuse.errors",
    "FusionWarning": "onnx_fuse.errors",
    "LearnError": "onnx_fuse.errors",
    "ModelError": "onnx_fuse.errors",
    "OutputError": "onnx_fuse.errors",
    "PatternError": "onnx_fuse.errors",
    "RequirementError": "onnx_fuse.errors",
    "RewriteError": "onnx_fuse.errors",
    "UsageError": "onnx_fuse.errors",
    "VerificationError": "onnx_fuse.errors",
}

__all__ = [
    "Attribute",
    "Constant",
    "Exported",
    "FuseResult",
    "Fused",
    "FusedOp",
    "Fusion",
    "FusionWarning",
    "Graph",
    "LearnError",
    "LearnedFusion",
    "ModelError",
    "OnnxFuseError",
    "Optional",
    "OutputError",
    "OwnKernel",
    "PatternError",
    "Pipeline",
    "Report",
    "RequirementError",
    "RewriteError",
    "Scalar",
    "UsageError",
    "Verification",
    "VerificationError",
    "__version__",
    "custom_op",
    "explain",
    "export",
    "finish_export",
    "fuse",
    "fusions",
    "pattern",
    "verify",
]

if TYPE_CHECKING:
    from onnx_fuse.api import FuseResult, explain, fuse, fusions
    from onnx_fuse.errors import (
        FusionWarning,
        LearnError,
        ModelError,
        OnnxFuseError,
        OutputError,
        PatternError,
        RequirementError,
        RewriteError,
        UsageError,
        VerificationError,
    )
    from onnx_fuse.exporting.custom_ops import custom_op
    from onnx_fuse.exporting.step import Exported, export, finish_export
    from onnx_fuse.learning import LearnedFusion
    from onnx_fuse.own_kernels.declaration import OwnKernel
    from onnx_fuse.passes.graph.index import Graph
    from onnx_fuse.passes.pipeline import Pipeline
    from onnx_fuse.passes.report import Report
    from onnx_fuse.patterns.language.dsl import Attribute, Constant, Optional, Scalar, pattern
    from onnx_fuse.patterns.language.operator import Fused, FusedOp, Fusion
    from onnx_fuse.runtime.verify.verification import Verification, verify


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
