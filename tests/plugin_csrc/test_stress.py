"""Plugins in several threads, and under sanitizers: the same plugins, asked wrong questions and made of damaged fields."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from onnx_fuse.runtime.plugins import harness
from tests.plugin_csrc.built import ROOT, driver_settings, library, tools
from tests.plugin_csrc.test_launches import CASES, described

THREADS = 4


def runs() -> list[dict[str, Any]]:
    """Every case, at addresses of its own (nothing reads them)."""
    made = []
    for number, case in enumerate(CASES):
        names = {"inputs": ",".join(case.inputs), "outputs": ",".join(case.outputs)}
        attributes = {**case.attributes, **names}
        inputs = [[*described(item)[:2], (number << 32) + 256 * at] for at, item in enumerate(case.inputs.values())]
        plugin = harness.Plugin(library(), case.name, attributes)
        found = plugin.outputs([harness.Tensor(kind, tuple(sizes)) for kind, sizes, _ in inputs])
        plugin.close()
        outputs = [[item.dtype, item.sizes, (number << 32) + (1 << 16) + 256 * at] for at, item in enumerate(found)]
        made.append(
            {"name": case.name, "attributes": attributes, "inputs": inputs, "outputs": outputs, "workspace": 1 << 50}
        )
    return made


def stressed(folder: Path, sanitizers: str, **environment: str) -> dict[str, Any]:
    built = library(sanitizers)
    used = built.parent / "tools" if sanitizers else tools()
    result = subprocess.run(
        [sys.executable, "-m", "tests.plugin_csrc.stress"],
        input=json.dumps({"library": str(built), "tools": str(used), "threads": THREADS, "runs": runs()}),
        capture_output=True,
        text=True,
        env={**os.environ, **driver_settings(used, folder), **environment},
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-8000:]}"
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def runtime_of(sanitizer: str) -> str:
    """The shared library that has to be loaded before anything else."""
    command = ["g++", f"-print-file-name=lib{sanitizer}.so"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_file():
        pytest.skip(f"g++ has no lib{sanitizer}.so")
    return str(Path(path).resolve())


def check(answer: dict[str, Any]) -> None:
    assert answer["together"] == answer["alone"] and len(answer["alone"]) > THREADS * len(CASES) // 2
    assert answer["refused"] > 20 * len(CASES)


def test_threads_launch_what_one_thread_launches(tmp_path: Path) -> None:
    check(stressed(tmp_path, ""))


@pytest.mark.long
def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path: Path) -> None:
    """`-fno-sanitize-recover` ends the process at the first finding. Python itself never frees all it has."""
    preloaded = f"{runtime_of('asan')}:{runtime_of('ubsan')}"
    options = {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    check(stressed(tmp_path, "address,undefined", LD_PRELOAD=preloaded, **options))


@pytest.mark.long
def test_the_thread_sanitizer_finds_nothing(tmp_path: Path) -> None:
    """Only what is built with it is watched: plugins, harness and recording driver, not Python."""
    options = {"TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1"}
    check(stressed(tmp_path, "thread", LD_PRELOAD=runtime_of("tsan"), **options))
