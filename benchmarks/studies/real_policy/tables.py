"""The tables of docs/real_policy.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.studies.real_policy.numbers import (
    BASELINE,
    LARGEST_REWARD,
    Methods,
    Run,
    entropy_at,
    first,
    last,
    law,
    paired,
    spread,
    total,
    trained,
    verdict,
)
from logitless import tables as markdown

# Where entropies of different methods are compared.
EQUAL_REWARD = 0.8


def pages(settings: dict[str, Methods], folder: Path) -> Iterator[str]:
    yield from titled("tasks", tasks(folder / "tasks.json"))
    yield from titled("speed", speed(folder / "speed.json"))
    for name, methods in settings.items():
        yield from titled(f"{name}: first and last steps", ends(methods))
        yield from titled(f"{name}: after training", evaluations(methods))
        yield from titled(f"{name}: against {BASELINE}, seed by seed", against(methods))
        yield from titled(f"{name}: the law", laws(methods))
        yield from titled(f"{name}: what the library saw", inside(methods))
        hours = sum(run["seconds"] for runs in methods.values() for run in runs) / 3600
        count = sum(map(len, methods.values()))
        yield f"{name}: {count} runs, {hours:.1f} hours of one thread"
        yield ""


def titled(title: str, lines: Iterable[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield from (f"### {title}", "", *found, "")


def tasks(path: Path) -> Iterator[str]:
    if not path.exists():
        return
    found = json.loads(path.read_text("utf-8"))["rows"]
    most = max(int(k[5:]) for row in found.values() for k in row if k.startswith("pass@"))
    keys = {
        "right": "right", f"pass@{most}": f"pass@{most}", "greedy": "greedy_right",
        "distinct right": "distinct_right_answers", "entropy": "entropy", "tokens": "tokens",
    }  # fmt: skip
    rows = [
        (title, row["prompt"], *(f"{row[key]:.2f}" for key in keys.values()))
        for title, row in found.items()
    ]
    yield from markdown.markdown(("task", "a prompt", *keys), rows)


def speed(path: Path) -> Iterator[str]:
    if not path.exists():
        return
    found = json.loads(path.read_text("utf-8"))["rows"]
    rows = [
        (name, f"{row['rollout']:.1f}", f"{row['update']:.1f}", str(row["tokens"]))
        for name, row in found.items()
    ]
    yield from markdown.markdown(("body", "rollout, CPU s", "update, CPU s", "tokens"), rows)


def ends(methods: Methods) -> Iterator[str]:
    columns = ("reward", "entropy", "distinct_right_answers")
    rows = [
        (
            name,
            str(len(runs)),
            *(
                f"{statistics.fmean(first(run, key) for run in runs):.2f} → "
                f"{spread(last(run, key) for run in runs)}"
                for key in columns
            ),
            spread(entropy_at(run, EQUAL_REWARD) for run in runs),
        )
        for name, runs in trained(methods).items()
    ]
    head = ("", "seeds", "reward", "entropy, nats", "distinct right of 8")
    yield from markdown.markdown((*head, f"entropy at reward {EQUAL_REWARD}"), rows)


def evaluations(methods: Methods) -> Iterator[str]:
    ks = [key for key in next(iter(methods.values()))[0]["evaluation"] if key.startswith("pass@")]
    keys = {
        "greedy": "greedy_right", **dict(zip(ks, ks, strict=True)),
        "distinct right": "distinct_right_answers",
    }  # fmt: skip
    rows = [
        (name, *(spread(run["evaluation"][key] for run in runs) for key in keys.values()))
        for name, runs in methods.items()
    ]
    yield from markdown.markdown(("", *keys), rows)


def against(methods: Methods) -> Iterator[str]:
    of: dict[str, Callable[[Run], float | None]] = {
        "reward, last": lambda run: last(run, "reward"),
        "entropy, last": lambda run: last(run, "entropy"),
        f"entropy at reward {EQUAL_REWARD}": lambda run: entropy_at(run, EQUAL_REWARD),
        "distinct right, last": lambda run: last(run, "distinct_right_answers"),
    }
    others = [name for name in trained(methods) if name != BASELINE]
    rows = [
        (name, *(verdict(paired(methods, name, value)) for value in of.values())) for name in others
    ]
    if rows:
        yield from markdown.markdown(("", *of), rows)


def laws(methods: Methods) -> Iterator[str]:
    rows = [law_row(name, run) for name, runs in trained(methods).items() for run in runs]
    yield from markdown.markdown(
        ("", "seed", "a", "b", "R²", "ceiling b - a", "reward, last"), rows
    )


def law_row(name: str, run: Run) -> tuple[str, ...]:
    found = law(run)
    low, high = found.interval
    ceiling = f"{found.ceiling:.2f} ({low:.2f}..{high:.2f})"
    return (
        name, str(run["seed"]), f"{found.a:.3f}", f"{found.b:.2f}", f"{found.r2:.2f}",
        ceiling if found.ceiling <= LARGEST_REWARD else "above 1",
        f"{last(run, 'reward'):.2f}",
    )  # fmt: skip


def inside(methods: Methods) -> Iterator[str]:
    rows = [
        (
            name,
            spread(selected(run) for run in runs),
            spread(share(run, slice(0, 5)) for run in runs),
            spread(share(run, slice(-5, None)) for run in runs),
            f"{max(max(run['curves']['logp_gap']) for run in runs):.0e}",
            spread(slope(run) for run in runs),
            spread(
                (statistics.fmean(run["curves"]["tokens_per_sequence"][-5:]) for run in runs), 1
            ),
            spread((statistics.median(run["curves"]["seconds"]) for run in runs), 1),
        )
        for name, runs in trained(methods).items()
    ]
    head = (
        "", "selected, % of the tokens", "rows served, first, %", "last, %", "logp gap, largest",
        "entropy change, measured / predicted", "tokens of an answer, last", "s a step, median",
    )  # fmt: skip
    yield from markdown.markdown(head, rows)


def selected(run: Run) -> float | None:
    """Percent of the tokens that the method's control chose, over the whole run."""
    if "actor/cov_selected" not in run["curves"]:
        return None
    return 100 * total(run, "selected_tokens") / total(run, "tokens")


def share(run: Run, steps: slice) -> float | None:
    """Percent of the rows with a gradient that their largest entries served."""
    shares: list[Any] | None = run["curves"].get("actor/support_rows")
    return None if shares is None else 100 * statistics.fmean(shares[steps])


def slope(run: Run) -> float | None:
    """Measured by predicted entropy change, least squares through the origin."""
    probed = run["entropy_change"]
    x, y = probed["entropy_change_predicted"], probed["entropy_change"]
    square = sum(a * a for a in x)
    return sum(a * b for a, b in zip(x, y, strict=True)) / square if square else None
