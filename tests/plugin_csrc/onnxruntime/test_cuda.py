"""Nodes on a GPU: in a double of ONNX Runtime's C interface they launch what the plugins launch, on ONNX Runtime's stream."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from onnx_fuse.runtime.plugins import plugin_library
from tests.plugin_csrc import built as plugins
from tests.plugin_csrc import contract
from tests.plugin_csrc.contract import Drawn, values_of
from tests.plugin_csrc.onnxruntime import built
from tests.plugin_csrc.onnxruntime.built import LIBRARY, library
from tests.plugin_csrc.onnxruntime.test_kernels import NAMES, hstu, made_shape
from tests.plugin_csrc.onnxruntime.test_sanitizers import double, written

STREAM = 0x5EED
"""What the double calls its stream."""
GPU, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """The kernel library in a folder with the plugin library."""
    shutil.copy(plugins.library(), tmp_path / plugin_library.LIBRARY)
    return Path(shutil.copy(library(), tmp_path / LIBRARY))


def settings(folder: Path, **changed: str) -> dict[str, str]:
    """The environment with the recording driver."""
    return {**os.environ, **plugins.driver_settings(plugins.tools(), folder), "FAKE_CUDA_STREAMS": "1", **changed}


def ran(path: Path, provider: str, nodes: Sequence[tuple[Drawn, Mapping[str, Any]]], **changed: str) -> bytes:
    """What the double says of nodes that a library runs."""
    result = subprocess.run(
        [double(""), path, provider],
        input=b"".join(written(*item) for item in nodes),
        capture_output=True,
        check=False,
        env=settings(path.parent, **changed),
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


def addresses_of(told: bytes, nodes: Sequence[tuple[Drawn, Mapping[str, Any]]]) -> list[list[int]]:
    """For each node where its inputs, outputs and workspace were."""
    found = []
    for node, _ in nodes:
        for name in node.outputs:
            line, _, told = told.partition(b"\n")
            words = line.split()
            assert words[0] == b"output", f"{line.decode()}: {node}"
            assert tuple(map(int, words[3:-1])) == made_shape(node, name)
            told = told[int(words[-1]) :]
        line, _, told = told.partition(b"\n")
        word, *numbers = line.split()
        assert word == b"addresses"
        found.append([int(number) for number in numbers])
    assert not told
    return found


def test_nodes_launch_what_plugins_launch(both: Path) -> None:
    """Every operator, type and combination of inputs; norms over all heads of a narrow type need a workspace."""
    drawn = [*contract.drawn_pairwise(NAMES, 4, 11), hstu(65, heads=2, element="float16"), hstu(0, batch=2)]
    nodes = [(node, values_of(node, number)) for number, node in enumerate(drawn)]
    found = addresses_of(ran(both, GPU, nodes), nodes)
    launches = [json.loads(line) for line in (both.parent / "log").read_text().splitlines()]
    runs = []
    for (node, values), addresses in zip(nodes, found, strict=True):
        names = {"inputs": ",".join(node.inputs), "outputs": ",".join(node.outputs)}
        given = [[kind, list(shape)] for kind, shape in node.inputs.values()]
        made = [[node.element, list(made_shape(node, name))] for name in node.outputs]
        *tensors, workspace = addresses
        assert len(values) == len(node.inputs)
        runs.append(
            {
                "name": node.operator,
                "attributes": {**node.attributes, **names},
                "inputs": [[*item, address] for item, address in zip(given, tensors, strict=False)],
                "outputs": [[*item, address] for item, address in zip(made, tensors[len(given) :], strict=True)],
                "workspace": workspace,
            }
        )
    answers = plugins.enqueued(runs, both.parent)
    wanted = [launch for answer in answers for launch in answer["launches"]]
    assert any(answer["workspace"] for answer in answers)
    assert {launch.pop("stream") for launch in launches} == {STREAM}
    assert launches == wanted


def test_what_an_operator_refuses_is_said(both: Path) -> None:
    node = contract.draw("FusedSkipLayerNorm", random.Random(3))
    shapes = {"x": (2, 3, 8), "skip": (2, 4, 8), "bias": (8,), "gamma": (8,), "beta": (8,)}
    node = contract.changed(node, **shapes)
    values = {name: np.zeros(shape, contract.dtype_of(kind)) for name, (kind, shape) in node.inputs.items()}
    answer = ran(both, GPU, [(node, values)]).decode()
    assert answer.startswith("refused gr.ml.infra FusedSkipLayerNorm: ") and "skip" in answer, answer


@pytest.mark.parametrize(
    ("without", "changed", "reason"),
    [
        ("driver", {"LD_LIBRARY_PATH": ""}, "no CUDA driver: "),
        ("plugins", {}, "no plugin library: "),
        ("kernels for the device", {"FAKE_CUDA_SM": "75"}, "no kernels were built for sm_75, GPU 0"),
    ],
)
def test_nothing_is_registered_for_a_gpu_where_it_could_not_run(
    both: Path, without: str, changed: Mapping[str, str], reason: str
) -> None:
    """A node then runs by the kernel for the CPU, and the library says why."""
    if without == "plugins":
        (both.parent / plugin_library.LIBRARY).unlink()
    node = hstu(9)
    nodes = [(node, values_of(node, 1))]
    assert ran(both, GPU, nodes, **changed) == b"refused no such operator\n"
    assert ran(both, CPU, nodes, **changed).startswith(b"output ")
    assert reason in asked(both, "print(why(path))", **changed)


def test_onnx_runtime_takes_an_operator_for_two_providers(both: Path) -> None:
    """In a session without a GPU the kernel for the CPU runs."""
    script = """
    import numpy as np
    from tests.plugin_csrc.contract import model_of, values_of
    from tests.plugin_csrc.onnxruntime.test_kernels import hstu
    node = hstu(9)
    made = session(model_of(node), path).run(None, values_of(node, 1))
    print(why(path) == "", np.isfinite(made[0].astype("float32")).all())
    """
    assert asked(both, script) == "True True\n"


def why(path: Path) -> str:
    """Why a library registers nothing for a GPU."""
    function = ctypes.CDLL(str(path)).gr_ml_infra_onnxruntime_no_cuda
    function.restype = ctypes.c_char_p
    return str(function().decode())


def asked(path: Path, script: str, **changed: str) -> str:
    """What a script writes in a process with the recording driver."""
    lines = "\n".join(line.strip() for line in script.splitlines())
    imports = f"from pathlib import Path\nfrom {built.__name__} import session\nfrom {__name__} import why\n"
    before = f"{imports}path = Path({str(path)!r})\n"
    result = subprocess.run(
        [sys.executable, "-c", before + lines],
        capture_output=True,
        text=True,
        check=False,
        env=settings(path.parent, **changed),
        cwd=plugins.ROOT,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
