"""What travels to a machine with a GPU beside the sources: `build/carry`, which git ignores.

    python -m benchmarks.gpu.contact --prepare [--python PYTHON ...] [--architectures 90]

makes it where there is a network: the compiled core for each of these Pythons (their headers
suffice), pybind11 to build it there if none of them fits, and the peers. The same build, for the
Python at hand, is what is done over there in that case. All else of the package comes from the
tree.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.build_paths import ROOT, sources_hash
from benchmarks.gpu.stages.build import FIRST

CARRY = ROOT / "build" / "carry"
STAMP, CORE = "sources", ("csrc", "CMakeLists.txt")
# What the carried folder may take: with the sources it is to stay below 64 MiB.
LIMIT = 56 << 20
# Pure Python, without what they ask for: an image for training has most of that. What TRL imports
# beside it comes along.
TOOLS = ("pybind11>=3.0",)
PEERS = ("liger-kernel==0.8.5", "cut-cross-entropy==25.1.1", "trl==1.16.0", "datasets", "dill",
         "multiprocess")  # fmt: skip
# What of a carried package is no use there.
WEIGHT = ("tests", "*.dist-info/licenses", "__pycache__")


def folder_of(tag: str) -> str:
    """Of the core for a Python, by its cache tag: cpython-312."""
    return f"core-{tag}"


def core_of(carry: Path) -> Path | str:
    """The carried core for this Python, or why there is none."""
    tag = str(sys.implementation.cache_tag)
    folder = carry / folder_of(tag)
    cores = list(folder.glob("_core*.so"))
    if not cores:
        return f"no core for {tag} in {carry}"
    if not (folder / STAMP).exists() or (folder / STAMP).read_text() != sources_hash(CORE):
        return f"{folder} was built from other sources"
    return cores[0]


def compile_core(
    python: str,
    folder: Path,
    build: Path,
    architectures: str | None,  # None: without CUDA
    jobs: int,
    tools: Path | None = None,  # where pybind11 is, if this Python does not have it
) -> None:
    """The core for `python` into `folder`: cmake alone, no pip, no network."""
    environment = {**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)}
    if tools is not None:
        environment["PYTHONPATH"] = str(tools)
    # Where this Python has it, or a package of it is on the path: cmake files come with both.
    where = [sys.executable, "-m", "pybind11", "--cmakedir"]
    pybind11 = subprocess.run(where, env=environment, check=True, capture_output=True, text=True)
    switches = {
        "CMAKE_BUILD_TYPE": "Release",
        "LOGITLESS_CUDA": "OFF" if architectures is None else "ON",
        "Python_EXECUTABLE": python,
        "pybind11_DIR": pybind11.stdout.strip(),
    }
    if architectures is not None:
        switches["LOGITLESS_CUDA_ARCHITECTURES"] = architectures
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    flags = [f"-D{name}={value}" for name, value in switches.items()]
    # The switches may come from the environment too, where they would win.
    for name in ("LOGITLESS_CUDA", "LOGITLESS_CUDA_ARCHITECTURES"):
        environment.pop(name, None)
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), *generator, *flags],
        ["cmake", "--build", str(build), "--target", "_core"],
    ):
        subprocess.run(command, env=environment, check=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy2(next(build.glob("_core*.so")), folder)
    (folder / STAMP).write_text(sources_hash(CORE))


def lay_out(site: Path, core: Path) -> None:
    """The tree's package with this core, as a folder to import from."""
    shutil.rmtree(site, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "python" / "logitless", site / "logitless", ignore=ignored)
    shutil.copytree(ROOT / "kernels", site / "logitless" / "kernels", ignore=ignored)
    shutil.copy2(core, site / "logitless")
    (site / "sitecustomize.py").write_text(FIRST.format(folder=str(site.resolve())))


def pythons(asked: Sequence[str]) -> dict[str, str]:
    """Cache tag -> interpreter with headers, of those asked for."""
    code = (
        "import json, sys, sysconfig; print(json.dumps([sys.implementation.cache_tag,"
        " sys.executable, sysconfig.get_path('include')]))"
    )
    found = {}
    for name in asked:
        answer = subprocess.run([name, "-c", code], capture_output=True, text=True, check=True)
        tag, executable, include = json.loads(answer.stdout)
        if not (Path(include) / "Python.h").exists():
            raise ValueError(f"{name} has no headers: {include}/Python.h is missing")
        found[tag] = executable
    return found


def install(packages: Sequence[str], target: Path, tag: str) -> None:
    """Wheels for the Python of this tag, unpacked; whatever this machine has."""
    shutil.rmtree(target, ignore_errors=True)
    version = tag.removeprefix("cpython-")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile",
               "--disable-pip-version-check", "--only-binary=:all:", "--python-version", version,
               "--target", str(target), *packages]  # fmt: skip
    subprocess.run(command, check=True)
    for pattern in WEIGHT:
        for path in target.rglob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def prepare(asked: Sequence[str], architectures: str, folder: Path = CARRY) -> Path:
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    interpreters = pythons(asked)
    first = next(iter(interpreters))
    install(TOOLS, folder / "tools", first)
    install(PEERS, folder / "peers", first)
    for tag, python in interpreters.items():
        build = ROOT / "build" / f"carry-{tag}"
        jobs = int(os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", os.cpu_count() or 1))
        compile_core(python, folder / folder_of(tag), build, architectures, jobs, folder / "tools")
    total = size_of(folder)
    if total > LIMIT:
        raise ValueError(f"{folder} has {total >> 20} MiB, more than {LIMIT >> 20}")
    seconds = time.monotonic() - started
    print(f"[carry] {folder}: {total / 2**20:.1f} MiB in {seconds:.0f} s")
    return folder


def build_here(carry: Path, folder: Path, architectures: str | None) -> subprocess.Popen[str]:
    """The core for the Python that runs this, in a process of its own beside other work; what it
    says goes to a file beside `folder`."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu.carry import compile_core;"
        "python, folder, build, chips, jobs, tools = sys.argv[1:];"
        "compile_core(python, Path(folder), Path(build), chips or None, int(jobs),"
        " Path(tools) if tools else None)"
    )
    tools = str(carry / "tools") if (carry / "tools").is_dir() else ""
    build = str(folder.with_name(f"{folder.name}-cmake"))
    arguments = [sys.executable, str(folder), build, architectures or "",
                 str(os.cpu_count() or 1), tools]  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    with build_log(folder).open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, text=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def build_log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def about(site: Path, seconds: float = 60) -> dict[str, Any]:
    """What a site's package says of itself, and why it does not serve the first device (""), asked
    in a process of its own: a core that was built for another system may take the process down.
    Raises RuntimeError with its last words."""
    code = (
        "import json, logitless as l; from logitless import _core;"
        "reason = _core.runtime.cuda_device_reason(0);"
        "print(json.dumps([l.__file__, l.build_info() | {'device_reason': reason}]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, check=False,
                            capture_output=True, text=True, timeout=seconds)  # fmt: skip
    if answer.returncode:
        raise RuntimeError(f"does not import: {(answer.stdout + answer.stderr)[-600:]}")
    where, info = json.loads(answer.stdout.splitlines()[-1])
    if not Path(where).resolve().is_relative_to(site.resolve()):
        raise RuntimeError(f"{where} is imported instead")
    return dict(info)
