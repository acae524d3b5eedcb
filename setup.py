"""Builds the two extension modules; everything else about the package is in pyproject.toml.

SHMCACHE_FAULTS=1 in the environment compiles the core's fault points in (SHM_FAULTS), which lets
tests kill a process between any two steps of a write.  Such a build is for tests only: it goes to
a directory of its own (`make fault-build`), never into an installation.
"""

import os
import sys
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

if not sys.platform.startswith("linux"):
    sys.exit("shmcache needs Linux (OFD locks, /dev/shm, MADV_WIPEONFORK); this is " + sys.platform)

CORE = "shmcache/_core/src"
FAULTS = os.environ.get("SHMCACHE_FAULTS") == "1"

# Python's own flags turn sign-compare on, and Cython's generated C does not care for it.
compile_args = ["-O2", "-std=gnu11", "-Wall", "-Wno-sign-compare"]
macros: list[tuple[str, str | None]] = [("SHM_FAULTS", "1")] if FAULTS else []

extensions = [
    Extension(
        "shmcache._core._binding",
        ["shmcache/_core/binding.pyx"],
        include_dirs=[CORE, "shmcache/_core"],
        # The core is one translation unit, included by the binding: a change to any part of it
        # must rebuild the module.
        depends=sorted(glob(f"{CORE}/*.h") + glob("shmcache/_core/*.[hp]*")),
        define_macros=macros,
        extra_compile_args=compile_args,
    ),
    Extension(
        "shmcache._linux",
        ["shmcache/_linux.pyx"],
        define_macros=macros,
        extra_compile_args=compile_args,
    ),
]

setup(
    ext_modules=cythonize(
        extensions,
        build_dir="build/cython",
        compiler_directives={"language_level": 3, "binding": False},
    )
)
