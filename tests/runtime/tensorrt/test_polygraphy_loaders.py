"""The loaders, with Polygraphy itself: its comparator on ONNX Runtime, its network from NVIDIA's parser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.tensorrt import binding
from tests.trust import mutations

pytest.importorskip("polygraphy")

try:
    binding.module()
except UsageError as missing:
    pytest.skip(str(missing), allow_module_level=True)

from onnx_fuse.runtime.tensorrt.polygraphy_loaders import BytesFromFused, LoadPlugins, OnnxFromFused


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    original = mutations.attention_block()
    onnx.save(original, folder / "original.onnx")
    onnx_fuse.fuse(original, verify=False).save(folder / "fused.onnx")
    return folder / "original.onnx", folder / "fused.onnx"


def test_comparator_in_onnx_runtime(models: tuple[Path, Path]) -> None:
    from polygraphy.backend.onnx import BytesFromOnnx
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, SimpleCompareFunc

    feeds = [{"x": np.random.default_rng(0).random((2, 3, 8), np.float32), "mask": np.zeros((2, 1, 1, 3), np.float32)}]
    results = Comparator.run(
        [
            OnnxrtRunner(SessionFromOnnx(str(models[0])), name="original"),
            OnnxrtRunner(SessionFromOnnx(BytesFromOnnx(OnnxFromFused(models[1]))), name="fused"),
        ],
        data_loader=feeds,
    )
    assert bool(Comparator.compare_accuracy(results, compare_func=SimpleCompareFunc(rtol=1e-4, atol=1e-5)))


def test_network_from_the_parser(models: tuple[Path, Path]) -> None:
    """Without a plugin the body is written out; the libraries are loaded before the bytes are made."""
    from polygraphy.backend.trt import NetworkFromOnnxBytes

    order = []
    loader = LoadPlugins(lambda: (order.append("bytes"), BytesFromFused(models[1])())[1], libraries=())
    _, network, _ = NetworkFromOnnxBytes(loader, strongly_typed=True)()
    names = {network.get_layer(index).name for index in range(network.num_layers)}
    assert order == ["bytes"] and any("FusedAttentionLayerNorm" in name for name in names)
    with pytest.raises(UsageError, match=r"none\.so"):
        LoadPlugins(BytesFromFused(models[1]), libraries=[models[1].with_name("none.so")])()


def test_imported_too_late() -> None:
    """Polygraphy has looked for `tensorrt` by then, and would fail later with another message."""
    if binding.module().__name__ != "tensorrt_rtx":
        pytest.skip("Polygraphy takes `tensorrt` by itself")
    code = "import polygraphy.backend.trt, onnx_fuse.runtime.tensorrt.polygraphy_loaders"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode and "Import onnx_fuse.runtime.tensorrt.polygraphy_loaders first" in done.stderr
