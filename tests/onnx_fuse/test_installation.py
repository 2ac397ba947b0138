"""The commands that messages tell: right for how onnx-fuse was installed, and the only ones that messages tell."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from onnx_fuse import installation
from onnx_fuse.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("onnx_fuse", "passes", "patterns", "runtime", "plugin_csrc", "benchmarks", "examples")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def install(folder: Path, record: dict[str, Any] | None) -> None:
    """What an installer writes into a folder that Python imports from."""
    made = folder / "onnx_fuse-9.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: onnx-fuse\nVersion: 9\n")
    (made / "RECORD").write_text("")
    if record is not None:
        (made / "direct_url.json").write_text(json.dumps(record))


def executable(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment with a pip of its own, first on PATH."""
    pip = executable(tmp_path / "bin" / "pip")
    monkeypatch.setenv("PATH", str(pip.parent))
    monkeypatch.setattr(sysconfig, "get_path", {"scripts": str(pip.parent)}.__getitem__)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (None, "'onnx-fuse[kernels]'"),
        ({"url": "file://CLONE", "dir_info": {"editable": True}}, "-e 'CLONE[kernels]'"),
        ({"url": "file://CLONE", "dir_info": {}}, "'CLONE[kernels]'"),
        ({"url": "file://CLONE", "dir_info": {}, "subdirectory": "inner"}, "'CLONE/inner[kernels]'"),
        ({"url": "file://CLONE/gone", "dir_info": {"editable": True}}, "'onnx-fuse[kernels]'"),
        ({"url": "file://CLONE/x.whl", "archive_info": {}}, "'onnx-fuse[kernels] @ file://CLONE/x.whl'"),
        ({"url": "file://CLONE/gone.whl", "archive_info": {}}, "'onnx-fuse[kernels]'"),
        (
            {"url": "https://example.com/x.whl", "archive_info": {"hash": "sha256=0"}},
            "'onnx-fuse[kernels] @ https://example.com/x.whl'",
        ),
        (
            {"url": "https://example.com/x.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT, "requested_revision": "v1"}},
            f"'onnx-fuse[kernels] @ git+https://example.com/x.git@{COMMIT}'",
        ),
        (
            {"url": "ssh://git@example.com/x", "vcs_info": {"vcs": "git", "commit_id": COMMIT}, "subdirectory": "inner"},
            f"'onnx-fuse[kernels] @ git+ssh://git@example.com/x@{COMMIT}#subdirectory=inner'",
        ),
    ],
)  # fmt: skip
def test_each_way_of_installing(
    environment: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any] | None, expected: str
) -> None:
    clone = environment / "clone"
    (clone / "inner").mkdir(parents=True)
    (clone / "x.whl").touch()
    written = record and {**record, "url": record["url"].replace("CLONE", clone.as_posix())}
    install(environment / "site", written)
    monkeypatch.syspath_prepend(environment / "site")
    assert installation.add_extra("kernels") == f"pip install {expected.replace('CLONE', str(clone))}"


def test_a_path_with_characters_of_the_shell(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = environment / "Anna's clone; rm $HOME"
    clone.mkdir()
    install(environment / "site", {"url": clone.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.syspath_prepend(environment / "site")
    assert shlex.split(installation.add_extra("serve")) == ["pip", "install", "-e", f"{clone}[serve]"]


def test_what_a_build_leaves_in_a_clone_is_no_installation(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(environment / "site", {"url": environment.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.syspath_prepend(environment / "site")
    left = environment / "clone" / "onnx_fuse.egg-info"
    left.mkdir(parents=True)
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: onnx-fuse\nVersion: 8\n")
    monkeypatch.syspath_prepend(left.parent)
    assert metadata.version("onnx-fuse") == "8"
    assert installation.add_extra("serve") == f"pip install -e '{environment}[serve]'"


def test_a_pip_of_another_environment_is_not_used(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = shlex.join([sys.executable, "-m", "pip", "install", "-U", "onnx>=1"])
    assert installation.pip_install("-U", "onnx>=1") == "pip install -U 'onnx>=1'"
    monkeypatch.setenv("PATH", str(executable(environment / "other" / "pip").parent))
    assert installation.pip_install("-U", "onnx>=1") == by_name
    monkeypatch.setenv("PATH", "")
    assert installation.pip_install("-U", "onnx>=1") == by_name
    monkeypatch.setenv("PATH", str(environment / "bin"))
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    assert installation.pip_install("-U", "onnx>=1") == by_name


def test_an_environment_without_pip(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(executable(environment / "other" / "uv").parent))
    expected = shlex.join(["uv", "pip", "install", "--python", sys.executable, "onnx"])
    assert installation.pip_install("onnx") == expected


# --- packages of extras ----------------------------------------------------------------------------------------------


def test_a_package_is_given() -> None:
    assert installation.require("json.decoder", extra="serve", purpose="read") is json.decoder


def test_a_package_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = installation.add_extra("serve")
    (tmp_path / "half_there").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("not_there_at_all.inner", "half_there.inner"):
        with pytest.raises(UsageError) as caught:
            installation.require(module, extra="serve", purpose="mark ranges")
        package = module.partition(".")[0]
        assert caught.value.cause == f"{package} is not installed; it is needed to mark ranges."
        assert caught.value.remedy == f"Install it: {command}"


@pytest.mark.parametrize("fault", ["import not_there_at_all", "from json import nothing", "raise OSError('libx.so')"])
def test_a_package_that_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    (tmp_path / "damaged_package.py").write_text(fault)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UsageError, match=r"damaged-package is installed, but cannot be imported \(.+\); it is"
    ) as caught:
        installation.require("damaged_package", extra="serve", purpose="read", package="damaged-package")
    assert caught.value.remedy == f"Uninstall it, then install it again: {installation.add_extra('serve')}"


# --- the source ------------------------------------------------------------------------------------------------------


def sources() -> Iterator[tuple[str, str]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in (".py", ".cpp", ".h", ".txt") and name != "onnx_fuse/installation.py":
                yield name, path.read_text(encoding="utf-8")


def calls(function: str) -> Iterator[tuple[str, ast.Call]]:
    """File with line, and call, of each call of a function of this module."""
    for name, text in sources():
        for node in ast.walk(ast.parse(text)) if name.endswith(".py") and function in text else ():
            called = isinstance(node, ast.Call) and node.func
            if isinstance(called, ast.Attribute) and ast.unparse(called) == f"installation.{function}":
                yield f"{name}:{node.lineno}", node  # type: ignore[misc, attr-defined]


def brought(extra: str) -> set[str]:
    """The packages of an extra, as the metadata of this installation says."""
    wanted = [Requirement(line) for line in metadata.requires("onnx-fuse") or ()]
    environment = {"sys_platform": "linux", "extra": extra}
    return {canonicalize_name(each.name) for each in wanted if each.marker and each.marker.evaluate(environment)}


def test_no_message_names_an_installation_by_hand() -> None:
    by_hand = re.compile(r"\b(pip3?|uv pip|conda|pipx)\s+install\b|onnx-fuse\[")
    assert [f"{name}: {found[0]}" for name, text in sources() for found in by_hand.finditer(text)] == []


def test_optional_packages_are_asked_for_in_one_way() -> None:
    """A raw ImportError would name neither the extra nor the command: what an extra brings is imported after `require`."""
    required = {}
    for place, call in calls("require"):
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        module = ast.literal_eval(call.args[0])
        package = canonicalize_name(given.get("package", module.partition(".")[0]))
        assert package in brought(given["extra"]), f"{place}: {given['extra']} does not bring {package}"
        required[package] = place
    assert required.keys() >= {"cuda-python", "nvtx", "polygraphy", "pyyaml", "torch", "triton", "tritonclient"}


def test_every_extra_that_is_named_exists() -> None:
    named = [(place, ast.literal_eval(call.args[0])) for place, call in calls("add_extra")]
    known = metadata.metadata("onnx-fuse").get_all("Provides-Extra")
    assert named and known
    assert [f"{place}: {extra}" for place, extra in named if extra not in known] == []
