"""The CUDA kernels as the build compiles them, and what ptxas says of each.

CMake is asked for its own commands, so the flags are those of the wheel.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.compiled.resources import Measured, Resources

ROOT = Path(__file__).parents[2]
ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<target>sm_\d+)a?'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?",
)


def version() -> str | None:
    """ "13.0.88", or None where there is no nvcc."""
    try:
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"\bV([\d.]+)", text.stdout)
    return found[1] if found else None


def objection() -> str | None:
    """Why the build would leave out kernels that nvcc could compile, or None."""
    # As CMakeLists.txt has it: the environment goes before what the command line defines.
    for name in ("LOGITLESS_CUDA", "LOGITLESS_CUDA_ARCHITECTURES"):
        value = os.environ.get(name)
        if value and value not in ("ON", "AUTO"):
            return f"{name}={value} leaves out CUDA kernels that the table lists: unset it"
    return None


def commands(folder: Path) -> list[str]:
    """nvcc's command for each .cu file, run in `folder`."""
    import pybind11

    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    configure += ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    configure += ["-DLOGITLESS_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    done = subprocess.run(configure, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cmake failed:\n{done.stdout}\n{done.stderr}")
    listed = json.loads((folder / "compile_commands.json").read_text())
    return sorted(entry["command"] for entry in listed if entry["file"].endswith(".cu"))


def measure(command: str) -> list[Measured]:
    """The kernels of one file, each for every target that the command names."""
    with tempfile.TemporaryDirectory() as folder:
        words = shlex.split(command)
        words[words.index("-o") + 1] = str(Path(folder, "kernels.o"))
        done = subprocess.run(
            [*words, "-Xptxas", "-v"], cwd=folder, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"nvcc failed:\n{done.stderr}")
    return parse(done.stderr)


def parse(report: str) -> list[Measured]:
    """What `ptxas -v` printed, entry by entry."""
    found = []
    for part in re.split(r"(?=ptxas info\s+: Compiling entry)", report)[1:]:
        entry = ENTRY.search(part.replace("\n", " "))
        if entry is None:
            raise RuntimeError(f"cannot read what ptxas says:\n{part}")
        spilled = max(int(entry[name]) for name in ("stack", "stores", "loads"))
        taken = Resources(entry["registers"], spilled, int(entry["shared"] or 0))
        found.append(Measured(readable(entry["kernel"]), "", entry["target"], taken))
    rows = Counter((m.kernel, m.target) for m in found)
    if twice := [row for row, number in rows.items() if number > 1]:
        raise RuntimeError(f"several kernels would share a row of the table: {twice}")
    return found


def readable(mangled: str) -> str:
    """`void logitless::cuda::partials_kernel<logitless::bf16>(...)` -> partials<bf16>, and of
    mix_kernel<(logitless::cuda::Steps)1> mix<transform>."""
    done = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True)
    name = re.sub(r"logitless::|cuda::|\(anonymous namespace\)::|^void ", "", done.stdout.strip())
    name = re.sub(r"\((\w+)\)(\d+)", lambda value: enumerators(value[1])[int(value[2])], name)
    return name.split("(")[0].replace("_kernel", "")


@functools.cache
def enumerators(enum: str) -> list[str]:
    """The names of an enum of the kernels' sources, 0, 1, 2, ..."""
    for header in sorted(ROOT.glob("csrc/**/*.*h")):
        found = re.search(rf"enum class {enum} : \w+ {{([\w\s,]+)}}", header.read_text())
        if found:
            return found[1].replace(",", " ").split()
    raise RuntimeError(f"no enum {enum} without numbers of its own in csrc")
