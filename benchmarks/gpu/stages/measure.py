"""The measuring stages: each a comparison of ops of the registry, checked and timed."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.cases.contenders.ours import OURS
from benchmarks.cases.contenders.peers import PEERS
from benchmarks.cases.contenders.plain import COMPILED, EAGER
from benchmarks.cases.registry import OPS
from benchmarks.cases.targets import check_targets
from benchmarks.gpu.stage_process import Again, Leave, Work
from benchmarks.gpu.stages import measurements
from benchmarks.gpu.stages.measurements import Measurement
from benchmarks.gpu.store import DONE, FAILED
from benchmarks.harness.case import Case, Implementation, Results
from benchmarks.harness.comparison import Comparison, DeviceLost, compare, is_lost
from benchmarks.harness.timing import Timer

BACKENDS = ("cuda", "triton")
REPEATS = 20
# Seconds of measured time after which an implementation has run enough.
ENOUGH = 0.3
# What a comparison holds at once, of the bytes that its op moves: inputs, two gradients to compare,
# and a tensor to overwrite. Heads are compared with torch that holds float32 logits and gradients.
COMPARISON_HOLDS, HEAD_HOLDS, SPARE = 2.5, 8, 2 << 30
# Of the memory free when we came: whoever shares the GPU keeps the rest, and what they have.
SHARE = 0.95
TIMES = ("median_ms", "runs_ms", "host_ms", "over_floor", "over_ours", "bytes_per_second",
         "flops_per_second")  # fmt: skip


def with_backend(function: Callable[..., Results], backend: str) -> Callable[..., Results]:
    """Forced by the environment, so that any function of ours can be, whatever its options."""

    def run(*arguments: Any) -> Results:
        before = os.environ.get("LOGITLESS_BACKEND")
        os.environ["LOGITLESS_BACKEND"] = backend
        try:
            return function(*arguments)
        finally:
            if before is None:
                del os.environ["LOGITLESS_BACKEND"]
            else:
                os.environ["LOGITLESS_BACKEND"] = before

    return run


def ours(backend: str) -> Implementation:
    def bound(load: Callable[[], Callable[..., Results]]) -> Callable[[], Callable[..., Results]]:
        return lambda: with_backend(load(), backend)

    functions = {family: bound(load) for family, load in OURS.functions.items()}
    return replace(OURS, name=f"{OURS.name} {backend}", functions=functions)


def implementations(measurement: Measurement) -> list[Implementation]:
    mine = [ours(backend) for backend in BACKENDS]
    compiled = [COMPILED] if measurement.compiled else []
    return [*mine, EAGER, *compiled, *(PEERS if measurement.peers else [])]


def bytes_needed(measurement: Measurement) -> float:
    head = HEAD_HOLDS * measurement.logits_bytes if measurement.op.group == "head" else 0
    return COMPARISON_HOLDS * sum(measurement.op.bytes(measurement.case).values()) + head + SPARE


class Measurer:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.timer = Timer(work.device)
        self.last: Case | None = None
        self.free = float("inf")
        if work.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            torch.cuda.set_per_process_memory_fraction(min(1.0, SHARE * free / total))
            self.free = SHARE * free

    def __call__(self, measurement: Measurement) -> dict[str, Any]:
        case = replace(measurement.case, device=self.work.device)
        if case != self.last:
            self.clear()
            self.last = case
        if bytes_needed(measurement) > self.free:
            raise Leave(
                f"needs {bytes_needed(measurement) / 2**30:.0f} GiB, {self.free / 2**30:.0f} free"
            )
        banned = self.banned
        entries = [each for each in implementations(measurement) if each.name not in banned]
        try:
            comparison = compare(
                measurement.op, case, entries, 1 if self.work.rehearse else REPEATS,
                self.timer, variants=measurement.variants, strict=False, enough=ENOUGH,
            )  # fmt: skip
        except DeviceLost as error:
            # Without whoever it was the others can still be measured, in a new process.
            reason = f"lost the device in {measurement.key}: {error.reason}"
            self.work.store.set_stage(self.work.stage.name, banned={**banned, error.name: reason})
            raise Again(reason) from error
        finally:
            gc.collect()
            if self.work.device == "cuda" and not is_lost("cuda"):
                torch.cuda.empty_cache()
        comparison = replace(comparison, skipped={**comparison.skipped, **banned})
        # The targets of a size are judged once.
        judged = {} if measurement.compiled else {"targets": check_targets([comparison])}
        return entry(comparison, self.work.rehearse, rows_of_sizes=measurement.op.sizes, **judged)

    @property
    def banned(self) -> dict[str, str]:
        """Implementations that ended a process of this stage -> why."""
        found: dict[str, str] = self.work.store.stage(self.work.stage.name).get("banned", {})
        return found

    def clear(self) -> None:
        """The inputs that the last op's maker keeps: two sets of them may not fit."""
        for each in OPS:
            getattr(each.inputs, "cache_clear", lambda: None)()
        gc.collect()


def entry(comparison: Comparison, rehearse: bool, **more: Any) -> dict[str, Any]:
    """A comparison as the results hold it; of a rehearsal without any number of a clock."""
    fields = {**comparison.as_json(), **more}
    if rehearse:
        fields["measured"] = [
            {k: v for k, v in m.items() if k not in TIMES} for m in fields["measured"]
        ]
    names = [f"{OURS.name} {backend}" for backend in BACKENDS]
    failed = [
        f"{name}: {comparison.skipped[name]}"
        for name in names
        if name in comparison.skipped and not excused(comparison, name)
    ]
    alone = not any(name in comparison for name in names)
    fields["status"] = FAILED if failed and alone else DONE
    fields["reason"] = "; ".join(failed)
    if not rehearse:
        print("\n".join(brief(comparison)), flush=True)
    return fields


def excused(comparison: Comparison, name: str) -> bool:
    """What a backend does not have yet is no failure; the rows are what backends are for."""
    return comparison.op.group != "rows" and comparison.skipped[name].startswith(
        "NotImplementedError"
    )


def brief(comparison: Comparison) -> list[str]:
    floor = comparison.floor.times.median
    return [
        f"    {m.name:26} {1e3 * m.times.median:9.3f} ms {100 * floor / m.times.median:6.1f}%"
        for m in sorted(comparison.measured, key=lambda m: m.times.median)
    ]


def run(work: Work) -> None:
    name = work.stage.name
    measure = Measurer(work)
    wanted = [
        measurement
        for measurement in measurements.of(name, work.rehearse)
        if not work.store.measured(measurement.key) or work.store.is_over(name, measurement.key)
    ]
    work.each(
        [(measurement.key, functools.partial(measure, measurement)) for measurement in wanted]
    )
