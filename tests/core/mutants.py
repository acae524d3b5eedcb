"""Breaks the core in one place at a time and asks whether a program of this directory notices.

A test that cannot fail proves nothing. Each mutant of mutations.py takes away one thing that the
core's comments call necessary - a recheck, a bound, a step of the repair - in a copy of its
sources; the program named beside it must then fail. Run by `make mutants`, and in the nightly job.

The exit status is 0 if every mutant was noticed. A mutant whose text is no longer found in the
sources is an error, so that this list follows the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutations import MUTANTS, Mutant

HERE = Path(__file__).resolve().parent
CORE = HERE.parent.parent / "shmcache" / "_core" / "src"
ENVIRONMENT = {"SEED": "1", "OPS": "12000", "SEGMENTS": "4", "SECONDS_EACH": "6"}
ENVIRONMENT |= {"FUZZ_SECONDS": "60"}  # a fuzzer ends at its first finding


def survives(mutant: Mutant) -> str | None:
    """What is wrong with this mutant, None if it was noticed."""
    with tempfile.TemporaryDirectory() as scratch:
        core, out = Path(scratch, "core"), Path(scratch, "out")
        shutil.copytree(CORE, core)
        source = core / mutant.file
        text = source.read_text()
        if mutant.old not in text:
            return f"{mutant.file} no longer has the text that this mutant changes"
        source.write_text(text.replace(mutant.old, mutant.new, 1))
        make = ["make", "-s", "-C", str(HERE), f"CORE={core}", f"OUT={out}", "WERROR="]
        built = subprocess.run([*make, str(out / mutant.program)], capture_output=True, text=True)
        if built.returncode:
            return f"does not compile:\n{built.stderr}"
        run = subprocess.run(
            [str(out / mutant.program)],
            capture_output=True,
            env=os.environ | ENVIRONMENT,
            timeout=600,
        )
        return None if run.returncode else f"{mutant.program} did not notice"


def main() -> int:
    """Tries every mutant whose description holds the words of the command line; 1 on a failure."""
    words = " ".join(sys.argv[1:])
    failed = passed = 0
    for mutant in MUTANTS:
        if words not in mutant.what:
            continue
        wrong = survives(mutant)
        print(f"  {mutant.what}: {wrong or f'noticed by {mutant.program}'}", flush=True)
        failed += wrong is not None
        passed += wrong is None
    print(f"mutants: {passed} passed, {failed} failed")
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main())
