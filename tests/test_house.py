"""The contracts of pyproject.toml hold, and each of them can fail: one forbidden import breaks it."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("importlinter")

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("passes", "patterns", "plugin_csrc", "runtime")
ONLY_PYTHON = shutil.ignore_patterns("__pycache__", "*.cpp", "*.h", "*.txt")

FORBIDDEN = (
    ("patterns/swish.py", "from onnx_fuse.passes.graph import dims", "The house"),
    ("passes/graph/dims.py", "from onnx_fuse.runtime.device import gpus", "The house"),
    ("runtime/engine.py", "from onnx_fuse.cli import common", "The house"),
    ("cli/build.py", "from onnx_fuse.cli import debug", "The command"),
    ("passes/graph/dims.py", "from onnx_fuse.passes.view import rule", "Passes"),
    ("patterns/swish.py", "from onnx_fuse.patterns import fm_interaction", "Patterns"),
    ("runtime/device/gpus.py", "from onnx_fuse.runtime.tensorrt import binding", "Runtime"),
    ("plugin_csrc/kernels/linear.py", "from onnx_fuse.plugin_csrc.operators import catalogue", "Plugins"),
    ("passes/graph/dims.py", "def late():\n    from onnx_fuse.passes.graph import shapes", "No circles"),
    ("passes/pipeline.py", "import onnx_fuse", "The front door"),
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python files as an installation has them."""
    package = tmp_path_factory.mktemp("house") / "onnx_fuse"
    shutil.copytree(ROOT / "onnx_fuse", package, ignore=ONLY_PYTHON)
    shutil.copy(ROOT / "pyproject.toml", package.parent)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, package / folder, ignore=ONLY_PYTHON)
    return package


def broken(package: Path) -> list[str]:
    """The contracts that do not hold."""
    program = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run(
        [program, "--no-logo", "--no-cache"], cwd=package.parent, capture_output=True, text=True, check=False
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    names = [line.removesuffix(" BROKEN") for line in lines if line.endswith(" BROKEN")]
    assert "Contracts: " in done.stdout and bool(done.returncode) == bool(names), done.stdout + done.stderr
    return names


def test_the_house_is_in_order(package: Path) -> None:
    assert broken(package) == []


@pytest.mark.parametrize(("file", "line", "contract"), FORBIDDEN)
def test_one_forbidden_import_is_found(package: Path, file: str, line: str, contract: str) -> None:
    path = package / file
    text = path.read_text()
    try:
        path.write_text(f"{text}\n{line}\n")
        assert any(name.startswith(contract) for name in broken(package))
    finally:
        path.write_text(text)
