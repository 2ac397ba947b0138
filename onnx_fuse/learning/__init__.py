"""Fusing by example: `from_torch` and `from_onnx` learn a fusion, `load` reads one that was saved."""

from onnx_fuse.learning.learn import LearnedFusion, from_example, from_onnx, from_torch, load, require_name

__all__ = ["LearnedFusion", "from_example", "from_onnx", "from_torch", "load", "require_name"]
