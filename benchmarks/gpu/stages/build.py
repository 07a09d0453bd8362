"""The stage `build`: the package as a user would build it, for the GPU at hand alone, offline.

Where CUDA does not compile, or there is no nvcc, it is built without: Triton can still be measured.
A rehearsal builds the same kernels for the emulator of tests/simt.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.build_paths import BUILT, ROOT, built, set_built
from benchmarks.gpu.stage_process import Leave, Work
from benchmarks.gpu.stages.environment import gpus
from benchmarks.gpu.store import DONE

SITE = BUILT / "site"
EMULATED = BUILT / "emulated"
# Lines of a failed build that are kept.
LAST_LINES = 60
# An editable install, where there is one, finds its own logitless before PYTHONPATH is looked at.
FIRST = """\
import sys
from importlib.machinery import PathFinder


class Built:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "logitless":
            return PathFinder.find_spec(name, path or [{folder!r}])
        return None


sys.meta_path.insert(0, Built)
"""


def architectures() -> str:
    """Of the GPUs here, as CMake has them: 9.0 is 90."""
    found = {gpu.get("compute_cap", "").replace(".", "") for gpu in gpus()}
    return ",".join(sorted(found & {name for name in found if name.isdigit()}))


def pip_command(switches: dict[str, str]) -> list[str]:
    """No index, no dependencies, no environment of its own: nothing is fetched."""
    flags = ["--no-build-isolation", "--no-deps", "--no-index", "--upgrade", "--no-cache-dir"]
    defines = [f"-Ccmake.define.{name}={value}" for name, value in switches.items()]
    where = ["--target", str(SITE), f"-Cbuild-dir={BUILT / 'cmake'}"]
    return [sys.executable, "-m", "pip", "install", *flags, *where, *defines, str(ROOT)]


def said(command: list[str], cwd: Path = ROOT) -> str:
    """Raises RuntimeError with the end of what it said."""
    answer = subprocess.run(
        command, cwd=cwd, text=True, check=False, env={**os.environ, "PIP_NO_INDEX": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
    )  # fmt: skip
    print(answer.stdout[-20_000:], flush=True)
    if answer.returncode:
        last = "\n".join(answer.stdout.splitlines()[-LAST_LINES:])
        raise RuntimeError(f"{' '.join(command)} failed:\n{last}")
    return answer.stdout


def install(switches: dict[str, str]) -> dict[str, Any]:
    shutil.rmtree(SITE, ignore_errors=True)
    said(pip_command(switches))
    (SITE / "sitecustomize.py").write_text(FIRST.format(folder=str(SITE)))
    return ask(SITE)


def emulate() -> dict[str, Any]:
    said([sys.executable, str(ROOT / "tests" / "simt" / "build.py"), str(EMULATED)])
    return ask(EMULATED)


def ask(folder: Path) -> dict[str, Any]:
    """What the build says of itself, from where it will be imported."""
    code = (
        "import json, logitless, pathlib; print(json.dumps([str(pathlib.Path(logitless.__file__)"
        ".parent), logitless.build_info()]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise RuntimeError(f"the package does not import:\n{answer.stderr[-4000:]}")
    where, info = json.loads(answer.stdout.splitlines()[-1])
    if not Path(where).is_relative_to(folder):
        raise RuntimeError(f"imported logitless from {where}, not from {folder}")
    return {"build_info": info}


def doctor(rehearse: bool) -> dict[str, Any]:
    folder = built(rehearse)
    if isinstance(folder, str):
        raise Leave(folder)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    answer = subprocess.run(
        [sys.executable, "-m", "logitless.cli", "doctor"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {"text": answer.stdout + answer.stderr}


def compile_here(work: Work) -> dict[str, Any]:
    started = time.monotonic()
    if work.rehearse:
        found, folder = emulate(), EMULATED
    else:
        found, folder = build(), SITE
    set_built(work.rehearse, folder)
    seconds = round(time.monotonic() - started, 1)
    print(f"built in {seconds} s: {found['build_info']}", flush=True)
    return {**found, "seconds_to_build": seconds}


def build() -> dict[str, Any]:
    chips = architectures()
    if shutil.which("nvcc") is None or not chips:
        return without_cuda("no nvcc" if chips else "no GPU that nvidia-smi names")
    try:
        return install({"LOGITLESS_CUDA": "ON", "LOGITLESS_CUDA_ARCHITECTURES": chips})
    except RuntimeError as error:
        return without_cuda(str(error))


def without_cuda(reason: str) -> dict[str, Any]:
    found = install({"LOGITLESS_CUDA": "OFF"})
    return {**found, "reason": f"built without CUDA: {reason}"}


def run(work: Work) -> int:
    work.each([("package", lambda: compile_here(work)), ("doctor", lambda: doctor(work.rehearse))])
    return 0 if work.store.cases("build")["package"]["status"] == DONE else 1
