"""The wheel `onnx-fuse-plugins`: both compiled libraries, for a machine without a compiler.

   python plugin_wheel/build.py dist            # for all architectures
   python plugin_wheel/build.py dist --arch 90

zig compiles them, a compiler that pip installs and that knows the symbols of old versions of glibc: the libraries need glibc 2.17,
as every Linux since 2014 has it, whatever this machine has. Those of the machine's g++ would need its own. auditwheel checks that.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from onnx_fuse.runtime.onnxruntime import kernel_library
from onnx_fuse.runtime.plugins import aot, kernel_library_build, plugin_library
from onnx_fuse.versions import __version__

HERE = Path(__file__).resolve().parent
GLIBC = (2, 17)
MACHINE = platform.machine()
PLATFORM = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{MACHINE}"


def compilers() -> dict[str, str]:
    """CMake's settings that have zig compile."""
    target = f"-target;{MACHINE}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"
    settings = {
        f"CMAKE_{language}_COMPILER": f"{sys.executable};-m;ziglang;{command};{target}"
        for language, command in (("CXX", "c++"), ("ASM", "cc"))
    }
    # For zlib: where Debian has libraries, and its header, behind zig's own headers, as the machine's glibc has some there too.
    return {
        **settings,
        "CMAKE_LIBRARY_ARCHITECTURE": f"{MACHINE}-linux-gnu",
        "CMAKE_CXX_FLAGS": "-idirafter /usr/include",
    }


def libraries(folder: Path, architectures: list[int], jobs: int | None) -> None:
    """Compiles both into a folder, with their records."""
    settings = compilers()
    kernel_library_build.build(folder / kernel_library.LIBRARY, jobs=jobs, settings=settings)
    plugin_library.build(
        folder / plugin_library.LIBRARY,
        architectures=architectures,
        jobs=jobs,
        settings=settings,
        progress=lambda text: print(text, file=sys.stderr),
    )


def wheel(libraries_from: Path, out: Path) -> Path:
    """Packs libraries and records, and has auditwheel check what they need of the machine."""
    environment = {**os.environ, "WHEEL_PLATFORM": PLATFORM, "WHEEL_VERSION": __version__}
    with tempfile.TemporaryDirectory() as folder:
        source = shutil.copytree(HERE, Path(folder) / "source", ignore=shutil.ignore_patterns("build*", "__pycache__"))
        shutil.copytree(libraries_from, source / "onnx_fuse_plugins", dirs_exist_ok=True)
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    made = out / f"onnx_fuse_plugins-{__version__}-py3-none-{PLATFORM}.whl"
    command = [sys.executable, "-m", "auditwheel", "show", str(made)]
    told = " ".join(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    if f'platform tag: "{PLATFORM}"' not in told:
        made.unlink()
        sys.exit(f"auditwheel: {told}")
    return made


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out", type=Path, help="folder for the wheel")
    arguments.add_argument(
        "--arch", type=int, action="append", help="compute capability, 90 for sm_90; all if not given"
    )
    arguments.add_argument("--jobs", type=int, help="processes at a time; one for each core if not given")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        libraries(Path(folder), given.arch or list(aot.ARCHITECTURES), given.jobs)
        print(wheel(Path(folder), given.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
