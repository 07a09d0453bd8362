"""One op at one setting: who takes part, who is right, how fast, how exact, how much memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks import gate
from benchmarks.case import Call, Contender, Op, Results, Setting
from benchmarks.contenders import COMPILED, EAGER, OURS
from benchmarks.peers import PEERS
from benchmarks.timing import Timer, Times, interleave

FLOOR = "floor"


@dataclass(frozen=True)
class Measured:
    """One line of a table."""

    name: str
    kind: str  # "ours", "torch", "peer" or "floor"
    times: Times
    errors: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Match:
    op: Op
    setting: Setting
    measured: tuple[Measured, ...]
    skipped: Mapping[str, str]  # name -> reason

    def __getitem__(self, name: str) -> Measured:
        return next(m for m in self.measured if m.name == name)

    def __contains__(self, name: str) -> bool:
        return any(m.name == name for m in self.measured)

    @property
    def floor(self) -> Measured:
        return next(m for m in self.measured if m.kind == FLOOR)

    def as_json(self) -> dict[str, Any]:
        moved, flops = self.op.bytes(self.setting), self.op.flops(self.setting)
        ours = self["logitless"].times.median if "logitless" in self else None
        return {
            "op": self.op.name,
            "setting": asdict(self.setting),
            "bytes": moved,
            "flops": flops,
            "skipped": dict(self.skipped),
            "measured": [
                {
                    "name": m.name,
                    "kind": m.kind,
                    "median_ms": 1e3 * m.times.median,
                    "runs_ms": [1e3 * t for t in m.times.runs],
                    "over_floor": m.times.median / self.floor.times.median,
                    "over_ours": None if ours is None else m.times.median / ours,
                    "bytes_per_second": sum(moved.values()) / m.times.median,
                    "flops_per_second": flops / m.times.median,
                    "errors": dict(m.errors),
                    "peak_bytes": m.peak_bytes,
                }
                for m in self.measured
            ],
        }


def entrants(with_peers: bool) -> list[Contender]:
    return [OURS, EAGER, COMPILED, *(PEERS if with_peers else [])]


def load(op: Op, contender: Contender) -> Callable[..., Results] | str:
    """Its function for this op, or why there is none."""
    try:
        if contender.package:
            version(contender.package)
        return next(contender.functions[f] for f in op.families if f in contender.functions)()
    except PackageNotFoundError:
        return f"{contender.package} is not installed: ./dev bench --install-peers"
    # Whatever another library raises at import is its reason to be left out.
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def make_calls(op: Op, contenders: Sequence[Contender], inputs: Any) -> dict[str, tuple[str, Any]]:
    """name -> (kind, call or why there is none); floors excluded."""
    calls: dict[str, tuple[str, Any]] = {}
    for contender in contenders:
        if not any(family in contender.functions for family in op.families):
            continue
        function = load(op, contender)
        call = function if isinstance(function, str) else op.call(function, inputs)
        calls[contender.name] = (contender.kind, call)
    return {**calls, **{name: ("ours", call) for name, call in op.variants(inputs).items()}}


def attempt(kind: str, call: Call | str) -> Results | str:
    """One run, or why there is none. Ours may not fail; others are left out in their own words."""
    if isinstance(call, str):
        return call
    try:
        return call()
    except Exception as error:
        if kind == "ours":
            raise
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


def judge(
    op: Op, dtype: str, contenders: Sequence[Contender], inputs: Any
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """The errors of those that pass against the oracle, and the reasons of those that do not."""
    oracle = op.oracle(inputs)
    calls = make_calls(op, contenders, inputs)
    plain: dict[str, float] = {}
    passed: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    # Plain torch first: its error is the measure of the others.
    for name in sorted(calls, key=lambda name: name != EAGER.name):
        kind, call = calls[name]
        results = attempt(kind, call)
        if isinstance(results, str):
            failed[name] = results
            continue
        expected = oracle(results)
        found = gate.errors(results, expected)
        plain = found if name == EAGER.name else plain
        objection = gate.oracle_objection(kind, found, plain, expected, dtype)
        if objection is None:
            passed[name] = found
        else:
            failed[name] = f"not timed: {objection}"
    return passed, failed


def play(
    op: Op, setting: Setting, contenders: Sequence[Contender], repeats: int, timer: Timer
) -> Match:
    """Checks everyone, then times who passed. The checks warm up too."""
    torch._dynamo.reset()
    inputs = op.inputs(setting)
    passed, skipped = judge(op, setting.dtype, contenders, inputs.first(gate.ROWS))
    entered = {n: kc for n, kc in make_calls(op, contenders, inputs).items() if n in passed}
    plain = attempt(*entered[EAGER.name]) if EAGER.name in entered else {}
    calls: dict[str, Call] = {}
    for name, (kind, call) in entered.items():
        results = plain if name == EAGER.name else attempt(kind, call)
        if not isinstance(results, str) and not isinstance(plain, str):
            results = gate.agreement_objection(results, plain, setting.dtype, op.random) or results
        if isinstance(results, str):
            skipped[name] = f"not timed: {results}"
        else:
            calls[name] = call
    del plain, results
    gc.collect()
    floors = op.floors(inputs)
    for floor in floors.values():
        floor()
    times = interleave({**calls, **floors}, repeats, timer)
    measured = (
        Measured(name, FLOOR if name in floors else entered[name][0], t, passed.get(name, {}))
        for name, t in times.items()
    )
    return Match(op, setting, tuple(measured), skipped)
