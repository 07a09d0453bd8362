"""The stage `tests`: pytest -m gpu, every outcome stored as it comes."""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks.gpu.build_paths import ROOT
from benchmarks.gpu.stage_process import Work
from benchmarks.gpu.store import DONE, FAILED, Store
from benchmarks.harness.comparison import is_lost

# The files that have tests marked gpu: the others may import what a machine with a GPU lacks.
NAMES = (
    "rows",
    "scaling",
    "divergence",
    "teacher_noise",
    "sampling",
    "linear",
    "active_capacity",
    "waits",
    "trainer",
    "sparse",
    "wiring",
    "hardware",
)
# By their folders.
MORE = {
    "tokens": ("exact_sums", "tokens", "batch_stats", "token_selection", "launches"),
    "sets": ("masked_rows", "masked_pairs", "drawn_sets", "sparse_products", "set_waits"),
}
DEVICES = ROOT / "tests" / "devices"
FILES = (
    *(DEVICES / f"test_{name}.py" for name in NAMES),
    *(DEVICES / folder / f"test_{name}.py" for folder, names in MORE.items() for name in names),
)
# A new version of torch or of Triton may warn of something: no failure of ours. And a file that
# cannot be imported takes no other with it.
LENIENT = ("-W", "default", "--continue-on-collection-errors")
# Of the reason of a failure.
CHARACTERS = 1500
# Passed tests are counted, and written down this often: each by name would be most of the file.
COUNTED_AT_ONCE = 25


class Recorder:
    """A plugin of pytest."""

    def __init__(self, store: Store, stage: str, device: str) -> None:
        self.store, self.stage, self.device = store, stage, device
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: Any) -> None:
        # Of the three reports of a test, set-up and tear-down count only if they did not pass.
        if report.when != "call" and report.outcome == "passed":
            return
        self.counts[report.outcome] += 1
        if report.outcome == "failed":
            reason = report.longreprtext[-CHARACTERS:].replace(f"{ROOT}{os.sep}", "")
            self.store.set_case(self.stage, report.nodeid, FAILED, reason=reason)
            if self.device == "cuda" and is_lost(self.device):
                self.count()
                pytest.exit(f"{report.nodeid} lost the device", returncode=1)
        if report.outcome == "failed" or sum(self.counts.values()) % COUNTED_AT_ONCE == 0:
            self.count()

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            reason = report.longreprtext[-CHARACTERS:].replace(f"{ROOT}{os.sep}", "")
            self.store.set_case(self.stage, report.nodeid, FAILED, reason=reason)

    def pytest_sessionfinish(self) -> None:
        self.count()

    def count(self) -> None:
        self.store.set_case(self.stage, "count", DONE, counts=self.counts)


def run(work: Work) -> int:
    work.store.set_stage(work.stage.name, cases={}, planned=[])
    # Of what else is installed nothing is to take part, or to warn.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    arguments = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--tb=short", "--no-header"]
    recorder = Recorder(work.store, work.stage.name, work.device)
    code = pytest.main([*arguments, *LENIENT, *map(str, FILES)], [recorder])
    # No test at all is what a machine without a GPU may have.
    return 0 if code in (0, 5) else int(code)
