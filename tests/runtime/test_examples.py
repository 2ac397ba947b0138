"""examples/tensorrt: what its README says is printed, is printed (where there is no GPU)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.device import cuda
from onnx_fuse.runtime.plugins import plugin_library
from tests.plugin_csrc import built

FOLDER = built.ROOT / "examples" / "tensorrt"
VARIES = re.compile(r"\d+ calls/s|at most \S+ off")  # speed, and the last bits of an exponential


def expected(command: str) -> list[str]:
    """The lines below `$ command` in the README."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    block = re.search(rf"^    \$ {re.escape(command)}\n((?:    .*\n)+)", text, re.MULTILINE)
    assert block, f"the README does not show {command}"
    return [line.removeprefix("    ") for line in block[1].splitlines()]


@pytest.fixture(autouse=True)
def no_gpu() -> None:
    try:
        names = cuda.devices()
    except UsageError:
        return
    if names:
        pytest.skip("the README shows what is printed without a GPU")


@pytest.mark.parametrize("script", ["four_ways", "reload", "threads", pytest.param("debug", marks=pytest.mark.slow)])
def test_what_the_readme_shows(script: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    command = f"python examples/tensorrt/{script}.py"
    done = subprocess.run(
        [sys.executable, *command.split()[1:]],
        capture_output=True,
        text=True,
        cwd=built.ROOT,
        env={**os.environ, plugin_library.VARIABLE: str(built.library())},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert VARIES.sub("...", done.stdout).splitlines() == [VARIES.sub("...", line) for line in expected(command)]


@pytest.mark.slow
def test_the_program_compiles_and_says_what_it_lacks(tmp_path: Path) -> None:
    cache = (built.tools() / "CMakeCache.txt").read_text().splitlines()
    headers = [f"-D{line}" for line in cache if "_INCLUDE_DIR:PATH=" in line]
    for arguments in (
        ["-S", str(FOLDER), "-B", str(tmp_path), *headers],
        ["--build", str(tmp_path), "--target", "run_swish"],
    ):
        done = subprocess.run(["cmake", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    program = str(tmp_path / "run_swish")
    assert subprocess.run([program], capture_output=True, check=False).returncode == 2
    done = subprocess.run([program, "plugins.so"], capture_output=True, text=True, check=False)
    (line,) = expected("build/examples/run_swish libgr_ml_infra_tensorrt_plugins.so")
    version = re.compile(r"(?<=libnvinfer\.so\.)\d+")  # that of the headers
    assert done.returncode == 1 and version.sub("", done.stderr.strip()) == version.sub("", line)
