"""The tests of device kernels without a device: in Triton's interpreter, in the emulator."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT, TESTS
from tests.support.versions import why_no_interpreter

NAMES = ("rows", "linear", "scaling", "wiring", "divergence")
# The tests of the kernel groups that not every backend has.
MORE = {"triton": (), "cuda": ("tokens", "token_selection", "sampling", "sparse", "sets")}
# One test of bfloat16, where the interpreter cuts off what the hardware rounds.
SKIPPED = {"triton": 1, "cuda": 0}


def run_tests(backend: str, **environment: str) -> None:
    """The tests of the fixture `device` in a process of their own, on this backend's stand-in."""
    folder = TESTS / "devices"
    files = [
        str(folder / name if (folder / name).is_dir() else folder / f"test_{name}.py")
        for name in (*NAMES, *MORE[backend])
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files],
        env={**os.environ, "LOGITLESS_TEST_DEVICE": backend, **environment},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    collected = re.search(r"^collected (\d+) items$", done.stdout, re.MULTILINE)
    assert collected is not None, done.stdout[:2000]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}
    assert counts["passed"] == int(collected[1]) - SKIPPED[backend] > 100, done.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(bool(why_no_interpreter()), reason=why_no_interpreter())
def test_triton_kernels_in_the_interpreter() -> None:
    run_tests("triton", TRITON_INTERPRET="1")


@pytest.mark.slow
def test_cuda_kernels_in_the_emulator(tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    build = [sys.executable, str(TESTS / "simt" / "build.py"), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run_tests("cuda", PYTHONPATH=str(tmp_path))
    # and seeded calls of the bindings, most of them spoilt
    fuzz = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz", "--cases", "900"]
    done = subprocess.run(
        [*fuzz, "--only", "uda"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["returned"] > 100
