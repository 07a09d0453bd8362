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


# What stands where the page has its tables.
BEGIN, END = "<!-- made by `plot`: begin -->", "<!-- made by `plot`: end -->"
ABOUT = {
    "tasks": "How often the untrained model is right, at temperature 1:",
    "ends": "Means of the first and the last five steps, over the seeds: mean ± standard deviation "
    "(min..max). The last column is the entropy where the mean reward of five steps first gets to "
    f"{EQUAL_REWARD}: more entropy at the same reward.",
    "evaluations": "After training, 16 prompts with 8 answers each at temperature 1, and a greedy "
    "one:",
    "against": f"What a method has more of than `{BASELINE}` with the same seed: mean (min..max), "
    "and whether all seeds agree. Of three seeds all agree by chance once in four times.",
    "laws": "R = -a exp(H) + b, fitted to the steps of a run; the ceiling with its 95% interval, "
    "which takes steps as independent. One above 1 is no prediction, since no reward is.",
    "inside": "What the trainer saw. Entropy change: how much of the gradient's first-order "
    "prediction came true, by least squares over the probed steps.",
}


def pages(settings: dict[str, Methods], folder: Path) -> Iterator[str]:
    yield from titled("", ABOUT["tasks"], tasks(folder / "tasks.json"))
    yield from titled("", "A first step, CPU seconds:", speed(folder / "speed.json"))
    for name, methods in settings.items():
        yield from titled(f"### {name}: reward and entropy", ABOUT["ends"], ends(methods))
        yield from titled("", ABOUT["evaluations"], evaluations(methods))
        yield from titled("", ABOUT["against"], against(methods))
        yield from titled(f"### {name}: the law", ABOUT["laws"], laws(methods))
        yield from titled(f"### {name}: inside", ABOUT["inside"], inside(methods))
        runs = [run for of_method in methods.values() for run in of_method]
        wall, cpu = (sum(run[key] for run in runs) / 3600 for key in ("seconds", "cpu_seconds"))
        yield f"{len(runs)} runs: {cpu:.1f} CPU hours, {wall:.1f} hours by the clock."
        yield ""


def titled(title: str, about: str, lines: Iterable[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield from ([title, ""] if title else [])
        yield from (about, "", *found, "")


def into_page(page: Path, lines: Iterable[str]) -> None:
    """Puts the tables between their two marks."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for the tables: {BEGIN} and {END}")
    page.write_text("\n".join([before + begin, "", *lines, end + after]), "utf-8")


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
