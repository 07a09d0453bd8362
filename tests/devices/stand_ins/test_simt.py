"""The CUDA kernels' own source on a SIMT machine, under ASan and UBSan, against the oracle.

No GPU and no CUDA toolkit: see tests/simt. Planted bugs show that the machine and the checks
would find real ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simt import build
from tests.simt.checks import CHECKS, ROOMS
from tests.simt.planted_bugs import BUGS, WITHOUT
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what this module builds, where the compiler can sanitise."""
    pytest.importorskip("pybind11")
    if why := build.no_sanitizer():
        pytest.skip(why)
    return tmp_path_factory.mktemp("simt")


@pytest.fixture(scope="module")
def selftest(sanitized: Path) -> Path:
    return build.self_test(sanitized)


@pytest.fixture(scope="module")
def module(sanitized: Path) -> Path:
    build.rows_module(sanitized / "module")
    return sanitized / "module"


def checks(module: Path, *names: str, seed: int = 0) -> subprocess.CompletedProcess[str]:
    """The named checks in a Python of their own, which the sanitizer entered first."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simt.checks", str(module), *names],
        env=build.sanitizer_environment(LOGITLESS_SIMT_SEED=str(seed), PYTHONPATH=str(ROOT)),
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_kernels(module: Path, name: str) -> None:
    run = checks(module, name, seed=1 + list(CHECKS).index(name))
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-6000:]


# ---- the machine itself


def machine(program: Path, kernel: str, seed: int = 0) -> tuple[int, str]:
    run = subprocess.run(
        [str(program), kernel],
        env={"LOGITLESS_SIMT_SEED": str(seed), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


@pytest.mark.parametrize("seed", range(3))
def test_correct_kernels_pass_in_any_order(selftest: Path, seed: int) -> None:
    for kernel, expected in (("block_sum", "2016 2016"), ("warp_exchange", "6 6")):
        code, output = machine(selftest, kernel, seed)
        assert (code, output.splitlines()[0].strip()) == (0, expected), output


def test_the_seed_decides_the_order(selftest: Path) -> None:
    runs = [machine(selftest, "arrivals", seed)[1].splitlines()[0] for seed in (0, 0, 1, 2)]
    assert runs[0] == runs[1]
    assert len(set(runs)) == 3
    # Two blocks of 64 threads, all of them.
    assert sorted(map(int, runs[2].split())) == sorted([*range(64)] * 2)


@pytest.mark.parametrize(
    "kernel, words",
    [
        ("barrier_twice", ("divergent", "threads 0-31 at __syncthreads", "threads 32-63 at")),
        ("lane_elsewhere", ("divergent", "threads 5-5 at __syncthreads", "at __syncwarp")),
        ("lane_gone", ("thread 30", "reads lane 31, which does not take part")),
        ("lane_not_named", ("is not among the lanes it names",)),
        ("race", ("race on shared box[1]", "thread 40", "thread 3", "no barrier in between")),
        ("warp_race", ("race on shared box[", "no barrier in between")),
        ("unwritten", ("thread 9", "shared box[3] is read", "before anyone wrote it")),
        ("beyond", ("thread 63", "shared box[63] is out of bounds")),
        ("misaligned", ("16 bytes at a misaligned address",)),
        ("heap_overrun", ("AddressSanitizer: heap-buffer-overflow",)),
        ("frame_overrun", ("AddressSanitizer: stack-buffer-overflow",)),
    ],
)
def test_wrong_kernels_are_reported(selftest: Path, kernel: str, words: tuple[str, ...]) -> None:
    for seed in range(2):
        code, output = machine(selftest, kernel, seed)
        assert code != 0
        for word in words:
            assert word in output, output
        if "Sanitizer" not in output:
            assert f"kernel {kernel}, block (" in output


# ---- planted bugs


def test_every_header_has_a_planted_bug() -> None:
    """Or a reason why not."""
    files = {str(path.relative_to(ROOT / "csrc")) for path in (ROOT / "csrc/cuda").rglob("*.cuh")}
    planted = {bug.file for bug in BUGS.values()}
    assert files - planted == WITHOUT.keys() and planted <= files


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_found(sanitized: Path, module: Path, name: str) -> None:
    """In the kernels that the check runs. `module` passes the same check, in test_kernels."""
    bug, tree = BUGS[name], sanitized / name
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    file = tree / "csrc" / bug.file
    text = file.read_text()
    assert text.count(bug.right) == 1, f"{bug.file} has not exactly one {bug.right!r}"
    file.write_text(text.replace(bug.right, bug.wrong))
    build.rows_module(tree, tree=tree, rooms=ROOMS[bug.check])
    run = checks(tree, bug.check)
    assert run.returncode != 0, "the bug was not found"
    assert any(word in run.stdout + run.stderr for word in bug.words), run.stderr[-3000:]
