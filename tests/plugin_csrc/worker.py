"""Runs plugins in a process of its own, in which the CUDA driver is the recording one: JSON in, JSON out.

    {"library": PATH, "runs": [{"name", "attributes", "inputs": [[dtype, sizes, address]], "outputs": [[dtype, sizes, address]]}]}

Each run answers with {"kernels": names, "launches": what the driver recorded, "workspace": bytes} or {"error": text}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from onnx_fuse.errors import OnnxFuseError
from onnx_fuse.runtime.plugins import harness
from onnx_fuse.runtime.plugins.harness import Tensor

ALIGNMENT = 16
"""Bytes of which the addresses of all tensors have to be multiples for the faster kernels."""


def run(library: Path, log: Path, job: dict[str, Any]) -> dict[str, Any]:
    log.write_text("")
    try:
        plugin = harness.Plugin(library, job["name"], job["attributes"])
        plugin.reborn()
        inputs = [Tensor(kind, tuple(sizes), address) for kind, sizes, address in job["inputs"]]
        outputs = [Tensor(kind, tuple(sizes), address) for kind, sizes, address in job["outputs"]]
        found = [(tensor.dtype, tensor.sizes) for tensor in plugin.outputs(inputs)]
        wanted = [(tensor.dtype, tensor.sizes) for tensor in outputs]
        if found != wanted:
            return {"error": f"outputs are {found}, not {wanted}"}
        if (position := plugin.refused_position(inputs, outputs)) >= 0:
            return {"error": f"tensor {position} is refused"}
        workspace = plugin.workspace(inputs, outputs)
        harness.messages()
        plugin.prepare(inputs, outputs)
        told = harness.messages().splitlines()
        skewed = any(tensor.data % ALIGNMENT for tensor in (*inputs, *outputs) if 0 not in tensor.sizes)
        kernels = [line.split()[-1] for line in told if line.startswith("unaligned kernel " if skewed else "kernel ")]
        plugin.enqueue(inputs, outputs, workspace=job.get("workspace", 0))
        plugin.close()
    except OnnxFuseError as error:
        return {"error": error.cause}
    launches = [json.loads(line) for line in log.read_text().splitlines()]
    return {"kernels": kernels, "launches": launches, "workspace": workspace}


def main() -> None:
    given = json.load(sys.stdin)
    log = Path(os.environ["FAKE_CUDA_LOG"])
    json.dump([run(Path(given["library"]), log, job) for job in given["runs"]], sys.stdout)


if __name__ == "__main__":
    main()
