"""The distribution: what is in it, and that it works where nothing but its base dependencies is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import onnx_fuse

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("onnx_fuse", "passes", "patterns", "plugin_csrc", "runtime")
NOT_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
HEAVY = (
    "onnx",
    "onnxruntime",
    "onnx_graphsurgeon",
    "onnxscript",
    "rich",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "transformers",
    "typer",
)


def run(*command: str | Path, cwd: Path, stderr: int = subprocess.PIPE) -> str:
    """Output of a command that must succeed, run where neither the checkout nor the user's settings reach it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": stderr}
    done = subprocess.run(command, cwd=cwd, env=environment, **streams, text=True)
    if done.returncode:
        line = " ".join(map(str, command))
        pytest.fail(f"{line} exited {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout


def build(source: Path, out: Path, *kinds: str) -> str:
    """Builds into a folder; what was printed."""
    command = (sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", out, source)
    return run(*command, cwd=out.parent, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this tree and the wheel built from that sdist."""
    work = tmp_path_factory.mktemp("dist")
    # A copy, because building leaves files in the tree, and what an earlier build left there would get into the wheel.
    shutil.copytree(ROOT, work / "source", ignore=NOT_SOURCES)
    (work / "log").write_text(build(work / "source", work / "out"))
    return work / "out"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_no_folder_of_data_is_taken_for_a_forgotten_package(dist: Path) -> None:
    log = (dist.parent / "log").read_text()
    assert "Successfully built" in log and "is absent from the" not in log


def test_wheel_installs_one_package_and_nothing_else(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in files_of(wheel)}
    assert tops == {"onnx_fuse", f"onnx_fuse-{onnx_fuse.__version__}.dist-info"}


def test_wheel_has_every_module_and_the_type_marker(wheel: Path) -> None:
    modules = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    wanted = {name if name.startswith("onnx_fuse/") else f"onnx_fuse/{name}" for name in modules}
    assert wanted | {"onnx_fuse/py.typed"} <= files_of(wheel)


def test_wheel_has_the_sources_of_the_plugin_library(wheel: Path) -> None:
    folder = ROOT / "plugin_csrc"
    sources = [path for kind in ("CMakeLists.txt", "*.cpp", "*.h") for path in folder.rglob(kind)]
    assert {f"onnx_fuse/{path.relative_to(ROOT).as_posix()}" for path in sources} <= files_of(wheel)


def test_wheel_of_the_tree_is_the_wheel_of_the_sdist(dist: Path, wheel: Path, tmp_path: Path) -> None:
    build(dist.parent / "source", tmp_path / "out", "--wheel")
    (direct,) = (tmp_path / "out").glob("*.whl")
    assert files_of(direct) == files_of(wheel)


def test_sdist_carries_tests_and_licence(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "Makefile", "setup.cfg", "tests/test_packaging.py", "tests/models/exports.py"} <= names


def base_dependencies() -> Iterator[metadata.Distribution]:
    """What `pip install onnx-fuse` brings, without extras: the dependencies of onnx-fuse and theirs."""
    seen: set[str] = set()
    todo = ["onnx-fuse"]
    while todo:
        distribution = metadata.distribution(todo.pop())
        if distribution.name in seen:
            continue
        seen.add(distribution.name)
        if len(seen) > 1:
            yield distribution
        wanted = [Requirement(line) for line in distribution.requires or ()]
        todo += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]


@pytest.fixture(scope="module")
def empty_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of a new environment that holds the wheel and its base dependencies.

    The dependencies are links to the ones installed here: nothing is downloaded, and a module that only an extra brings
    is as absent as it would be for a user.
    """
    environment = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment.parent)
    variables = {"base": str(environment), "platbase": str(environment)}
    scripts, site = (Path(sysconfig.get_path(name, vars=variables)) for name in ("scripts", "purelib"))
    for distribution in base_dependencies():
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--disable-pip-version-check", wheel, cwd=environment.parent)
    return scripts


def test_wheel_runs_in_an_empty_environment(empty_environment: Path, tmp_path: Path) -> None:
    where = run(empty_environment / "python", "-c", "import onnx_fuse; print(onnx_fuse.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(empty_environment.parent)
    assert "fuse" in run(empty_environment / "onnx-fuse", "--help", cwd=tmp_path)
    assert "fuse" in run(empty_environment / "python", "-m", "onnx_fuse", "--help", cwd=tmp_path)
    assert "FusedAttentionLayerNorm" in run(empty_environment / "onnx-fuse", "list", cwd=tmp_path)


def test_wheel_fuses_in_an_empty_environment(empty_environment: Path, tmp_path: Path) -> None:
    import onnx

    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in "xy")
    graph = onnx.helper.make_graph([node], "relu", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    run(empty_environment / "onnx-fuse", "fuse", "model.onnx", "-o", "fused.onnx", cwd=tmp_path)
    assert (tmp_path / "fused.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_import_is_light(tmp_path: Path) -> None:
    """Heavy packages are imported where they are used: a script that only asks for the version should not wait."""
    code = "import sys; before = set(sys.modules); import onnx_fuse; print(*(set(sys.modules) - before))"
    imported = {name.split(".")[0] for name in run(sys.executable, "-c", code, cwd=tmp_path).split()}
    assert "onnx_fuse" in imported
    assert imported.isdisjoint(HEAVY)
