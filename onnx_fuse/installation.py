"""What this copy of onnx-fuse was installed from, the command that adds an extra to it, and the packages that extras bring."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from onnx_fuse.errors import UsageError

_NAME = "onnx-fuse"


def require(module: str, *, extra: str, purpose: str, package: str = "") -> Any:
    """A module that an extra brings.

    Args:
        module: its name, such as "cuda.bindings.driver".
        extra: the extra of onnx-fuse.
        purpose: what the module is needed for, as it stands after "to": "compile kernels".
        package: the name of the distribution, where it differs from that of the top-level module.

    Raises:
        UsageError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: the module is there, a library of it is not
        package = package or module.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise UsageError(
                f"{package} is not installed; it is needed to {purpose}.", f"Install it: {add_extra(extra)}"
            ) from error
        raise UsageError(
            f"{package} is installed, but cannot be imported ({error}); it is needed to {purpose}.",
            f"Uninstall it, then install it again: {add_extra(extra)}",
        ) from error


def add_extra(extra: str) -> str:
    """The command that adds an extra to this copy of onnx-fuse: from the clone, file or repository it came from."""
    return pip_install(*_requirement(extra))


def pip_install(*arguments: str) -> str:
    """The command that installs into the environment of this interpreter."""
    return shlex.join([*_install(), *arguments])


def _requirement(extra: str) -> list[str]:
    """onnx-fuse with an extra as pip takes it, from the record of the installation (`direct_url.json` of PEP 610).

    The name alone serves where there is no record, because onnx-fuse came from an index, and where the clone or file is gone:
    pip then keeps the copy that is installed, and fetches only what the extra adds.
    """
    record, by_name = _direct_url(), f"{_NAME}[{extra}]"
    url = record.get("url", "")
    inside = f"#subdirectory={record['subdirectory']}" if "subdirectory" in record else ""
    if (version := record.get("vcs_info")) is not None:
        return [f"{by_name} @ {version['vcs']}+{url}@{version['commit_id']}{inside}"]
    local = _local_path(url)
    if local is not None and not local.exists():
        return [by_name]
    if local is not None and (folder := record.get("dir_info")) is not None:
        target = f"{local / record.get('subdirectory', '')}[{extra}]"
        return ["-e", target] if folder.get("editable") else [target]
    return [f"{by_name} @ {url}{inside}"] if url else [by_name]


def _direct_url() -> dict[str, Any]:
    """The record of where onnx-fuse was installed from; empty if it came from an index."""
    import importlib.metadata

    for found in importlib.metadata.distributions(name=_NAME):
        # A build leaves an onnx_fuse.egg-info in the clone, which Python takes for an installation when it runs there. It has
        # no list of what was installed.
        if found.read_text("RECORD") is not None:
            text = found.read_text("direct_url.json")
            return dict(json.loads(text)) if text else {}
    return {}


def _local_path(url: str) -> Path | None:
    if urlsplit(url).scheme != "file":
        return None
    from urllib.request import url2pathname  # loads an HTTP client

    return Path(url2pathname(urlsplit(url).path))


def _install() -> list[str]:
    """`pip install` where that is the one of this virtual environment; else what names the interpreter."""
    found = shutil.which("pip")
    if found and sys.prefix != sys.base_prefix and Path(found).parent == Path(sysconfig.get_path("scripts")):
        return ["pip", "install"]
    if importlib.util.find_spec("pip") is None and shutil.which("uv"):  # uv makes environments without pip
        return ["uv", "pip", "install", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install"]
