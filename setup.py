"""What pyproject.toml cannot say: the version, and the kernels in C as a library for ctypes.

``LFADS_PURE=1`` leaves the kernels out.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError, LinkError

_OF_VERSION = runpy.run_path(str(Path(__file__).parent / "lfads_torch" / "version.py"))
VERSION = _OF_VERSION["read_version"]()
# Torch for Windows exports no matrix product that the kernels could call.
IS_PURE = os.environ.get("LFADS_PURE") == "1" or sys.platform == "win32"

KERNELS = Extension(
    "lfads_torch.kernels._native",
    ["lfads_torch/kernels/native_loops.c", "lfads_torch/kernels/native_elementwise.c"],
    depends=[f"lfads_torch/kernels/native{x}.h" for x in ("", "_product", "_tiles")],
    libraries=["m"],
    optional=True,
)


def record(folder: Path) -> None:
    """Write the version into the package in a folder."""
    path = folder / "lfads_torch" / _OF_VERSION["RECORD"]
    path.write_text(json.dumps(VERSION._asdict()) + "\n", encoding="utf-8")


class BuildPackage(build_py):
    """Record the version in what is built; not in the checkout that an editable install uses."""

    def run(self) -> None:
        """Copy the package."""
        super().run()
        if not self.editable_mode:
            record(Path(self.build_lib))


class SourceArchive(sdist):
    """Record the version in the archive, where git is gone."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the files."""
        super().make_release_tree(base_dir, files)
        record(Path(base_dir))


class BuildKernels(build_ext):
    """Build a library that knows nothing of Python, with OpenMP where the compiler has it."""

    is_built = False

    def get_ext_filename(self, fullname: str) -> str:
        """Name the library without Python's ABI, which it does not use."""
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Try with OpenMP, then without."""
        plain = ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math"]
        # Compiled with OpenMP and linked without: its functions come from the library that torch
        # carries (see `c_library`). Linked, a wheel would bring a second one, with its own threads.
        for openmp in (["-fopenmp"], []):
            ext.extra_compile_args = plain + openmp
            try:
                super().build_extension(ext)
            except (CompileError, LinkError):
                if not openmp:
                    raise
            else:
                self.is_built = True
                return


class Wheel(bdist_wheel):
    """One wheel for every Python: of a platform with the kernels, of any without."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, its ABI and the platform."""
        platform: Any = super().get_tag()[2]
        self.root_is_pure = not getattr(self.get_finalized_command("build_ext"), "is_built", False)
        return "py3", "none", "any" if self.root_is_pure else platform


setup(
    version=VERSION.version,
    ext_modules=[] if IS_PURE else [KERNELS],
    cmdclass={
        "bdist_wheel": Wheel,
        "build_ext": BuildKernels,
        "build_py": BuildPackage,
        "sdist": SourceArchive,
    },
)
