"""Seeded calls of every function of the compiled core, in a process of their own; see fuzz/."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from logitless import _core
from tests.fuzz.play import MAKERS, bindings
from tests.support.paths import ROOT

CASES = 6000


def test_every_function_has_its_calls() -> None:
    """A new function of the core needs its maker in fuzz/."""
    assert bindings(_core) == set(MAKERS)


@pytest.mark.parametrize("seed", [int(os.environ.get("LOGITLESS_FUZZ_SEED", "1"))])
def test_no_call_crashes_or_writes_elsewhere(seed: int) -> None:
    options = ("--seed", str(seed), "--cases", str(CASES))
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, f"exit {run.returncode}: {run.stderr[-4000:]}"
    counts = json.loads(run.stdout)
    # each instruction set gets its share
    assert counts["calls"] > 0.99 * CASES
    assert counts["returned"] > CASES / 5 and counts["ValueError"] > CASES / 10


CRASH = """
import ctypes
from tests.fuzz import rows
from tests.fuzz.case import Case

def crash(core, rng):
    ctypes.string_at(0)
    return Case("tokens.exp", {})

from tests.fuzz import play
play.MAKERS["tokens.exp"] = crash
from logitless import _core
play.run(_core, 1, 100, "tokens.exp")
"""


def test_a_crash_is_a_failure() -> None:
    """What test_no_call_crashes relies on: the process says so, and where."""
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CRASH],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode < 0
    assert "Segmentation fault" in run.stderr and "crash" in run.stderr
