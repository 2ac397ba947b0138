"""What plugins run on: a GPU; Triton's interpreter, told by the recording driver what to run; or nothing, to see what would be."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onnx_fuse.plugin_csrc.operators import catalogue
from onnx_fuse.runtime.plugins import aot, harness, plugin_library
from onnx_fuse.runtime.plugins.torch_harness import Bound, Node, bind
from tests.plugin_csrc import built, reference
from tests.plugin_csrc.reference import typed

DRIVER = "ONNX_FUSE_TEST_DRIVER"
"""Environment variable: "cuda" (unless it is set), "interpreter" or "plan"."""
LIBRARY = "ONNX_FUSE_TEST_LIBRARY"
"""Environment variable: the plugin library; one is built (for "cuda": for the GPU's architecture) unless it is set."""

VARIANTS = {variant.name: variant for variant in catalogue.variants()}


class Cuda:
    """Runs on the current GPU, and waits for it."""

    device = "cuda"

    def __init__(self) -> None:
        given = os.environ.get(LIBRARY)
        architecture = int("".join(map(str, torch.cuda.get_device_capability())))
        self.used: dict[str, set[str]] = {}
        if given:
            self.library = Path(given)
        else:
            chosen = [architecture] if architecture in aot.ARCHITECTURES else [aot.PTX_ARCHITECTURE]
            target = built.CACHE / "gpu" / plugin_library.LIBRARY
            self.library = plugin_library.build(target, architectures=chosen).path

    def bind(self, node: Node) -> Bound:
        bound = bind(self.library, node, self.device)
        self.used.setdefault(node.operator, set()).update(bound.kernels)
        return bound

    def enqueue(self, bound: Bound) -> None:
        bound.enqueue(torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()

    def run(self, node: Node) -> Mapping[str, Any]:
        bound = self.bind(node)
        self.enqueue(bound)
        bound.plugin.close()
        return {name: item.cpu() for name, item in bound.outputs.items()}


class Plan(Cuda):
    """Loads the kernels that a run would launch, from a library of placeholders through the recording driver; outputs stay NaN."""

    device = "cpu"

    def __init__(self, folder: Path) -> None:
        self.used = {}
        given = os.environ.get(LIBRARY)
        self.library = Path(given) if given else built.library()
        tools = harness.tools() if given else built.tools()
        self.log = folder / "log"
        os.environ.update(built.driver_settings(tools, folder))
        self.keep = ctypes.CDLL(str(tools / "libcuda.so.1"))  # plugins find it by its name

    def enqueue(self, bound: Bound) -> None:
        bound.enqueue()


class Interpreter(Plan):
    """Runs what the recording driver was asked to launch in Triton's interpreter, on the memory that the plugin named."""

    def enqueue(self, bound: Bound) -> None:
        self.log.write_text("")
        bound.enqueue()
        launches = [json.loads(line) for line in self.log.read_text().splitlines()]
        assert not launches or len(launches) == len(bound.kernels)
        for name, launch in zip(bound.kernels, launches, strict=False):
            variant = VARIANTS[name]
            given = zip(variant.signature.values(), launch["arguments"][:-2], strict=True)
            arguments = [_memory(kind[1:], value, bound) if kind[0] == "*" else value for kind, value in given]
            assert launch["kernel"] == variant.function.__name__
            reference.interpret(variant, tuple(launch["grid"]), arguments)


def _memory(kind: str, address: int, bound: Bound) -> Any:
    """The rest of the tensor that has the address, as numbers of a type."""
    for tensor in (*bound.inputs.values(), *bound.outputs.values(), bound.workspace):
        start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        if start == address or start <= address < start + size:
            return typed(kind, address, start + size - address) if size else tensor
    raise AssertionError(f"the plugin launches a kernel on memory that is not its own: {address:#x}")


def make(folder: Path) -> Cuda:
    """The driver that the environment asks for."""
    wanted = os.environ.get(DRIVER, "cuda")
    return Cuda() if wanted == "cuda" else {"plan": Plan, "interpreter": Interpreter}[wanted](folder)


def missing() -> str | None:
    """Why the tests of this folder cannot run here."""
    if os.environ.get(DRIVER, "cuda") != "cuda":
        return None
    return None if torch.cuda.is_available() else "no NVIDIA GPU that torch can use"
