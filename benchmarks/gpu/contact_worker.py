"""The process that measures for contact.py: cases one by one, each written down as it ends.

    python -m benchmarks.gpu.contact_worker EVENTS --steps T1:35,T2:40 --device cuda [--tiny]

A case that raises is a result. One that hangs ends this process, with where it hung; one that
leaves the device unusable ends it too. contact.py then begins another, which goes on behind it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Fields = dict[str, Any]
Cases = Iterator[tuple[str, Callable[[], Fields]]]
# The status with which a process says that its device is lost, and another is to go on.
AGAIN = 75
# Less is no use to a case. It counts as hung so long after its beginning, or its step's end; the
# programs of these steps may use all their step's time.
USEFUL, HUNG, GRACE = 1.0, 60.0, 10.0
PATIENT = ("T8", "T9")
REASON = 1200
REQUIRED: dict[str, Any] = {"step": str, "status": str, "at": float}


class Leave(Exception):
    """A case that is left out, with the reason."""


@dataclass
class Place:
    """Where a step's cases run."""

    device: str  # "cuda" or "cpu"
    tiny: bool
    deadline: float = float("inf")  # of the step, on the clock of time.monotonic
    folder: Path = Path()  # for what the steps' programs write
    facts: Fields = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def need_gpu(self) -> None:
        if not self.cuda:
            raise Leave("needs a GPU")


class Events:
    """Lines of JSON, each whole before the next: what a dying process wrote is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **fields: Any) -> None:
        line = json.dumps(fields, default=str) + "\n"
        # One write: no line of two processes is mixed with another.
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())

    def read(self) -> tuple[list[Fields], list[str]]:
        """The events, and what is none of them."""
        good: list[Fields] = []
        garbage = []
        text = self.path.read_bytes() if self.path.exists() else b""
        for line in text.decode(errors="replace").splitlines():
            event = event_of(line)
            if event is None:
                garbage.append(line[:200])
            else:
                good.append(event)
        return good, garbage


def event_of(line: str) -> Fields | None:
    try:
        event = json.loads(line)
        # Whose it is, when it was and what it says of it: the rest may be anything.
        return {**event, **{name: kind(event[name]) for name, kind in REQUIRED.items()}}
    except (ValueError, TypeError, KeyError):
        return None


def begun(events: list[Fields]) -> set[tuple[str, str]]:
    """The cases that any process has begun: each is tried once."""
    return {(e["step"], str(e["key"])) for e in events if "key" in e}


def lost(place: Place) -> bool:
    if not place.cuda:
        return False
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def run_case(events: Events, place: Place, step: str, key: str, run: Callable[[], Fields]) -> None:
    started = time.monotonic()
    events.add(step=step, key=key, status="running", at=time.time())
    # A kernel that hangs cannot be interrupted.
    limit = max(place.left, 0) if step in PATIENT else min(max(place.left, 0), HUNG)
    faulthandler.dump_traceback_later(limit + GRACE, exit=True)
    fields: Fields = {}
    try:
        fields, status = dict(run()), "done"
    except Leave as why:
        fields, status = {"reason": str(why)}, "skipped"
    # Whatever it is, the next case is to have its turn.
    except Exception as error:
        traceback.print_exc()
        fields, status = {"reason": f"{type(error).__name__}: {error}"[:REASON]}, "failed"
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds = round(time.monotonic() - started, 3)
    # Its own fields may not hide whose they are.
    whose = {"step": step, "key": key, "status": fields.pop("status", status), "at": time.time()}
    events.add(**{**fields, **whose, "seconds": seconds})
    reason = str(fields.get("reason", "")).splitlines()
    print(f"{step} {status:7} {seconds:7.2f} s  {key} {reason[0] if reason else ''}", flush=True)
    if status == "failed" and lost(place):
        print(f"{step}: {key} lost the device", flush=True)
        sys.exit(AGAIN)


def run_step(
    events: Events, place: Place, step: str, cases: Callable[[Place], Cases], seconds: float
) -> None:
    place.deadline = time.monotonic() + seconds
    over = begun(events.read()[0])
    events.add(step=step, status="running", at=time.time())
    left_out = 0
    try:
        for key, run in cases(place):
            if (step, key) in over:
                continue
            if place.left < USEFUL:
                left_out += 1
            else:
                run_case(events, place, step, key, run)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"[:REASON]
        events.add(step=step, status="failed", reason=reason, at=time.time())
        if lost(place):
            sys.exit(AGAIN)
        return
    reason = f"no time for {left_out} cases" if left_out else ""
    events.add(step=step, status="done", reason=reason, at=time.time())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", type=Path)
    parser.add_argument("--steps", required=True, help="NAME:SECONDS,...")
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--module", default="benchmarks.gpu.contact_steps")
    options = parser.parse_args(arguments)
    from importlib import import_module

    steps: dict[str, Callable[[Place], Cases]] = import_module(options.module).STEPS
    events = Events(options.events)
    place = Place(options.device, options.tiny, folder=options.events.parent)
    for entry in options.steps.split(","):
        name, seconds = entry.split(":")
        run_step(events, place, name, steps[name], float(seconds))


if __name__ == "__main__":
    # The steps import this module by its name: their Leave is that module's, not this program's.
    from benchmarks.gpu import contact_worker

    contact_worker.main()
    # Nothing at exit may turn a good end into a bad one.
    sys.stdout.flush()
    os._exit(0)
