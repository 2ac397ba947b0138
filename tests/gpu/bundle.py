"""All that the tests on a GPU need, made on a machine that has none: `make gpu-bundle`.

    python -m tests.gpu.bundle FOLDER --arch 80 --arch 90

The folder holds the package, the tests and benchmarks, the plugin library, the harness, the cases with what their bodies make of
them, `run.sh` for the tests and `bench.sh` for the times. Nothing of it is compiled or worked out where it runs.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from onnx_fuse.runtime.plugins import aot, harness, plugin_library
from tests.gpu import cases

ROOT = Path(__file__).parents[2]
RUN = """#!/bin/sh
# Runs the tests of onnx-fuse's plugins on this machine's GPU. They need torch with CUDA, triton, onnx, numpy and pytest.
# Results are written as they come, to $ONNX_FUSE_TEST_RESULTS, or results.jsonl beside this file.
here=$(cd "$(dirname "$0")" && pwd)
export ONNX_FUSE_TEST_LIBRARY="$here/{library}" ONNX_FUSE_HARNESS="$here/harness" ONNX_FUSE_TEST_CASES="$here/cases"
export ONNX_FUSE_TEST_RESULTS="${{ONNX_FUSE_TEST_RESULTS:-$here/results.jsonl}}" PYTHONPATH="$here/source"
cd "$here/source" && exec "${{PYTHON:-python3}}" -m pytest -q -p no:cacheprovider tests/gpu "$@"
"""
BENCH = """#!/bin/sh
# Measures onnx-fuse's plugins on this machine's GPU, in 8 minutes (--minutes), the most telling cases first; --help lists the options.
# Needs what run.sh needs, but pytest. Results are written as they come, to $ONNX_FUSE_BENCH_RESULTS, or kernels.jsonl beside this file.
here=$(cd "$(dirname "$0")" && pwd)
export ONNX_FUSE_HARNESS="$here/harness" PYTHONPATH="$here/source"
out="${{ONNX_FUSE_BENCH_RESULTS:-$here/kernels.jsonl}}"
cd "$here/source" && exec "${{PYTHON:-python3}}" benchmarks/kernels.py --library "$here/{library}" --out "$out" "$@"
"""
_NOT_TAKEN = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "*.onnx", "*.onnx.data")
_PACKAGES = ("passes", "patterns", "plugin_csrc", "runtime")
# Folders of the checkout that are packages of onnx_fuse, as setup.cfg says.


def make(folder: Path, library: Path) -> None:
    """Fills a folder, which is emptied first.

    Args:
        library: a plugin library for the GPUs that the tests will run on.
    """
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source"
    shutil.copytree(ROOT / "onnx_fuse", source / "onnx_fuse", ignore=_NOT_TAKEN)
    for name in _PACKAGES:
        shutil.copytree(ROOT / name, source / "onnx_fuse" / name, ignore=_NOT_TAKEN)
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=_NOT_TAKEN)
    shutil.copy(ROOT / "pyproject.toml", source)
    shutil.copy(library, folder)
    (folder / "harness").mkdir()
    for path in harness.tools().glob("lib*.so*"):
        shutil.copy(path, folder / "harness")
    cases.write(folder / "cases")
    for name, script in (("run.sh", RUN), ("bench.sh", BENCH)):
        path = folder / name
        path.write_text(script.format(library=library.name))
        path.chmod(0o755)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.bundle", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--arch", type=int, action="append", help="compute capability; 80, whose PTX later GPUs run, and 90"
    )
    given = parser.parse_args(arguments)
    target = plugin_library.cache_folder() / "gpu" / plugin_library.LIBRARY
    built = plugin_library.build(target, architectures=given.arch or (aot.PTX_ARCHITECTURE, 90))
    make(given.folder, built.path)
    print(
        f"{given.folder}: copy it to the machine with the GPU and run {given.folder.name}/run.sh and bench.sh there ({built.held})"
    )


if __name__ == "__main__":
    main()
