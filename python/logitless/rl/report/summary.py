"""The numbers of a run: one summary for each method, and their spread over its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import logitless as ll
from logitless.rl.report.reward_columns import reward_columns
from logitless.rl.tracking import metrics
from logitless.rl.tracking.metrics import Row

# Of each method the rows of each seed.
Runs = Mapping[str, Mapping[int, list[Row]]]

# Fewer points than this cannot tell a line from noise.
LAW_POINTS = 5
LAW_KEYS = ("a", "b", "ceiling", "r2", "interval")

# What a summary has of the rows of one seed.
NUMBERS: dict[str, Callable[[list[Row]], Any]] = {
    "reward_first": lambda rows: metrics.first(rows, "reward"),
    "reward_last": lambda rows: metrics.last(rows, "reward"),
    "entropy_first": lambda rows: metrics.first(rows, "entropy"),
    "entropy_last": lambda rows: metrics.last(rows, "entropy"),
    "distinct_right_answers_last": lambda rows: metrics.last(rows, "distinct_right_answers"),
    "selected_tokens": lambda rows: sum(metrics.column(rows, "selected_tokens")),
    "seconds": lambda rows: sum(metrics.column(rows, "seconds")),
    "peak_memory_bytes": lambda rows: max(metrics.column(rows, "peak_memory_bytes")),
    "full_logits_bytes": lambda rows: max(metrics.column(rows, "full_logits_bytes")),
}
# Of an evaluation, see rl/diversity.py.
DIVERSITY = {
    "answer entropy": "answer_entropy",
    "balance": "balance",
    "prompts lost": "support_shrink",
    "prompts gained": "support_expand",
}
# What the table of spreads has: of the last steps, and of the last evaluation.
OF_STEPS = {
    "reward": "reward_last",
    "entropy": "entropy_last",
    "distinct right": "distinct_right_answers_last",
}


def rewards_of(rewards: Iterable[float]) -> Row | None:
    """The scale of a run's rewards, from those of its answers: whether all are 0 or 1, the least
    and the largest. One that has 0 or 1 alone can give 1, whether it has or not."""
    seen = set(rewards)
    if not seen:
        return None
    if seen <= {0.0, 1.0}:
        return {"zero_or_one": True, "least": 0.0, "largest": 1.0}
    return {"zero_or_one": False, "least": min(seen), "largest": max(seen)}


def largest_of(rewards: Row | None) -> float:
    """No ceiling is above that of rewards that nobody has seen."""
    return math.inf if rewards is None else float(rewards["largest"])


def summarize(
    runs: Runs, head_bytes: Mapping[str, int | None], largest: float = math.inf
) -> dict[str, Any]:
    """Per method: the numbers of summary.json, of several seeds their means, beside those of each
    under `seeds`. Bytes of the head are None where they were not measured; so is a law's ceiling
    above the `largest` reward.
    """
    return {
        name: _summarize(rows, head_bytes.get(name), largest)
        for name, by_seed in runs.items()
        if (rows := begun(by_seed))
    }


def begun(by_seed: Mapping[int, list[Row]]) -> dict[int, list[Row]]:
    """The seeds that have a step."""
    return {seed: rows for seed, rows in by_seed.items() if rows}


def pooled(by_seed: Mapping[int, list[Row]]) -> list[Row]:
    return [row for rows in by_seed.values() for row in rows]


def _summarize(by_seed: dict[int, list[Row]], head_bytes: int | None, largest: float) -> Row:
    each = {
        seed: {key: of(rows) for key, of in NUMBERS.items()} | {"law": _law(rows, largest)}
        for seed, rows in by_seed.items()
    }
    head = {"head_memory_bytes": head_bytes, "rewards": reward_columns(mean(by_seed))}
    if len(each) == 1:
        (only,) = each.values()
        return only | head
    means = {key: statistics.fmean(row[key] for row in each.values()) for key in NUMBERS}
    return means | {"law": _law(pooled(by_seed), largest), "seeds": each} | head


def _law(rows: list[Row], largest: float) -> Row | None:
    law = fit_law(rows)
    if law is None:
        return None
    found = {key: _plain(getattr(law, key)) for key in LAW_KEYS}
    return found if found["ceiling"] <= largest else found | {"ceiling": None, "interval": None}


def fit_law(rows: list[Row]) -> Any | None:
    entropy = metrics.column(rows, "entropy")
    if len(rows) < LAW_POINTS or len(set(entropy)) == 1:
        return None
    return ll.fit_entropy_law(entropy, metrics.column(rows, "reward"))


def spread(runs: Runs, evaluations: Runs, largest: float = math.inf) -> dict[str, dict[str, Row]]:
    """Of each method with several seeds: mean, std, min and max of the quantities that every one
    of its seeds has. A ceiling above the `largest` reward is none."""
    found = {}
    for name, by_seed in runs.items():
        rows = begun(by_seed)
        if len(rows) < 2:
            continue
        quantities: dict[str, list[Any]] = {
            title: [NUMBERS[key](x) for x in rows.values()] for title, key in OF_STEPS.items()
        }
        laws = [_law(x, largest) for x in rows.values()]
        quantities["ceiling b - a"] = [None if law is None else law["ceiling"] for law in laws]
        last = [x[-1] for seed in rows if (x := evaluations[name].get(seed))]
        if len(last) == len(rows):
            keys = evaluation_keys(last)
            quantities |= {title: [x[key] for x in last] for title, key in keys.items()}
        found[name] = {
            title: spread_of(values) for title, values in quantities.items() if None not in values
        }
    return found


def spread_of(values: list[float]) -> Row:
    """std: that of a sample, which divides by one less than there are values."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values),
        "min": min(values),
        "max": max(values),
    }


def mean(by_seed: Mapping[int, list[Row]]) -> list[Row]:
    """The mean row of each step that all seeds have got to."""
    seeds = list(begun(by_seed).values())
    if len(seeds) < 2:
        return seeds[0] if seeds else []
    return [
        {key: statistics.fmean(row[key] for row in rows) for key in shared(rows)} | {"step": step}
        for step, rows in steps_of_all(seeds)
    ]


def shared(rows: list[Row]) -> list[str]:
    """The keys of the numbers that all rows have."""
    return [key for key in metrics.numbers(rows[0]) if all(key in row for row in rows)]


def evaluation_keys(rows: list[Row]) -> dict[str, str]:
    """Title and key of what tables show of an evaluation, with the largest k of pass@k, and what
    older logs lack."""
    known = shared(rows)
    most = max(int(key[5:]) for key in known if key.startswith("pass@"))
    keys = {"right": "right", f"pass@{most}": f"pass@{most}", "greedy": "greedy_right"}
    return keys | {title: key for title, key in DIVERSITY.items() if key in known}


def steps_of_all(seeds: list[list[Row]]) -> Iterable[tuple[int, list[Row]]]:
    """(step, a row a seed)."""
    by_step = [{row["step"]: row for row in rows} for rows in seeds]
    for step in by_step[0]:
        if all(step in rows for rows in by_step):
            yield step, [rows[step] for rows in by_step]


def support_rows(runs: Runs) -> float | None:
    """Mean share of the rows that tail_mass served, over all methods' steps; None: without it."""
    key = "actor/support_rows"
    shares = [row[key] for seeds in runs.values() for row in pooled(seeds) if key in row]
    return statistics.fmean(shares) if shares else None


def _plain(value: Any) -> Any:
    return [float(v) for v in value] if isinstance(value, (tuple, list)) else float(value)
