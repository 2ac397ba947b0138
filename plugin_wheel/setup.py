"""A wheel with libraries that need no certain Python. `build.py` calls this, and says by the environment for what platform."""

import os

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel


class Binary(Distribution):
    """Not for every platform, although it has no extension module."""

    def has_ext_modules(self) -> bool:
        return True


class AnyPython(bdist_wheel):
    """For every Python, although it is not for every platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", os.environ["WHEEL_PLATFORM"]


version = os.environ["WHEEL_VERSION"]
setup(
    version=version,
    install_requires=[f"onnx-fuse=={version}"],
    packages=["onnx_fuse_plugins"],
    package_data={"onnx_fuse_plugins": ["*.so", "*.so.json"]},
    distclass=Binary,
    cmdclass={"bdist_wheel": AnyPython},
)
