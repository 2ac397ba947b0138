"""What times models: an engine is built for one shape, opened, and asked for the time of its computation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnx_fuse.runtime.device.engine_file import ShapeRange
from onnx_fuse.runtime.device.gpus import Gpu
from onnx_fuse.runtime.measure import timers
from onnx_fuse.runtime.measure.timers import EngineTimer
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.config import EngineConfig
from tests.helpers import model


def test_an_engine_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With doubles of the builder and the engine, which need a GPU."""
    built: list[tuple[Path, EngineConfig, Path | None]] = []

    def build(model: Any, target: Path, config: EngineConfig, *, base_dir: Path | None) -> None:
        built.append((target, config, base_dir))

    class Engine:
        def __init__(self, target: Path) -> None:
            assert target == built[-1][0]

        def timed(self, inputs: dict[str, Any]) -> Any:
            assert inputs["x"].shape == (3, 4)
            return {}, SimpleNamespace(compute=0.25)

    monkeypatch.setattr(binding, "module", lambda: SimpleNamespace(__name__="tensorrt", __version__="10.7"))
    monkeypatch.setattr(timers, "Engine", Engine)
    monkeypatch.setenv("ONNX_FUSE_PLUGINS", "")
    timer = EngineTimer(Gpu("L4", 89, 24 << 30), {"n": 3}, tmp_path, build)
    assert timer.name == "L4, tensorrt 10.7, plugins none"
    assert timer.open(model("(float[n,4] x) => (float[n,4] y) { y = Relu(x) }"))() == 0.25
    ((_, config, base_dir),) = built
    assert config.profiles == ({"x": ShapeRange((3, 4), (3, 4), (3, 4))},) and config.select == "all"
    assert base_dir == tmp_path
