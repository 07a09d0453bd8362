"""The run as a whole: which stages, in what order, and what is said of those left out."""

from __future__ import annotations

import datetime
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu import report
from benchmarks.gpu.build_paths import BUILT, ROOT, sources_hash
from benchmarks.gpu.runner import Job, run_stage
from benchmarks.gpu.stage_table import BY_NAME, STAGES, Stage, objection
from benchmarks.gpu.store import REHEARSAL, Store, write_whole

# Less time than this is no use to a stage.
USEFUL_SECONDS = 5.0


NO_GPU = "no GPU"


def device_name(rehearse: bool) -> str:
    if rehearse:
        return REHEARSAL
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return NO_GPU
    return next(iter(answer.stdout.strip().splitlines()), "") or NO_GPU


def default_out(rehearse: bool) -> Path:
    if rehearse:
        return BUILT / "rehearsal"
    device = re.sub(r"[^A-Za-z0-9]+", "-", device_name(False)).strip("-").lower()
    date = datetime.datetime.now(datetime.timezone.utc).date()
    return ROOT / "benchmarks" / "results" / f"gpu-{device}-{date}"


def open_store(job: Job, stages: Sequence[Stage], fresh: bool) -> Store:
    """The folder's results so far, if they are of these sources; the stages asked for are forgotten
    if `fresh`, and all results where they are of other sources."""
    store = Store(job.out)
    found = store.read()
    kind = {"sources": sources_hash(), "rehearsal": job.rehearse}
    other = [f"{name} was {found.get(name)!r} and is {value!r}" for name, value in kind.items()
             if found and found.get(name) != value]  # fmt: skip
    if other and not fresh:
        raise ValueError(
            f"{store.path}: {', '.join(other)} now; choose another --out, or --fresh to begin anew"
        )
    if fresh and not other:
        for stage in stages:
            store.forget_stage(stage.name)
    if other or not found:
        device = device_name(job.rehearse)
        if device == NO_GPU:
            raise ValueError("nvidia-smi names no GPU; --rehearse runs the same stages on a CPU")
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        about = {"format": 1, "device": device, **kind, "started": now}
        with store.edit() as data:
            data.clear()
            data.update(about, stages={})
    return store


def chosen(only: Sequence[str], skip: Sequence[str]) -> list[Stage]:
    for name in (*only, *skip):
        if name not in BY_NAME:
            raise ValueError(f"no stage {name!r}; there are {', '.join(BY_NAME)}")
    return [s for s in STAGES if (not only or s.name in only) and s.name not in skip]


def run(
    job: Job,
    stages: Sequence[Stage],
    seconds: float,
    *,
    fresh: bool = False,
    run_one: Callable[[Stage, Job, Store, float], None] = run_stage,
    objection: Callable[[Stage, bool], str | None] = objection,
) -> bool:
    """Whether everything that could run did, and ours were right in it."""
    deadline = time.monotonic() + seconds
    store = open_store(job, stages, fresh)
    for stage in stages:
        if store.stage(stage.name).get("status") == "done":
            print(f"[gpu] {stage.name}: finished before", flush=True)
            continue
        reason = objection(stage, job.rehearse)
        kept = sum(later.kept_seconds for later in stages[stages.index(stage) + 1 :])
        left = deadline - kept - time.monotonic()
        if reason is None and left < USEFUL_SECONDS:
            reason = "no time left"
        if reason is None:
            limit = min(left, stage.limit(job.rehearse))
            print(f"[gpu] {stage.name}: {stage.what} (at most {limit:.0f} s)", flush=True)
            run_one(stage, job, store, deadline - kept)
        else:
            store.set_stage(stage.name, status="skipped", reason=reason)
        found = store.stage(stage.name)
        last = next(iter(found.get("reason", "").splitlines()), "")
        took = f" in {found['seconds']} s" if "seconds" in found else ""
        print(f"[gpu] {stage.name}: {found['status']}{took} {last}", flush=True)
        write_whole(job.out / report.NAME, report.report(store.read()))
    return not report.troubles(store.read())
