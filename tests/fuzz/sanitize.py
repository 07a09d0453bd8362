"""python -m tests.fuzz.sanitize: the compiled core under ASan and UBSan, by `./dev sanitize`.

Builds it with the emulated CUDA kernels into build/sanitize, then runs the seeded calls of every
function with each instruction set, and the tests of losses and selection, which need NumPy alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from logitless import _core
from tests.simt import build

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "sanitize"
NAMES = ("test_loss", "test_selection", "controls/test_controllers")
TESTS = tuple(f"tests/losses/{name}.py" for name in NAMES)
# The sanitizer would watch all of torch, and the tests of `TESTS` do without.
NO_TORCH = 'raise ModuleNotFoundError("torch is left out under the sanitizers", name="torch")\n'


def compiled() -> Path:
    flags = {"pybind11_DIR": build.pybind11().get_cmake_dir()}
    build.run(["cmake", "--workflow", "--preset", "sanitize"], env={**os.environ, **flags})
    (core,) = OUT.glob("_core*.so")
    return core


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev sanitize", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=8000)
    parser.add_argument("--only", default="", help="part of a function's name; then no tests")
    options = parser.parse_args()
    if why := build.no_sanitizer():
        raise SystemExit(f"sanitize: {why}")
    started = time.perf_counter()
    core = compiled()
    print(f"built in {time.perf_counter() - started:.0f} s", flush=True)
    environment = build.sanitizer_environment(PYTHONPATH=str(ROOT))
    isas = _core.runtime.build_info()["isas"]
    # a process for each instruction set, all at once
    runs = [
        subprocess.Popen(
            [
                sys.executable, "-X", "faulthandler", "-m", "tests.fuzz", "--core", str(core),
                "--seed", str(options.seed + place), "--cases", str(options.cases // len(isas)),
                "--only", options.only, "--isa", isa,
            ],
            env=environment, stdout=subprocess.PIPE, text=True,
        )
        for place, isa in enumerate(isas)
    ]  # fmt: skip
    for isa, run in zip(isas, runs, strict=True):
        output = run.communicate()[0]
        if run.returncode:
            raise SystemExit(f"{output}sanitize: the seeded calls of {isa} failed, see above")
        print(f"{isa}: {json.loads(output)}", flush=True)
    if options.only:
        return
    site = OUT / "site"
    build.link_package(core, site)
    (site / "torch.py").write_text(NO_TORCH)
    environment["PYTHONPATH"] = str(site)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    raise SystemExit(subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode)


main()
