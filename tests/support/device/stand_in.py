"""The tests of device kernels on a backend's stand-in, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.support.paths import ROOT, TESTS

NAMES = ("rows", "linear", "active_capacity", "scaling", "wiring", "divergence")
# With the tests of the kernel groups that not every backend has.
OF_BACKEND = {
    "triton": (*NAMES, "tokens", "sampling", "sparse", "sets", "teacher_noise"),
    "cuda": (*NAMES, "tokens", "sampling", "sparse", "trainer", "sets", "teacher_noise"),
    "torch": ("tokens",),
}
# One test of bfloat16, where the interpreter cuts off what the hardware rounds; one of a draw's
# bits; and ten of M2PO, which take seconds each there.
SKIPPED = {"triton": 12, "cuda": 0, "torch": 0}


def run_device_tests(backend: str, **environment: str) -> None:
    """The tests of the fixture `device` in a process of their own, on this backend's stand-in."""
    folder = TESTS / "devices"
    files = [
        str(folder / name if (folder / name).is_dir() else folder / f"test_{name}.py")
        for name in OF_BACKEND[backend]
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
