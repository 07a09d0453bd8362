"""What the kept runs say: ends of curves, laws, and differences to the same seed's baseline."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import logitless as ll
from benchmarks.studies.real_policy.setting import METHODS, UNTRAINED

Run = dict[str, Any]
# Of one setting: method -> its runs by seed, in the order of METHODS.
Methods = dict[str, list[Run]]
BASELINE = "grpo"
# "First" and "last" are means over this many steps at either end.
WINDOW = 5
# A reward is the share of right answers: no ceiling above this predicts one.
LARGEST_REWARD = 1.0


def read(folder: Path) -> dict[str, Methods]:
    """Setting -> method -> runs."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*-*-*.json"))]
    order = [UNTRAINED, *METHODS]
    settings: dict[str, Methods] = {}
    for run in sorted(found, key=lambda x: (x["setting"], order.index(x["method"]), x["seed"])):
        settings.setdefault(run["setting"], {}).setdefault(run["method"], []).append(run)
    return settings


def trained(methods: Methods) -> Methods:
    return {name: runs for name, runs in methods.items() if name != UNTRAINED}


def first(run: Run, key: str) -> float:
    return statistics.fmean(run["curves"][key][:WINDOW])


def last(run: Run, key: str) -> float:
    return statistics.fmean(run["curves"][key][-WINDOW:])


def total(run: Run, key: str) -> float:
    return float(sum(run["curves"][key]))


def smooth(values: list[float]) -> list[float]:
    """Mean of the last WINDOW values at each place."""
    return [statistics.fmean(values[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(values))]


def entropy_at(run: Run, reward: float) -> float | None:
    """The entropy where the smoothed reward first gets to `reward`; None: it never does."""
    curve = zip(smooth(run["curves"]["reward"]), smooth(run["curves"]["entropy"]), strict=True)
    return next((entropy for got, entropy in list(curve)[WINDOW - 1 :] if got >= reward), None)


def law(run: Run) -> Any:  # EntropyLaw
    return ll.fit_entropy_law(run["curves"]["entropy"], run["curves"]["reward"])


def paired(methods: Methods, name: str, of: Callable[[Run], float | None]) -> list[float]:
    """What a method has more of than the baseline of the same seed, whose model, prompts and noise
    are the same."""
    base = {run["seed"]: of(run) for run in methods.get(BASELINE, [])}
    both = ((of(run), base.get(run["seed"])) for run in methods[name])
    return [mine - theirs for mine, theirs in both if mine is not None and theirs is not None]


def spread(values: Iterable[float | None], digits: int = 2) -> str:
    """mean (min..max) of the values that there are."""
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    mean = f"{statistics.fmean(there):.{digits}f}"
    if len(there) == 1:
        return mean
    deviation = statistics.stdev(there)
    return f"{mean} ± {deviation:.{digits}f} ({min(there):.{digits}f}..{max(there):.{digits}f})"


def verdict(differences: list[float], digits: int = 2) -> str:
    """mean (min..max) of paired differences, and what they say."""
    if not differences:
        return "-"
    low, high = min(differences), max(differences)
    mean = f"{statistics.fmean(differences):+.{digits}f}"
    if len(differences) == 1:
        return f"{mean}, one seed"
    if low > 0 or high < 0:
        said = "more" if low > 0 else "less"
        said = f"{said} on all {len(differences)}"
    else:
        said = "within the spread"
    return f"{mean} ({low:+.{digits}f}..{high:+.{digits}f}), {said}"
