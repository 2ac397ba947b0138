"""Kernel libraries for tests: the real one, built once, and some that only say what they hold."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.plugin_csrc.onnxruntime.built import library

__all__ = ["library", "recorded", "telling"]


def telling(path: Path, told: Any) -> Path:
    """A library that only tells: `told` as JSON, or as the text that it is; None: it has no such function."""
    text = told if isinstance(told, str) else json.dumps(told)
    function = f'extern "C" const char* gr_ml_infra_onnxruntime_describe() {{ return R"json({text})json"; }}'
    source = path.with_suffix(".cpp")
    source.write_text("" if told is None else function)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", path, source], check=True)
    return path


def recorded(path: Path, **changed: Any) -> Path:
    """The library with a record beside it."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {"version": "0.1.0", "sha256": sha256, "size": path.stat().st_size, "seconds": 1.0, **changed}
    path.with_name(f"{path.name}.json").write_text(json.dumps(facts))
    return path
