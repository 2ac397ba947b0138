"""Parses models with TensorRT in a process of its own (plugin libraries stay loaded), and builds engines of them: JSON in and out.

    {"libraries": [PATH], "models": [PATH], "capabilities": ["SM80", ...]}

Each model answers with {"accepted", "plugins", "inlined", "errors", "engines": capability -> bytes}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.parse import parse_network


def answer(model: Path, capabilities: list[str]) -> dict[str, Any]:
    parsed = parse_network(model, plugins=())
    trt = binding.module()
    engines = {}
    for name in capabilities if parsed.result.accepted else ():
        config = parsed.builder.create_builder_config()
        profile = parsed.builder.create_optimization_profile()
        for index in range(parsed.network.num_inputs):
            tensor = parsed.network.get_input(index)
            if -1 in tensor.shape:
                sizes = [[size if at < 0 else at for at in tensor.shape] for size in (1, 4, 8)]
                profile.set_shape(tensor.name, *sizes)
        config.add_optimization_profile(profile)
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
        with binding.logged() as log:
            engine = parsed.builder.build_serialized_network(parsed.network, config)
        engines[name] = engine.nbytes if engine is not None else "; ".join(log)
    result = parsed.result
    return {
        "accepted": result.accepted,
        "plugins": result.plugins,
        "inlined": result.inlined,
        "errors": [error.message for error in result.errors],
        "log": result.log,
        "engines": engines,
    }


def main() -> None:
    given = json.load(sys.stdin)
    binding.load_plugins(given["libraries"])
    json.dump([answer(Path(model), given["capabilities"]) for model in given["models"]], sys.stdout)


if __name__ == "__main__":
    main()
