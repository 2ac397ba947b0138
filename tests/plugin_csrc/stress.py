"""Drives plugins hard, in a process of its own with the recording driver, which may be built with sanitizers: JSON in and out.

    {"library": PATH, "tools": FOLDER, "threads": N, "runs": as for tests.plugin_csrc.worker}

Every run goes through the whole life of a plugin, is asked about wrong numbers, types and ranks of inputs, and is made of
fields that are damaged in every way; then all runs are enqueued by one thread, and by N threads at once, each on plugins that it
attached itself. Answers with {"alone": launches, "together": launches, "refused": number of plugins that damaged fields made
impossible}, launches as the driver recorded them, sorted.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

from onnx_fuse.errors import OnnxFuseError
from onnx_fuse.runtime.plugins import harness
from onnx_fuse.runtime.plugins.harness import Plugin, Tensor

INT64 = 10  # nvinfer1::PluginFieldType
STEP = 1 << 20  # between the addresses that two threads use


def tensors(described: list[list[Any]], thread: int = 0) -> list[Tensor]:
    return [Tensor(kind, tuple(sizes), address + thread * STEP) for kind, sizes, address in described]


def enqueue(plugin: Plugin, run: dict[str, Any], thread: int) -> None:
    inputs, outputs = tensors(run["inputs"], thread), tensors(run["outputs"], thread)
    assert plugin.workspace(inputs, outputs) >= 0
    plugin.prepare(inputs, outputs)
    plugin.enqueue(inputs, outputs, workspace=run["workspace"])


def recorded(log: Path) -> list[str]:
    lines = sorted(log.read_text().splitlines()) if log.exists() else []
    log.write_text("")
    return lines


def question(plugin: Plugin, run: dict[str, Any]) -> None:
    """Asks about inputs that the plugin has to refuse, or may."""
    inputs, outputs = tensors(run["inputs"]), tensors(run["outputs"])
    first = inputs[0]
    for wrong in (
        inputs[:-1],
        [*inputs, first],
        [Tensor("int8", first.sizes), *inputs[1:]],
        [Tensor(first.dtype, ()), *inputs[1:]],
        [Tensor(first.dtype, (*first.sizes, 1)), *inputs[1:]],
        [Tensor(first.dtype, tuple(0 for _ in first.sizes)), *inputs[1:]],
        [Tensor(item.dtype, item.sizes[:1]) for item in inputs],
    ):
        for known in (True, False):
            try:
                plugin.outputs(wrong, known=known)
            except OnnxFuseError:
                continue
    plugin.refused_position(inputs, outputs)


def damaged(attributes: dict[str, Any]) -> Iterator[Any]:
    """Arrays of fields, each with something wrong: what a serialised plugin that was cut short or overwritten holds."""
    made = [harness._field(name, value) for name, value in attributes.items()]
    whole = [field for field, _ in made]

    def changed(index: int, **values: Any) -> Any:
        array = (harness._Field * len(whole))(*whole)
        for name, value in values.items():
            setattr(array[index], name, value)
        return array

    for index, field in enumerate(whole):
        yield (harness._Field * (len(whole) - 1))(*(item for item in whole if item is not field))
        yield (harness._Field * index)(*whole[:index])
        yield changed(index, name=None)
        yield changed(index, name=b"nonsense")
        yield changed(index, data=None)
        yield changed(index, data=None, length=0)
        for length in (0, -1, -(2**31)):
            yield changed(index, length=length)
        for kind in (-1, *range(14), 99):
            if (kind, field.type) != (INT64, harness._INT32):  # eight bytes where there are four
                yield changed(index, type=kind)
    text = ctypes.create_string_buffer(b"\xff" * 4096 + b",,,", 4099)  # no zero at the end
    for index, field in enumerate(whole):
        if field.type == harness._CHAR:
            yield changed(index, data=ctypes.cast(text, ctypes.c_void_p), length=4099)


def refusals(library: Path, run: dict[str, Any]) -> int:
    refused, handle = 0, harness._opened(library)
    for fields in damaged(run["attributes"]):
        plugin = harness._harness().harness_create(handle, run["name"].encode(), fields, len(fields))
        if plugin:
            harness._harness().harness_destroy(ctypes.c_void_p(plugin))
        else:
            refused += 1
    return refused


def main() -> None:
    given = json.load(sys.stdin)
    library, log, count = Path(given["library"]), Path(os.environ["FAKE_CUDA_LOG"]), given["threads"]
    harness.tools = lambda: Path(given["tools"])  # built already
    plugins = [Plugin(library, run["name"], run["attributes"]) for run in given["runs"]]
    refused = 0
    for plugin, run in zip(plugins, given["runs"], strict=True):
        plugin.reborn()
        question(plugin, run)
        refused += refusals(library, run)
    recorded(log)
    for thread in range(count):
        for plugin, run in zip(plugins, given["runs"], strict=True):
            enqueue(plugin, run, thread)
    alone, start = recorded(log), Barrier(count)

    def work(thread: int) -> None:
        start.wait()
        for plugin, run in zip(plugins, given["runs"], strict=True):
            mine = plugin.attached()
            enqueue(mine, run, thread)
            mine.close()

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))
    together = recorded(log)
    for plugin in plugins:
        plugin.close()
    json.dump({"alone": alone, "together": together, "refused": refused}, sys.stdout)


if __name__ == "__main__":
    main()
