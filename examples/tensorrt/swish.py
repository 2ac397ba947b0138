"""Swish, x * sigmoid(x), as four engines; the other scripts of this folder use them.

    plugin_api   the plugin of the library, put into the network by `add_plugin_v3` (TensorRT-RTX's Python has no such method)
    plugin_onnx  the plugin again, through a fused ONNX model
    native       sigmoid and product as two layers of TensorRT's own
    relu         not Swish, but the activation that TensorRT has built in, for its time

Each engine takes [n, 16] with n from 1 to 32. On a machine without a GPU they are built ahead of time, for SM120.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.device import cuda, engine_file
from onnx_fuse.runtime.device.engine_file import EngineRecord, EngineTensor, ShapeRange
from onnx_fuse.runtime.plugins import plugin_library
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.parse import parse_network

WAYS = ("plugin_api", "plugin_onnx", "native", "relu")
SHAPES = ShapeRange((1, 16), (8, 16), (32, 16))
TARGET = "SM120"
HEADER = '<ir_version: 9, opset_import: ["" : 17, "gr.ml.infra" : 1]>\nswish (float[n,16] x) => (float[n,16] y)'
FUSED = """{
    y = gr.ml.infra.FusedSwish<
        beta = 1.0, inputs = "x", outputs = "output", plugin_namespace = "gr.ml.infra", plugin_version = "1">(x)
}
<domain: "gr.ml.infra", opset_import: ["" : 17]>
FusedSwish<beta>(x) => (output) {
    factor = Constant<value_float: float = @beta>()
    scaled = Mul(x, factor)
    opened = Sigmoid(scaled)
    output = Mul(x, opened)
}"""
BODIES = {
    "plugin_api": FUSED,
    "plugin_onnx": FUSED,
    "native": "{ s = Sigmoid(x) y = Mul(x, s) }",
    "relu": "{ y = Relu(x) }",
}


def has_gpu() -> bool:
    """Whether engines can run here."""
    try:
        return bool(cuda.devices())
    except UsageError:
        return False


def say_what_runs() -> None:
    """Says it where no engine can run."""
    if not has_gpu():
        print(f"No GPU: engines are built for {TARGET}; what runs is the same function in ONNX Runtime.", flush=True)


def reference(way: str, x: np.ndarray) -> np.ndarray:
    """What the way computes, in float64."""
    exact = x.astype(np.float64)
    return np.maximum(exact, 0) if way == "relu" else exact / (1 + np.exp(-exact))


def engine(way: str, folder: Path) -> tuple[Path, list[str]]:
    """Builds an engine, with its record and an ONNX model of the same function beside it; its path, and the network's layers.

    Raises:
        UsageError: the module has no `add_plugin_v3`, or no plugin library is found.
    """
    trt = binding.module()
    model = onnx.parser.parse_model(f"{HEADER} {BODIES[way]}")
    onnx.save(model, folder / f"{way}.onnx")
    libraries = [path.resolve() for path in plugin_library.find()]
    if "plugin" in way and not libraries:
        raise UsageError("There is no plugin library.", "Build it: onnx-fuse plugins build.")
    if way == "plugin_onnx":
        parsed = parse_network(model, plugins=libraries)
        parsed_by, builder, network = parsed.parser, parsed.builder, parsed.network  # the parser owns the weights
    else:
        binding.load_plugins(libraries)
        parsed_by, builder = None, trt.Builder(binding.logger())
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        add_layers(way, network, trt)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("x", SHAPES.min, SHAPES.opt, SHAPES.max)
    config.add_optimization_profile(profile)
    ahead = not has_gpu()
    if ahead:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, TARGET), 0)
    with binding.logged() as messages:
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UsageError(f"TensorRT builds no engine: {messages[:1]}", "See what it logs.")
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    del parsed_by
    record = EngineRecord(
        model=f"{way}.onnx",
        key="",
        module=trt.__name__,
        version=trt.__version__,
        targets=(TARGET,) if ahead else (),
        inputs=(EngineTensor("x", "float32", ("n", 16)),),
        outputs=(EngineTensor("y", "float32", ("n", 16)),),
        profiles=({"x": SHAPES},),
        plugins={str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in libraries if "plugin" in way},
        layers={layer.name: ("y",) for layer in layers},
        sha256=hashlib.sha256(plan).hexdigest(),
    )
    path = folder / f"{way}.engine"
    path.write_bytes(plan)
    engine_file.record_path(path).write_bytes(engine_file.to_json(record))
    return path, [layer.type.name for layer in layers]


def add_layers(way: str, network: Any, trt: Any) -> None:
    """Fills an empty network by TensorRT's network API."""
    x = network.add_input("x", trt.float32, (-1, 16))
    if way == "relu":
        layer = network.add_activation(x, trt.ActivationType.RELU)
    elif way == "native":
        opened = network.add_activation(x, trt.ActivationType.SIGMOID).get_output(0)
        layer = network.add_elementwise(x, opened, trt.ElementWiseOperation.PROD)
    elif not hasattr(network, "add_plugin_v3"):
        raise UsageError(f"{trt.__name__} has no add_plugin_v3 in Python.", "Use the module tensorrt, or ONNX.")
    else:
        creator = trt.get_plugin_registry().get_creator("FusedSwish", "1", "gr.ml.infra")
        text, number = trt.PluginFieldType.CHAR, trt.PluginFieldType.FLOAT32
        fields = [
            trt.PluginField("inputs", b"x\0", text),
            trt.PluginField("outputs", b"output\0", text),
            trt.PluginField("beta", np.array([1.0], np.float32), number),
        ]
        plugin = creator.create_plugin("swish", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
        layer = network.add_plugin_v3([x], [], plugin)
    layer.get_output(0).name = "y"
    network.mark_output(layer.get_output(0))
