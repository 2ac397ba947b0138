"""The kernels under sanitizers, in a double of ONNX Runtime's C interface, with tensors that are allocated to the byte."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from onnx import AttributeProto, NodeProto, helper

pytest.importorskip("triton")
pytest.importorskip("torch")

from tests.plugin_csrc import contract
from tests.plugin_csrc.contract import KINDS, Drawn, model_of, values_of
from tests.plugin_csrc.onnxruntime.built import INSTRUCTIONS, SOURCES, library
from tests.plugin_csrc.onnxruntime.test_kernels import AVAILABLE, NAMES, check, hstu, made_shape

Array = np.ndarray
TYPES = {**KINDS, **contract.INTEGERS}


@cache
def double(sanitizers: str) -> Path:
    """The double, with the same sanitizers as the library beside it."""
    target = library(sanitizers).with_name("double")
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"] if sanitizers else []
    source = Path(__file__).with_name("double.cpp")
    options = ["-std=gnu++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", "-pthread"]
    unfinished = target.with_name(f"double.{os.getpid()}")
    subprocess.run(["g++", *options, *flags, source, "-o", unfinished, "-ldl"], check=True)
    unfinished.replace(target)
    return target


def written(node: Drawn, values: Mapping[str, Array]) -> bytes:
    """A node as the double reads it."""
    made: NodeProto = model_of(node).graph.node[0]
    lines = [_attribute(item).encode() for item in made.attribute]
    for name in made.input:
        kind, shape = node.inputs[name]
        sizes = "".join(f" {size}" for size in shape)
        data = np.ascontiguousarray(values[name]).tobytes()
        lines.append(f"input {TYPES[kind]} {len(shape)}{sizes} {len(data)}\n".encode() + data)
    return b"".join([*lines, f"run {node.operator} {len(node.outputs)}\n".encode()])


def _attribute(item: AttributeProto) -> str:
    value = helper.get_attribute_value(item)
    if isinstance(value, bytes):
        return f"string {item.name} {value.decode()}\n"
    kind = "int" if item.type in (AttributeProto.INT, AttributeProto.INTS) else "float"
    if isinstance(value, Sequence):
        return f"{kind}s {item.name} {len(value)} {' '.join(map(str, value))}\n"
    return f"{kind} {item.name} {value}\n"


def ran(nodes: Sequence[tuple[Drawn, Mapping[str, Array]]], sanitizers: str, instructions: str) -> None:
    """Runs nodes, and compares what they make with their bodies."""
    result = subprocess.run(
        [double(sanitizers), library(sanitizers), "CPUExecutionProvider"],
        input=b"".join(written(*item) for item in nodes),
        capture_output=True,
        check=False,
        env={**os.environ, INSTRUCTIONS: instructions},
    )
    assert result.returncode == 0, result.stderr.decode()[-6000:]
    rest = result.stdout
    for node, values in nodes:
        found = {}
        for name in node.outputs:
            line, _, rest = rest.partition(b"\n")
            words = line.split()
            assert words[0] == b"output", f"{line.decode()}: {node}"
            kind, size = int(words[1]), int(words[-1])
            assert kind == KINDS[node.element]
            assert tuple(map(int, words[3:-1])) == made_shape(node, name)
            array = np.frombuffer(rest[:size], dtype=contract.dtype_of(node.element)).reshape(made_shape(node, name))
            found[name], rest = array.astype(np.float32), rest[size:]
        check(node, values, found)
    assert not rest


def nodes_of(count: int, seed: int) -> list[tuple[Drawn, Mapping[str, Array]]]:
    """Drawn ones, and HSTU attention at the edges of tiles, of which many are needed for several threads."""
    edges = [
        hstu(130, batch=2, causal=1, size=17, value_size=16),
        hstu(193, mask=("bool", (1, 1, 193, 193)), value_size=9),
        hstu(400, batch=2, heads=1, causal=1, element="bfloat16"),
    ]
    drawn = [*contract.drawn_pairwise(NAMES, count, seed), *edges]
    return [(node, values_of(node, number)) for number, node in enumerate(drawn)]


def test_the_double_runs_what_onnx_runtime_runs() -> None:
    ran(nodes_of(1, 7), "", AVAILABLE[-1])


@pytest.mark.long
@pytest.mark.parametrize("instructions", AVAILABLE)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizers: str, instructions: str) -> None:
    ran(nodes_of(25, 7), sanitizers, instructions)
