"""The measuring stages: each case a match of the registry's, checked and then timed."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.cases.ours import OURS
from benchmarks.cases.peers import PEERS
from benchmarks.cases.plain import COMPILED, EAGER
from benchmarks.cases.registry import OPS
from benchmarks.cases.targets import verdicts
from benchmarks.gpu.stage_process import Again, Leave, Work
from benchmarks.gpu.stages import measurements as cases
from benchmarks.gpu.stages.measurements import Case
from benchmarks.gpu.store import DONE, FAILED
from benchmarks.harness.case import Contender, Results, Setting
from benchmarks.harness.comparison import DeviceLost, Match, is_lost, play
from benchmarks.harness.timing import Timer

BACKENDS = ("cuda", "triton")
REPEATS = 20
# Seconds of measured time after which a contender has run enough.
ENOUGH = 0.3
# What a match holds at once, of the bytes that its op moves: inputs, two gradients to compare, and
# a tensor to overwrite. Heads are compared with torch that holds float32 logits and gradients.
MATCH_HOLDS, HEAD_HOLDS, SPARE = 2.5, 8, 2 << 30
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


def ours(backend: str) -> Contender:
    def bound(load: Callable[[], Callable[..., Results]]) -> Callable[[], Callable[..., Results]]:
        return lambda: with_backend(load(), backend)

    functions = {family: bound(load) for family, load in OURS.functions.items()}
    return replace(OURS, name=f"{OURS.name} {backend}", functions=functions)


def contenders(case: Case) -> list[Contender]:
    mine = [ours(backend) for backend in BACKENDS]
    compiled = [COMPILED] if case.compiled else []
    return [*mine, EAGER, *compiled, *(PEERS if case.peers else [])]


def bytes_needed(case: Case) -> float:
    head = HEAD_HOLDS * case.logits_bytes if case.op.group == "head" else 0
    return MATCH_HOLDS * sum(case.op.bytes(case.setting).values()) + head + SPARE


class Measurer:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.timer = Timer(work.device)
        self.last: Setting | None = None
        self.free = float("inf")
        if work.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            torch.cuda.set_per_process_memory_fraction(min(1.0, SHARE * free / total))
            self.free = SHARE * free

    def __call__(self, case: Case) -> dict[str, Any]:
        setting = replace(case.setting, device=self.work.device)
        if setting != self.last:
            self.clear()
            self.last = setting
        if bytes_needed(case) > self.free:
            raise Leave(f"needs {bytes_needed(case) / 2**30:.0f} GiB, {self.free / 2**30:.0f} free")
        banned = self.banned
        entered = [each for each in contenders(case) if each.name not in banned]
        try:
            match = play(
                case.op, setting, entered, 1 if self.work.rehearse else REPEATS,
                self.timer, variants=case.variants, strict=False, enough=ENOUGH,
            )  # fmt: skip
        except DeviceLost as error:
            # Without whoever it was the others can still be measured, in a new process.
            reason = f"lost the device in {case.key}: {error.reason}"
            self.work.store.set_stage(self.work.stage.name, banned={**banned, error.name: reason})
            raise Again(reason) from error
        finally:
            gc.collect()
            if self.work.device == "cuda" and not is_lost("cuda"):
                torch.cuda.empty_cache()
        match = replace(match, skipped={**match.skipped, **banned})
        # The targets of a size are judged once.
        judged = {} if case.compiled else {"targets": verdicts([match])}
        return entry(match, self.work.rehearse, rows_of_sizes=case.op.sizes, **judged)

    @property
    def banned(self) -> dict[str, str]:
        """Contenders that ended a process of this stage -> why."""
        found: dict[str, str] = self.work.store.stage(self.work.stage.name).get("banned", {})
        return found

    def clear(self) -> None:
        """The inputs that the last op's maker keeps: two sets of them may not fit."""
        for each in OPS:
            getattr(each.inputs, "cache_clear", lambda: None)()
        gc.collect()


def entry(match: Match, rehearse: bool, **more: Any) -> dict[str, Any]:
    """A match as the results hold it; of a rehearsal without any number of a clock."""
    fields = {**match.as_json(), **more}
    if rehearse:
        fields["measured"] = [
            {k: v for k, v in m.items() if k not in TIMES} for m in fields["measured"]
        ]
    names = [f"{OURS.name} {backend}" for backend in BACKENDS]
    failed = [
        f"{name}: {match.skipped[name]}"
        for name in names
        if name in match.skipped and not excused(match, name)
    ]
    alone = not any(name in match for name in names)
    fields["status"] = FAILED if failed and alone else DONE
    fields["reason"] = "; ".join(failed)
    if not rehearse:
        print("\n".join(brief(match)), flush=True)
    return fields


def excused(match: Match, name: str) -> bool:
    """What a backend does not have yet is no failure; the rows are what backends are for."""
    return match.op.group != "rows" and match.skipped[name].startswith("NotImplementedError")


def brief(match: Match) -> list[str]:
    floor = match.floor.times.median
    return [
        f"    {m.name:26} {1e3 * m.times.median:9.3f} ms {100 * floor / m.times.median:6.1f}%"
        for m in sorted(match.measured, key=lambda m: m.times.median)
    ]


def run(work: Work) -> None:
    name = work.stage.name
    measure = Measurer(work)
    wanted = [
        case
        for case in cases.of(name, work.rehearse)
        if not work.store.measured(case.key) or work.store.is_over(name, case.key)
    ]
    work.each([(case.key, functools.partial(measure, case)) for case in wanted])
