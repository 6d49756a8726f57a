"""The one compiled part: models/crf/_lattice, the permutohedral lattice. Everything else is in pyproject.toml.

Without a C++ compiler and Python's headers the install fails (Debian, Ubuntu: apt-get install g++ python3-dev).
"""

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

lattice = Pybind11Extension(
    "models.crf._lattice",
    ["models/crf/lattice_cpp/kernels.cpp", "models/crf/lattice_cpp/module.cpp"],
    depends=[f"models/crf/lattice_cpp/{name}" for name in ("buffer.hpp", "lattice.hpp", "build.inc", "passes.inc")],
    cxx_std=17,
    # No -march=native: the file holds a version for every instruction set and chooses when it is loaded.
    extra_compile_args=["-O3", "-Wno-psabi", "-Wno-maybe-uninitialized"],
)

setup(ext_modules=[lattice], cmdclass={"build_ext": build_ext})
