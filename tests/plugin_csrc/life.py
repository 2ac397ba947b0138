"""The lives of plugins in a process of its own, in which the CUDA driver is the recording one: JSON on stdout.

`python -m tests.plugin_csrc.life LIBRARY NAME...` answers with what the functions of these names return.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.plugins import harness
from onnx_fuse.runtime.plugins.harness import Plugin, Tensor
from tests.plugin_csrc.test_launches import CASES, VARIANTS, Case

WORKSPACE = 1 << 40
WEIGHTS = ("out_weight", "weight", "table_", "level_embeddings")
"""Inputs whose first axis is no batch, even where it is as long."""

LIBRARY = Path(sys.argv[1]) if __name__ == "__main__" else Path()
LOG = Path(os.environ.get("FAKE_CUDA_LOG", os.devnull))


def element(dtype: str) -> int:
    """Bytes of a number."""
    return {"float32": 4, "int32": 4, "int64": 8, "bool": 1}.get(dtype, 2)


def tensors(case: Case, sizes: Mapping[int, int] | None = None) -> list[Tensor]:
    """The inputs of a case at made-up addresses; `sizes` replaces the batch (-1) and lengths."""
    changes = dict(sizes or {})
    batched = [
        name
        for name, item in case.inputs.items()
        if (item.dim() > 1 or name == "lengths") and not name.startswith(WEIGHTS)
    ]
    largest = max(case.inputs[name].shape[0] for name in batched)
    batch = changes.pop(-1, largest)
    made = []
    for number, (name, item) in enumerate(case.inputs.items()):
        shape = [changes.get(size, size) for size in item.shape]
        if name in batched and item.shape[0] == largest:
            shape[0] = batch
        made.append(Tensor(str(item.dtype).removeprefix("torch."), tuple(shape), (number + 1) << 32))
    return made


def placed(outputs: list[Tensor]) -> list[Tensor]:
    return [Tensor(item.dtype, item.sizes, (number + 100) << 32) for number, item in enumerate(outputs)]


def create(case: Case) -> Plugin:
    names = {"inputs": ",".join(case.inputs), "outputs": ",".join(case.outputs)}
    return Plugin(LIBRARY, case.name, {**case.attributes, **names})


def recorded(action: Callable[[], Any]) -> list[dict[str, Any]]:
    LOG.write_text("")
    action()
    return [json.loads(line) for line in LOG.read_text().splitlines()]


def ran(plugin: Plugin, inputs: list[Tensor], *, prepare: bool = True) -> list[dict[str, Any]]:
    """What a run of the plugin launches."""
    outputs = placed(plugin.outputs(inputs))
    if prepare:
        plugin.prepare(inputs, outputs)
    return recorded(lambda: plugin.enqueue(inputs, outputs, WORKSPACE))


def told(case: Case) -> str:
    return f"{case.name} {dict(case.attributes)} of {[(name, *item.shape) for name, item in case.inputs.items()]}"


def reborn() -> list[Any]:
    """Per case: its launches and timing ID, and those of what serialising, reading back, cloning and attaching make of it."""
    found = []
    for case in CASES:
        plugin = create(case)
        before = ran(plugin, tensors(case)), plugin.timing_id()
        plugin.reborn()
        found.append([told(case), before, (ran(plugin, tensors(case)), plugin.timing_id())])
        plugin.close()
    return found


def contexts() -> list[Any]:
    """Per case: launches of two batches, each alone, and by two contexts of one plugin that take turns."""
    found = []
    for case in CASES:
        plugin = create(case)
        sizes = [tensors(case, {-1: batch}) for batch in (2, 3)]
        alone = [ran(plugin, item) for item in sizes]
        pair = [plugin.attached() for _ in sizes]
        outputs = [placed(plugin.outputs(item)) for item in sizes]
        for context, item, made in zip(pair, sizes, outputs, strict=True):
            context.prepare(item, made)
        turns = [
            [
                recorded(lambda context=context, item=item, made=made: context.enqueue(item, made, WORKSPACE))
                for context, item, made in zip(pair, sizes, outputs, strict=True)
            ]
            for _ in range(2)
        ]
        found.append([told(case), alone, turns])
    return found


def replaced() -> list[Any]:
    """Launches before and after the context gave way to another at its address, and what a stale plugin says."""
    driver = ctypes.CDLL("libcuda.so.1")
    plugin, inputs = create(CASES[0]), tensors(CASES[0])
    before = ran(plugin, inputs)
    driver.fake_cuda_replace_context()
    after = ran(plugin.attached(), inputs)
    return [before, after, hasattr(driver, "cuCtxGetId")]


def empty() -> list[Any]:
    """Per case: its launches with a batch of 0."""
    return [[told(case), ran(create(case), tensors(case, {-1: 0}))] for case in CASES]


def workspaces() -> list[Any]:
    """Per case: workspace for the largest sizes, and for smaller ones with the addresses that each run takes for workspace."""
    found = []
    for case in CASES:
        plugin = create(case)
        sizes = [{}, {-1: 1}, {33: 7}, {33: 1, 40: 3}, {-1: 1, 33: 16}]
        answers = []
        for change in sizes:
            inputs = tensors(case, change)
            outputs = placed(plugin.outputs(inputs))
            launches = ran(plugin, inputs)
            mine = {item.data for item in (*inputs, *outputs)}
            addresses = [
                value
                for launch in launches
                for letter, value in zip(_letters(launch), launch["arguments"], strict=False)
                if letter == "p" and value not in mine
            ]
            answers.append([plugin.workspace(inputs, outputs), addresses, [launch["kernel"] for launch in launches]])
        found.append([told(case), answers])
    return found


def _letters(launch: Mapping[str, Any]) -> str:
    from onnx_fuse.runtime.plugins import aot

    return next(aot.letters(item) for item in VARIANTS.values() if item.function.__name__ == launch["kernel"])


def waiting() -> Any:
    """What the driver says to a plugin that loads its kernel when it is enqueued."""
    plugin, inputs = create(CASES[0]), tensors(CASES[0])
    try:
        ran(plugin, inputs, prepare=False)
    except UsageError as error:
        return [error.cause, LOG.read_text()]
    return None


def formats() -> list[Any]:
    """Per case: combinations of types that it takes in a network, and whether its own is among them."""
    found = []
    for case in CASES:
        plugin, inputs = create(case), tensors(case)
        outputs = plugin.outputs(inputs)
        plugin.reborn()  # as on the builder's clones, of which it asks
        plugin.outputs(inputs)
        found.append([told(case), plugin.combinations(inputs, outputs), plugin.refused_position(inputs, outputs)])
    return found


def timing() -> list[str]:
    """Timing IDs of two nodes that differ in one number."""
    case = CASES[0]
    names = {"inputs": "x", "outputs": "output"}
    return [Plugin(LIBRARY, case.name, {"beta": beta, **names}).timing_id() for beta in (1.0, 1.0, 1.0000001)]


def unaligned() -> list[Any]:
    """Per case and tensor that begins elsewhere: its name, the kernels that are launched, or what the plugin says."""
    found = []
    for case in CASES:
        plugin, inputs = create(case), tensors(case)
        outputs = placed(plugin.outputs(inputs))
        harness.messages()
        plugin.prepare(inputs, outputs)
        kernels = [line.split()[-1] for line in harness.messages().splitlines() if line.startswith("unaligned kernel ")]
        for number, (name, item) in enumerate(zip((*case.inputs, *case.outputs), (*inputs, *outputs), strict=True)):
            for step in {1, element(item.dtype)}:
                moved = Tensor(item.dtype, item.sizes, item.data + step)
                both = [*inputs, *outputs]
                both[number] = moved
                error = ""
                LOG.write_text("")
                try:
                    plugin.enqueue(both[: len(inputs)], both[len(inputs) :], WORKSPACE)
                except UsageError as refusal:
                    error = refusal.cause
                launches = len(LOG.read_text().splitlines())
                natural = step == element(item.dtype)
                found.append(
                    [told(case), name, natural, any(0 in item.sizes for item in outputs), kernels, launches, error]
                )
    return found


def main() -> None:
    json.dump({name: globals()[name]() for name in sys.argv[2:]}, sys.stdout)


if __name__ == "__main__":
    main()
