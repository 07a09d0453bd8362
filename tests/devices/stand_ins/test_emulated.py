"""The tests of device kernels without a device: CUDA's in the emulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.device.stand_in import run_device_tests
from tests.support.paths import ROOT, TESTS


@pytest.mark.slow
def test_cuda_kernels_in_the_emulator(tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    build = [sys.executable, str(TESTS / "simt" / "build.py"), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run_device_tests("cuda", PYTHONPATH=str(tmp_path))
    # and seeded calls of the bindings, most of them spoilt
    fuzz = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz", "--cases", "900"]
    done = subprocess.run(
        [*fuzz, "--only", "uda"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["returned"] > 100
