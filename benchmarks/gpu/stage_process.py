"""The process of one stage.

python -m benchmarks.gpu.stage_process STAGE OUT --seconds=S [--rehearse]
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.stage_table import BY_NAME, Stage
from benchmarks.gpu.store import DONE, FAILED, RUNNING, SKIPPED, Store

# stage -> the module with its run(work), imported only in its own process.
MODULES = {
    "environment": "environment",
    "build": "build",
    "smoke": "measure",
    "headline": "measure",
    "tests": "gpu_tests",
    "sizes": "measure",
    "others": "measure",
    "sanitizer": "sanitizer",
    "profile": "profiling",
    "plots": "plots",
}

# Less is no use to a case.
USEFUL_SECONDS = 2.0
# The status with which a process asks to be begun again.
AGAIN = 75


class Leave(Exception):
    """A case that is left out, with the reason."""


class Again(Exception):
    """This process is no use any more; another is to do the case again."""


@dataclass(frozen=True)
class Work:
    """What a stage is given."""

    stage: Stage
    out: Path
    rehearse: bool
    deadline: float  # on the clock of time.monotonic
    store: Store

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    def each(self, cases: Iterable[tuple[str, Callable[[], dict[str, Any]]]]) -> None:
        """Runs every case that is not over yet and stores it at once; one that raises is a result
        too. Those for which there is no time stay out of the results, and in the list of plans."""
        todo = dict(cases)
        self.store.set_stage(self.stage.name, planned=list(todo))
        for key, run in todo.items():
            if self.store.is_over(self.stage.name, key):
                continue
            if self.seconds_left < USEFUL_SECONDS:
                print(f"no time for {key} and what follows", flush=True)
                return
            self.one(key, run)

    def one(self, key: str, run: Callable[[], dict[str, Any]]) -> None:
        name, started = self.stage.name, time.monotonic()
        self.store.set_case(name, key, RUNNING)
        if self.stage.case_seconds and not self.rehearse:
            # A kernel that hangs cannot be interrupted: the process ends and is begun anew.
            faulthandler.dump_traceback_later(self.stage.case_seconds, exit=True)
        try:
            fields, status = run(), DONE
        except Leave as reason:
            fields, status = {"reason": str(reason)}, SKIPPED
        except Again as reason:
            print(f"again, in another process: {key} {reason}", flush=True)
            self.store.forget_case(name, key)
            sys.exit(AGAIN)
        # Whatever it is, the next case is to have its turn.
        except Exception as error:
            traceback.print_exc()
            fields, status = {"reason": f"{type(error).__name__}: {error}"[:2000]}, FAILED
        finally:
            faulthandler.cancel_dump_traceback_later()
        status = fields.pop("status", status)
        seconds = round(time.monotonic() - started, 2)
        self.store.set_case(name, key, status, seconds=seconds, **fields)
        why = f" {fields['reason'].splitlines()[0]}" if fields.get("reason") else ""
        print(f"{status:7} {seconds:6.1f} s  {key}{why}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=list(BY_NAME))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    stage = BY_NAME[options.stage]
    # A second before the parent's limit, so as to end and not be ended.
    deadline = time.monotonic() + options.seconds - 1.0
    work = Work(stage, options.out, options.rehearse, deadline, Store(options.out))
    module = importlib.import_module(f"benchmarks.gpu.stages.{MODULES[stage.name]}")
    sys.exit(module.run(work) or 0)


if __name__ == "__main__":
    main()
