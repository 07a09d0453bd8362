"""One op at one case: which implementations are right, how fast, how exact, how much memory."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.harness import correctness
from benchmarks.harness.case import FLOOR, OURS, Call, Case, Implementation, Op, Results
from benchmarks.harness.timing import ENOUGH_SECONDS, Clock, Times, interleave


@dataclass(frozen=True)
class Measured:
    """One line of a table."""

    name: str
    kind: str  # OURS, TORCH, PEER or FLOOR
    times: Times
    errors: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Comparison:
    op: Op
    case: Case
    measured: tuple[Measured, ...]
    skipped: Mapping[str, str]  # name -> reason

    def __getitem__(self, name: str) -> Measured:
        return next(m for m in self.measured if m.name == name)

    def __contains__(self, name: str) -> bool:
        return any(m.name == name for m in self.measured)

    @property
    def floor(self) -> Measured:
        return next(m for m in self.measured if m.kind == FLOOR)

    @property
    def ours(self) -> Measured | None:
        """The line of ours that others are compared with: the first."""
        return next((m for m in self.measured if m.kind == OURS), None)

    def as_json(self) -> dict[str, Any]:
        moved, flops = self.op.bytes(self.case), self.op.flops(self.case)
        ours = self.ours.times if self.ours else None
        return {
            "op": self.op.name,
            "setting": asdict(self.case),
            "bytes": moved,
            "flops": flops,
            "skipped": dict(self.skipped),
            "measured": [
                {
                    "name": m.name,
                    "kind": m.kind,
                    "median_ms": 1e3 * m.times.median,
                    "runs_ms": [1e3 * t for t in m.times.runs],
                    "host_ms": 1e3 * statistics.median(m.times.host) if m.times.host else None,
                    "cpu_ms": 1e3 * statistics.median(m.times.cpu) if m.times.cpu else None,
                    "rounds": m.times.rounds,
                    "over_floor": m.times.over(self.floor.times),
                    "over_ours": None if ours is None else m.times.over(ours),
                    "bytes_per_second": sum(moved.values()) / m.times.median,
                    "flops_per_second": flops / m.times.median,
                    "errors": dict(m.errors),
                    "peak_bytes": m.peak_bytes,
                }
                for m in self.measured
            ],
        }


def load(op: Op, implementation: Implementation) -> Callable[..., Results] | str:
    """Its function for this op, or why there is none."""
    try:
        if implementation.package:
            version(implementation.package)
        return next(
            implementation.functions[f] for f in op.families if f in implementation.functions
        )()
    except PackageNotFoundError:
        return f"{implementation.package} is not installed: ./dev bench --install-peers"
    # Whatever another library raises at import is its reason to be left out.
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def make_calls(
    op: Op, implementations: Sequence[Implementation], inputs: Any, variants: bool = True
) -> dict[str, tuple[str, Any]]:
    """name -> (kind, call or why there is none); floors excluded."""
    calls: dict[str, tuple[str, Any]] = {}
    for implementation in implementations:
        if not any(family in implementation.functions for family in op.families):
            continue
        function = load(op, implementation)
        call = function if isinstance(function, str) else op.call(function, inputs)
        calls[implementation.name] = (implementation.kind, call)
    more = op.variants(inputs) if variants else {}
    return {**calls, **{name: (OURS, call) for name, call in more.items()}}


def run_and_peak(call: Call, device: str) -> tuple[Results, int | None]:
    """Results, and on CUDA how far the run drove the allocated memory up."""
    prepared = call.prepare()
    if torch.device(device).type != "cuda":
        return call.results(call.run(prepared)), None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call.results(call.run(prepared))
    # What went wrong on the device is to be raised here, and not in somebody else's turn.
    torch.cuda.synchronize()
    return results, torch.cuda.max_memory_allocated() - before


class DeviceLost(RuntimeError):
    """After an error that no later call of this process recovers from; `name` made it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def is_lost(device: str) -> bool:
    if torch.device(device).type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@dataclass
class Verifier:
    """Which implementations are right on these inputs, and with what error.

    Against the oracle on a few rows: rows of the very run that is timed, the last among them, where
    each row stands for itself, else a run of the first rows alone. Against plain torch on all.
    """

    op: Op
    case: Case
    inputs: Any
    implementations: Sequence[Implementation]
    variants: bool
    strict: bool  # ours may not fail; others are left out in their own words
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    peaks: dict[str, int | None] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.case.rows
        ends = torch.linspace(0, n - 1, min(n, correctness.ROWS)).long().to(self.case.device)
        self.rows = ends if self.op.rowwise else None
        few = (
            self.inputs.first(correctness.ROWS)
            if self.rows is None
            else self.inputs.pick(self.rows)
        )
        self.oracle = self.op.oracle(few)
        self.small = make_calls(self.op, self.implementations, few, self.variants)
        self.plain: Results = {}
        # The error of plain torch is the measure of the others.
        self.plain_errors: dict[str, float] = {}
        self.baseline = next((c.name for c in self.implementations if c.baseline), "")
        if self.baseline in self.small:
            results = self.attempt(self.baseline, self.small[self.baseline], small=True)
            if results is not None:
                self.plain_errors = correctness.errors(results, self.oracle(results))

    def attempt(self, name: str, entry: tuple[str, Call | str], small: bool = False) -> Any:
        """The results of one run, or None with the reason in `skipped`."""
        kind, call = entry
        if isinstance(call, str):
            self.skipped[name] = call
            return None
        try:
            results, peak = run_and_peak(call, self.case.device)
        except Exception as error:
            if kind == OURS and self.strict:
                raise
            first = next(iter(str(error).splitlines()), "")[:200]
            self.skipped[name] = f"{type(error).__name__}: {first}"
            if is_lost(self.case.device):
                raise DeviceLost(name, self.skipped[name]) from error
            return None
        if not small:
            self.peaks[name] = peak
        return results

    def passes(self, name: str, entry: tuple[str, Call | str]) -> bool:
        results = self.attempt(name, entry)
        objection = None if results is None else self.objection(name, entry[0], results)
        if objection is not None:
            self.skipped[name] = f"not timed: {objection}"
        elif name == self.baseline:
            self.plain = results or {}
        return name not in self.skipped

    def objection(self, name: str, kind: str, results: Results) -> str | None:
        few: Results | None
        if self.rows is None:
            few = self.attempt(name, self.small[name], small=True)
        else:
            few = {key: value.detach()[self.rows] for key, value in results.items()}
        if few is None:
            return self.skipped[name]
        expected = self.oracle(few)
        found = correctness.errors(few, expected)
        dtype, announced = self.case.dtype, self.op.announced.get(name, 0.0)
        objection = correctness.oracle_objection(
            kind, found, self.plain_errors, expected, dtype, announced
        )
        if objection is None:
            self.errors[name] = found
            objection = correctness.agreement_objection(
                results, self.plain, dtype, self.op.random, announced
            )
        return objection


def compare(
    op: Op,
    case: Case,
    implementations: Sequence[Implementation],
    repeats: int,
    timer: Clock,
    *,
    variants: bool = True,
    strict: bool = True,
    enough: float = ENOUGH_SECONDS,
) -> Comparison:
    """Checks everyone, then times who passed. The checks warm up too."""
    torch._dynamo.reset()
    inputs = op.inputs(case)
    verifier = Verifier(op, case, inputs, implementations, variants, strict)
    entries = make_calls(op, implementations, inputs, variants)
    # Plain torch first: the others are compared with it.
    passed = [
        name
        for name in sorted(entries, key=lambda name: name != verifier.baseline)
        if verifier.passes(name, entries[name])
    ]
    # Ours and the floors next to each other, so that their quotients compare the same moment.
    calls = {
        name: entries[name][1]
        for name in sorted(entries, key=lambda name: entries[name][0] == OURS)
        if name in passed
    }
    verifier.plain = {}
    gc.collect()
    floors = op.floors(inputs)
    for floor in floors.values():
        floor()
    times = interleave({**calls, **floors}, repeats, timer, enough)
    measured = (
        Measured(
            name,
            FLOOR if name in floors else entries[name][0],
            found,
            verifier.errors.get(name, {}),
            verifier.peaks.get(name),
        )
        for name, found in times.items()
    )
    return Comparison(op, case, tuple(measured), verifier.skipped)
