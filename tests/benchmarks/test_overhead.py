"""The benchmark group `overhead`: bursts of small warm calls by two clocks, and its targets."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from benchmarks.cases import targets  # noqa: E402
from benchmarks.cases.contenders.ours import OURS  # noqa: E402
from benchmarks.cases.contenders.plain import EAGER  # noqa: E402
from benchmarks.cases.overhead import OPS  # noqa: E402
from benchmarks.harness.case import Call, Case  # noqa: E402
from benchmarks.harness.comparison import compare  # noqa: E402
from benchmarks.harness.report import table  # noqa: E402
from benchmarks.harness.timing import BurstTimer, Times  # noqa: E402

TINY = Case(rows=targets.TINY_ROWS, vocab=targets.TINY_VOCAB, width=32)


def test_a_burst_is_warm_and_prepared_apart() -> None:
    seen: list[str] = []

    def prepare() -> None:
        seen.append("prepare")
        time.sleep(0.01)

    def run(_: None) -> None:
        # The first call of a burst finds cold caches.
        time.sleep(0.05 if len(seen) == 1 else 0.0)
        seen.append("run")

    found = BurstTimer(3)(Call(run, prepare))
    assert seen == ["prepare", "run"] * 4
    assert found.seconds < 0.005 and found.seconds == found.host


def test_the_cpu_clock_does_not_count_waiting() -> None:
    found = BurstTimer(3)(Call(lambda _: time.sleep(0.02)))
    assert found.cpu is not None
    assert found.seconds >= 0.02 > 0.005 > found.cpu

    def spin(_: None) -> None:
        started = time.thread_time()
        while time.thread_time() - started < 0.01:
            pass

    working = BurstTimer(3)(Call(spin))
    assert working.cpu is not None and working.cpu >= 0.01


def test_a_tiny_op_shows_both_clocks_and_is_judged_by_both() -> None:
    op = next(op for op in OPS if op.name == "tiny policy_loss")
    found = compare(op, TINY, [OURS, EAGER], 2, BurstTimer(2))
    assert not found.skipped
    assert {"logitless, NumPy", "logitless, no gradients"} <= {m.name for m in found.measured}
    assert all(len(m.times.cpu) == 2 and min(m.times.cpu) > 0 for m in found.measured)
    assert "us of CPU" in table(found) and " us " in table(found)
    # Ours takes 84 us of CPU in 100 us: one of the two is met.
    times = Times((100e-6,), cpu=(84e-6,))
    judged = [replace(m, times=times) if m.name == "logitless" else m for m in found.measured]
    wall, cpu = targets.check_targets([replace(found, measured=tuple(judged))])
    assert wall.startswith("MISSED  100.00  <= 85") and "us of wall" in wall
    assert cpu.startswith("met      84.00  <= 85") and "us of CPU" in cpu


def test_every_target_of_the_group_names_an_op() -> None:
    names = {op.name for op in OPS}
    named = {t.op for t in targets.TARGETS if t.rows == targets.TINY_ROWS}
    assert named == names & named and len(named) == 4
