"""Run the frameworks' own test suites over shmcache's backends.

    python tests/upstream/run.py [django] [cachelib] [flask] [dogpile]

The judges are the tests that Django, cachelib, Flask-Caching and dogpile.cache have for their own
backends, of the very versions that are installed. Their source distributions are downloaded by pip
into build/upstream (dogpile.cache installs its tests), and what is needed to aim them at shmcache
lies beside this file. What is left out is told below, with the reason.

Exits 1 if a suite fails, or if one ran fewer tests than it has.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "upstream"

DJANGO_CLASSES = (
    "CacheUtils",
    "PrefixedCacheUtils",
    "CacheHEADTest",
    "CacheI18nTest",
    "PrefixedCacheI18nTest",
    "CacheMiddlewareTest",
    "TestWithTemplateResponse",
    "TestMakeTemplateFragmentKey",
    "CacheHandlerTest",
)
"""What Django tests over LocMemCache; with shmcache in its place. (Left out: LocMemCacheTests and
two of DefaultNonExpiringCacheKeyTests, which read that backend's dictionaries.)"""

DJANGO_BACKEND = """
from shmcache.contrib import django


class ShmCache(django.ShmCache):
    def __init__(self, location, params):
        name = "shmcache-upstream-" + (location or "default").replace(" ", "_")
        options = {"size": "4MiB", **(params.get("OPTIONS") or {})}
        super().__init__(name, {**params, "OPTIONS": options})
"""

FLASK_IGNORED = ("typing", "test_backend_cache.py", "test_init.py")
"""Of Flask-Caching's files: no tests; its own backends, by name; the same."""

FLASK_LEFT_OUT = (
    "test_serializer.py::test_values_are_stored_in_the_configured_format",  # SimpleCache's dict
)

AT_LEAST = {"django": 115, "cachelib": 90, "flask": 150, "dogpile": 80}
"""Tests that ran when this was written, rounded down: a suite that has shrunk shows nothing."""


def unpack(package: str, stem: str) -> Path:
    """The unpacked source distribution of the installed version."""
    release = version(package)
    folder = WORK / f"{stem}-{release}"
    if not folder.is_dir():
        WORK.mkdir(parents=True, exist_ok=True)
        download(f"{package}=={release}")
        half = WORK / f"{stem}.half"  # a run that was interrupted leaves no half of a suite
        shutil.rmtree(half, ignore_errors=True)
        with tarfile.open(WORK / f"{stem}-{release}.tar.gz") as archive:
            archive.extractall(half, filter="data")
        (half / folder.name).rename(folder)
        half.rmdir()
    return folder


def download(requirement: str) -> None:
    """The source distribution, by pip; once more where the registry is slow or has hiccups."""
    package = requirement.partition("==")[0]  # what builds it may come as wheels
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(WORK)]
    pip += ["--no-binary", package, "--timeout", "30", "--retries", "3"]
    for attempt in (1, 2):
        done = subprocess.run(
            [*pip, requirement], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode == 0:
            return
        print(f"download of {requirement}, attempt {attempt}: {done.stdout.decode()[-1000:]}")
        time.sleep(5)
    raise SystemExit(f"{requirement} could not be downloaded: is the package registry reachable?")


def run(suite: str, command: list[str], folder: Path) -> bool:
    """Run a suite in its folder; whether it passed, with as many tests as it should have."""
    path = os.pathsep.join([str(ROOT), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "CI": "true"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    count = re.search(r"Ran (\d+) tests", done.stdout) or re.search(r"(\d+) passed", done.stdout)
    ran = int(count[1]) if count else 0
    passed = done.returncode == 0 and ran >= AT_LEAST[suite]
    if not passed:
        print(done.stdout[-20_000:])
    verdict = "passed" if passed else f"FAILED (at least {AT_LEAST[suite]} should have)"
    print(f"{suite}: {ran} of its own tests {verdict}", flush=True)
    return passed


def pytest(*arguments: str) -> list[str]:
    """A quiet pytest that knows nothing of our own settings."""
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]


def django() -> bool:
    """BaseCacheTests over our backend, and what Django tests over LocMemCache otherwise."""
    tests = unpack("Django", "django") / "tests"
    shutil.copy(HERE / "django_shm.py", tests / "cache" / "test_shm.py")
    (tests / "cache" / "shm_backend.py").write_text(DJANGO_BACKEND)
    source = (tests / "cache" / "tests.py").read_text()
    ours = source.replace(
        "django.core.cache.backends.locmem.LocMemCache", "cache.shm_backend.ShmCache"
    )
    assert ours != source
    (tests / "cache" / "test_over_shm.py").write_text(ours)
    labels = ["cache.test_shm", *(f"cache.test_over_shm.{name}" for name in DJANGO_CLASSES)]
    return run("django", ["runtests.py", *labels, "--parallel", "1"], tests)


def cachelib() -> bool:
    """cachelib's common tests, with and without a prefix and a serializer."""
    tests = unpack("cachelib", "cachelib") / "tests"
    shutil.copy(HERE / "test_shm_cachelib.py", tests)
    return run("cachelib", pytest("-o", "addopts=", "test_shm_cachelib.py"), tests)


def flask() -> bool:
    """Flask-Caching's whole suite, its app fixture over our backend."""
    tests = unpack("Flask-Caching", "flask_caching") / "tests"
    conftest = tests / "conftest.py"
    original = conftest.with_suffix(".orig")
    if not original.exists():
        shutil.copy(conftest, original)
    conftest.write_text(original.read_text() + "\n\n" + (HERE / "flask_conftest.py").read_text())
    left_out = [f"--deselect={name}" for name in FLASK_LEFT_OUT]
    left_out += [f"--ignore={name}" for name in FLASK_IGNORED]
    return run("flask", pytest("-o", "addopts=", "--rootdir=.", *left_out, "."), tests)


def dogpile() -> bool:
    """dogpile.cache's generic suites; they are installed with it."""
    return run("dogpile", pytest("-o", "addopts=", "test_shm_dogpile.py"), HERE)


SUITES = {"flask": flask, "dogpile": dogpile, "django": django, "cachelib": cachelib}


def main() -> int:
    """Run the suites that are named, or all."""
    names = sys.argv[1:] or list(SUITES)
    with ThreadPoolExecutor(2) as pool:  # they wait for expiries, most of the time
        results = list(pool.map(lambda name: SUITES[name](), names))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
