"""The distribution: what is in it, and that it works where nothing but its base dependencies is installed."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shlex
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


@pytest.mark.long
def test_no_folder_of_data_is_taken_for_a_forgotten_package(dist: Path) -> None:
    log = (dist.parent / "log").read_text()
    assert "Successfully built" in log and "is absent from the" not in log


@pytest.mark.long
def test_wheel_installs_one_package_and_nothing_else(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in files_of(wheel)}
    assert tops == {"onnx_fuse", f"onnx_fuse-{onnx_fuse.__version__}.dist-info"}


def sources(*folders: str) -> set[str]:
    """Every file in folders of this tree, but for what was built there."""
    found = {
        path.relative_to(ROOT)
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and ".so" not in path.suffixes
    }
    return {path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)}


@pytest.mark.long
def test_wheel_has_every_source_and_nothing_else(wheel: Path) -> None:
    """Modules, the type marker, and what the plugin library is built from, in each operator's folder too."""
    wanted = {name if name.startswith("onnx_fuse/") else f"onnx_fuse/{name}" for name in sources(*FOLDERS)}
    assert {name for name in files_of(wheel) if ".dist-info/" not in name} == wanted
    assert {"onnx_fuse/py.typed", "onnx_fuse/plugin_csrc/operators/fused_swish/plugin.cpp"} <= wanted


@pytest.mark.long
def test_wheel_of_the_tree_is_the_wheel_of_the_sdist(dist: Path, wheel: Path, tmp_path: Path) -> None:
    build(dist.parent / "source", tmp_path / "out", "--wheel")
    (direct,) = (tmp_path / "out").glob("*.whl")
    assert files_of(direct) == files_of(wheel)


@pytest.mark.long
def test_sdist_has_every_file_of_the_tree(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert sources(*FOLDERS, "benchmarks", "docs", "examples", "plugin_wheel", "tests") - names == set()
    assert {"LICENSE", "Makefile", "mkdocs.yml", "pyproject.toml", "setup.cfg"} <= names
    assert {page.name for page in ROOT.glob("*.md")} <= names


def packages() -> dict[str, Path]:
    """The packages that setup.cfg names, with their folders."""
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg")
    placed = dict(re.findall(r"(\S+) = (\S+)", options["options"]["package_dir"]))
    found = {}
    for name in options["options"]["packages"].split():
        top = max((parent for parent in placed if f"{name}.".startswith(f"{parent}.")), key=len)
        found[name] = ROOT / placed[top] / name[len(top) + 1 :].replace(".", "/")
    return found


def test_setup_cfg_names_every_package() -> None:
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")}
    assert set(packages().values()) == folders


@pytest.mark.long
def test_an_editable_installation_has_every_package(dist: Path, tmp_path: Path) -> None:
    """What `pip install -e` asks setuptools for, looked at by an interpreter that has no other onnx-fuse."""
    source = dist.parent / "source"
    hook = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    run(sys.executable, "-c", hook, cwd=source)
    (made,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(made).extractall(tmp_path / "site")
    code = (
        f"import site, sys, importlib; site.addsitedir({str(tmp_path / 'site')!r})\n"
        f"sys.path.append({sysconfig.get_path('purelib')!r})\n"  # its .pth files are not read
        f"for name in {list(packages())!r}: print(importlib.import_module(name).__file__)"
    )
    imported = run(sys.executable, "-S", "-c", code, cwd=tmp_path).splitlines()
    wanted = [source / folder.relative_to(ROOT) / "__init__.py" for folder in packages().values()]
    assert [Path(file) for file in imported] == wanted


# --- names -----------------------------------------------------------------------------------------------------------

# Packages that tell what they export.
EXPORTING = (
    "onnx_fuse",
    "onnx_fuse.learning",
    "onnx_fuse.patterns",
    "onnx_fuse.runtime",
    "onnx_fuse.runtime.onnxruntime",
)


@pytest.mark.parametrize("package", EXPORTING)
def test_an_exported_name_stays_what_it_is(package: str, tmp_path: Path) -> None:
    """Importing a submodule sets the name of it in its package, where it would hide an export of that name."""
    code = (
        f"import importlib, pkgutil, types; package = importlib.import_module({package!r})\n"
        "first = {name: getattr(package, name) for name in package.__all__}\n"
        "modules = [each.name for each in pkgutil.iter_modules(package.__path__) if each.name != '__main__']\n"
        "for name in modules: importlib.import_module(f'{package.__name__}.{name}')\n"
        "assert first and all(getattr(package, name) is value for name, value in first.items())\n"
        "print(*(name for name, value in first.items() if isinstance(value, types.ModuleType)))"
    )
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == ""


def test_no_module_is_named_like_an_export_of_its_package() -> None:
    folders = packages()
    exporting = set()
    for name, folder in folders.items():
        inside = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if path.is_dir()}
        inside |= {other[len(name) + 1 :].partition(".")[0] for other in folders if other.startswith(f"{name}.")}
        exported = set(exports(folder / "__init__.py"))
        exporting |= {name} if exported else set()
        assert exported & inside == set(), name
    assert exporting == set(EXPORTING)


def exports(file: Path) -> Iterator[str]:
    """The names in `__all__`."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            yield from ast.literal_eval(node.value)


def dependencies(*names: str) -> Iterator[metadata.Distribution]:
    """What pip brings beside onnx-fuse for `onnx-fuse` or `onnx-fuse[EXTRA]`: its dependencies and theirs."""
    seen: set[str] = {"onnx-fuse"}
    todo = list(names)
    while todo:
        name, extra = re.fullmatch(r"([^\[]*)(?:\[(.*)\])?", todo.pop()).groups("")
        distribution = metadata.distribution(name)
        if distribution.name in seen - {"onnx-fuse"}:
            continue
        if distribution.name not in seen:
            yield distribution
        seen.add(distribution.name)
        wanted = [Requirement(line) for line in distribution.requires or ()]
        todo += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": extra})]


@pytest.fixture(scope="module")
def empty_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of a new environment that holds the wheel and its base dependencies."""
    return environment_with([wheel], ["onnx-fuse"], tmp_path_factory)


def environment_with(wheels: list[Path], names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of a new environment that holds wheels, and what pip brings for names.

    The dependencies are links to the ones installed here: nothing is downloaded, and a module that only an extra brings
    is as absent as it would be for a user.
    """
    environment = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment.parent)
    variables = {"base": str(environment), "platbase": str(environment)}
    scripts, site = (Path(sysconfig.get_path(name, vars=variables)) for name in ("scripts", "purelib"))
    for distribution in dependencies(*names):
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--quiet", "--no-index")
    run(*pip, "--disable-pip-version-check", *wheels, cwd=environment.parent)
    return scripts


@pytest.mark.long
def test_pip_takes_the_command_that_messages_tell(empty_environment: Path, wheel: Path, tmp_path: Path) -> None:
    """As long as the wheel is there, its path; later the name, for which pip keeps what is installed and asks no index."""
    code = "from onnx_fuse import installation; print(installation.add_extra('polygraphy'))"
    requirement = shlex.split(run(empty_environment / "python", "-c", code, cwd=tmp_path))[-1]
    assert requirement == f"onnx-fuse[polygraphy] @ {wheel.as_uri()}"
    with zipfile.ZipFile(tmp_path / "polygraphy-0.53-py3-none-any.whl", "w") as archive:
        folder = "polygraphy-0.53.dist-info"
        archive.writestr(f"{folder}/METADATA", "Metadata-Version: 2.1\nName: polygraphy\nVersion: 0.53\n")
        archive.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{folder}/RECORD", "")
    pip = (sys.executable, "-m", "pip", "--python", empty_environment / "python", "install", "--dry-run", "--no-index")
    for each in (requirement, "onnx-fuse[polygraphy]"):
        done = run(*pip, "--disable-pip-version-check", "--find-links", tmp_path, each, cwd=tmp_path)
        assert "Would install" in done and "polygraphy-0.53" in done.splitlines()[-1], done


@pytest.mark.long
def test_wheel_runs_in_an_empty_environment(empty_environment: Path, tmp_path: Path) -> None:
    where = run(empty_environment / "python", "-c", "import onnx_fuse; print(onnx_fuse.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(empty_environment.parent)
    assert "fuse" in run(empty_environment / "onnx-fuse", "--help", cwd=tmp_path)
    assert "fuse" in run(empty_environment / "python", "-m", "onnx_fuse", "--help", cwd=tmp_path)
    assert "FusedAttentionLayerNorm" in run(empty_environment / "onnx-fuse", "list", cwd=tmp_path)


@pytest.mark.long
def test_wheel_fuses_in_an_empty_environment(empty_environment: Path, tmp_path: Path) -> None:
    import onnx

    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in "xy")
    graph = onnx.helper.make_graph([node], "relu", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    run(empty_environment / "onnx-fuse", "fuse", "model.onnx", "-o", "fused.onnx", cwd=tmp_path)
    assert (tmp_path / "fused.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


@pytest.fixture(scope="module")
def plugin_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the compiled libraries, for one architecture. What has been compiled is kept beside the tests."""
    out = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(ROOT / ".cache" / "triton"))
        run(sys.executable, ROOT / "plugin_wheel" / "build.py", out, "--arch", "80", cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.long
def test_libraries_of_the_wheel_need_nothing_but_an_old_glibc(plugin_wheel: Path, tmp_path: Path) -> None:
    """Neither CUDA nor TensorRT; auditwheel has seen to the versions of glibc's symbols."""
    assert plugin_wheel.name == f"onnx_fuse_plugins-{onnx_fuse.__version__}-py3-none-manylinux_2_17_x86_64.whl"
    with zipfile.ZipFile(plugin_wheel) as archive:
        archive.extractall(tmp_path)
    found = sorted(tmp_path.glob("onnx_fuse_plugins/*.so"))
    assert [path.name for path in found] == ["libgr_ml_infra_onnxruntime.so", "libgr_ml_infra_tensorrt_plugins.so"]
    for path in found:
        assert path.with_name(f"{path.name}.json").is_file()
        needed = re.findall(r"NEEDED +(\S+)", run("objdump", "-p", path, cwd=tmp_path))
        assert {name.split(".so")[0] for name in needed} <= {"ld-linux-x86-64", "libc", "libdl", "libm", "libpthread"}


@pytest.mark.long
def test_both_wheels_serve_where_there_is_no_compiler(
    wheel: Path, plugin_wheel: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT finds the plugins and ONNX Runtime the kernels; nobody has named them."""
    import onnx

    scripts = environment_with([wheel, plugin_wheel], ["onnx-fuse", "onnx-fuse[tensorrt-rtx]"], tmp_path_factory)
    folder = tmp_path_factory.mktemp("used")
    monkeypatch.delenv("ONNX_FUSE_PLUGINS", raising=False)
    monkeypatch.delenv("ONNX_FUSE_KERNEL_LIBRARY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("PATH", str(scripts))
    shown = run("onnx-fuse", "plugins", "show", cwd=folder)
    places = [Path(line.partition(":")[0]) for line in shown.splitlines() if line.startswith("/")]
    assert [place.name for place in places] == ["libgr_ml_infra_onnxruntime.so", "libgr_ml_infra_tensorrt_plugins.so"]
    assert all(place.parent.name == "onnx_fuse_plugins" and place.is_relative_to(scripts.parent) for place in places)
    text = "m (float[n, 8] x) => (float[n, 8] y) { s = Sigmoid(x)  y = Mul(x, s) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}'), folder / "m.onnx")
    run("onnx-fuse", "fuse", "m.onnx", "-o", "fused.onnx", "--enable", "FusedSwish", cwd=folder)
    assert "1 of them plugins" in run("onnx-fuse", "parse", "fused.onnx", cwd=folder)
    code = "from onnx_fuse import runtime; print(runtime.open('fused.onnx').kernels)"
    assert str(places[0]) in run("python", "-c", code, cwd=folder)


def test_import_is_light(tmp_path: Path) -> None:
    """Heavy packages are imported where they are used: a script that only asks for the version should not wait."""
    code = "import sys; before = set(sys.modules); import onnx_fuse; print(*(set(sys.modules) - before))"
    imported = {name.split(".")[0] for name in run(sys.executable, "-c", code, cwd=tmp_path).split()}
    assert "onnx_fuse" in imported
    assert imported.isdisjoint(HEAVY)
