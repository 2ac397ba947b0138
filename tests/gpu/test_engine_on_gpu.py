"""`Engine` on a GPU, with a plugin of the library as its model: the device's memory, streams and graphs for real."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from onnx_fuse.runtime import Engine
from onnx_fuse.runtime.device import cuda
from tests.runtime.plugin_executor import PluginExecutor

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> PluginExecutor:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU that torch can use")
    from tests.gpu import drivers

    library = drivers.Cuda().library
    attributes = {"inputs": "x", "outputs": "output", "beta": 1.0}
    tensors = [("float32", ("n", 16))]
    return PluginExecutor(library, "FusedSwish", attributes, cuda.CudaDevice(), tensors, tensors)


def swish(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x.astype(np.float64)))


def inputs(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1 + seed % 32, 16)).astype(np.float32)


@pytest.mark.parametrize("graphs", [0, 4])
def test_host_arrays_from_several_threads(executor: PluginExecutor, graphs: int) -> None:
    with Engine(executor, streams=3, cuda_graphs=graphs) as engine, ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda seed: engine.infer({"x0": inputs(seed % 6)})["y0"], range(60)))
    for seed, result in enumerate(results):
        np.testing.assert_allclose(result, swish(inputs(seed % 6)), rtol=1e-5, atol=1e-6)


def test_torch_tensors_stay_on_the_gpu(executor: PluginExecutor) -> None:
    import torch

    x = torch.randn(32, 16, device="cuda")
    out = torch.empty_like(x)
    with Engine(executor) as engine:
        result = engine.infer({"x0": x})["y0"]
        assert engine.infer({"x0": x}, out={"y0": out})["y0"] is out
    assert result.is_cuda
    for found in (result, out):
        torch.testing.assert_close(found, torch.nn.functional.silu(x))
