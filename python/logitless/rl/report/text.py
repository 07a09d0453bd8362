"""The lines of a report, the same on the terminal and in the page."""

from __future__ import annotations

from typing import Any

from logitless.rl.report.reward_columns import evaluated_rewards_table, rewards_table
from logitless.rl.report.summary import evaluation_keys
from logitless.rl.tracking.metrics import Row

HEADER = [
    "",
    "reward",
    "entropy",
    "distinct right",
    "ceiling b - a",
    "selected tokens",
    "seconds",
    "head memory",
]


def tables(summary: dict[str, Any], details: dict[str, Any]) -> list[list[list[str]]]:
    """The tables of terminal and report; one without numbers is empty."""
    return [
        table(summary),
        spread_table(details["spread"]),
        evaluation_table(details["evaluations"]),
        evaluated_rewards_table(details["evaluations"]),
        rewards_table(summary),
    ]


def table(summary: dict[str, Any]) -> list[list[str]]:
    """The small table of terminal and report: HEADER, then a row a method; means over its seeds,
    where it has several."""
    seeds = max((len(row.get("seeds", ())) for row in summary.values()), default=0)
    return [[mean_of(seeds), *HEADER[1:]]] + [
        [
            name,
            f"{row['reward_first']:.3f} → {row['reward_last']:.3f}",
            f"{row['entropy_first']:.3f} → {row['entropy_last']:.3f}",
            f"{row['distinct_right_answers_last']:.1f}",
            ceiling(row["law"]),
            f"{row['selected_tokens']:.0f}",
            f"{row['seconds']:.0f}",
            megabytes(row["head_memory_bytes"]),
        ]
        for name, row in summary.items()
    ]


def ceiling(law: Row | None) -> str:
    return "-" if law is None or law["ceiling"] is None else f"{law['ceiling']:.2f}"


def mean_of(seeds: int) -> str:
    return f"means of {seeds} seeds" if seeds else ""


def spread_table(spread: dict[str, dict[str, Row]]) -> list[list[str]]:
    """mean ± std (min..max) over the seeds of each method, at the end of its runs; none where no
    method has two."""
    titles = list(dict.fromkeys(title for row in spread.values() for title in row))
    if not titles:
        return []
    return [
        ["over the seeds, last", *titles],
        *[
            [name, *[spread_cell(row.get(title)) for title in titles]]
            for name, row in spread.items()
        ],
    ]


def spread_cell(found: Row | None) -> str:
    if found is None:
        return "-"
    return f"{found['mean']:.3f} ± {found['std']:.3f} ({found['min']:.3f}..{found['max']:.3f})"


def evaluation_table(evaluations: dict[str, list[Row]]) -> list[list[str]]:
    """A row a method, from its first evaluation to its last; none where there was no evaluation."""
    done = {name: rows for name, rows in evaluations.items() if rows}
    if not done:
        return []
    columns = evaluation_keys([rows[0] for rows in done.values()])
    columns |= {"entropy": "entropy", "distinct right": "distinct_right_answers"}
    return [
        ["evaluation", *columns],
        *[
            [name, *[f"{rows[0][key]:.3f} → {rows[-1][key]:.3f}" for key in columns.values()]]
            for name, rows in done.items()
        ],
    ]


def aligned(lines: list[list[str]]) -> list[str]:
    """The columns of a table, one under the other."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    ]


def runs_of(details: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The details of each run of a report, by what its lines begin with."""
    several = details.get("runs")
    return {"": details} if several is None else {f"{name}: ": x for name, x in several.items()}


def comparisons(details: dict[str, Any]) -> list[str]:
    return [
        f"{label}{line}"
        for label, run in runs_of(details).items()
        for line in comparison_lines(run["comparison"], run["recipe"]["update"]["tail_mass"])
    ]


def checks(details: dict[str, Any]) -> list[str]:
    return [
        f"{label}{line}"
        for label, run in runs_of(details).items()
        for line in (*support_lines(run), self_check(run))
    ]


def rewards(details: dict[str, Any]) -> list[str]:
    """What the rewards of each run are, and what its law can say of them."""
    return [
        f"{label}{reward_scale(run['rewards'], run['recipe']['task']['right'])}"
        for label, run in runs_of(details).items()
    ]


def reward_scale(found: Row | None, right: float) -> str:
    if found is None:
        return "No answer has a reward in the log."
    if not found["zero_or_one"]:
        return (
            f"Rewards are graded: the answers got {found['least']:g} to {found['largest']:g}, and "
            f"one is right from {right:g} on. A ceiling above {found['largest']:g}, the largest "
            "reward of any answer, is left out."
        )
    mean = ", so that their mean is the share of right answers" if 0.0 < right <= 1.0 else ""
    return f"Rewards are 0 or 1{mean}. A ceiling above 1 is left out."


def notes(details: dict[str, Any]) -> list[str]:
    """Each once."""
    found = (note for run in runs_of(details).values() for note in run["recipe"]["notes"])
    return list(dict.fromkeys(found))


def most_seeds(details: dict[str, Any]) -> int:
    return max(len(run["recipe"]["seeds"]) for run in runs_of(details).values())


def comparison_lines(comparison: dict[str, Any] | None, tail_mass: float) -> list[str]:
    if comparison is None:
        return []
    faster = comparison["seconds_full_logits"] / comparison["seconds"]
    smaller = comparison["bytes_full_logits"] / max(comparison["bytes"], 1)
    ours = f"logitless, tail_mass={tail_mass:g}" if tail_mass else "logitless"
    exact = comparison["seconds_exact"]

    def line(name: str, seconds: float, size: str) -> str:
        return f"  {name:{len(ours) + 1}}{seconds * 1e3:7.0f} ms   {size:>9}".rstrip()

    return [
        f"One training step of {comparison['rows']} tokens over {comparison['vocab_size']:,}"
        f" entries, forward and backward:",
        line(ours, comparison["seconds"], megabytes(comparison["bytes"])),
        *([] if exact is None else [line("logitless, exact", exact, "")]),
        line(
            "full logits",
            comparison["seconds_full_logits"],
            megabytes(comparison["bytes_full_logits"]),
        )
        + f"   ({faster:.1f} times the time, {smaller:.1f} times the memory)",
    ]


def support_lines(details: dict[str, Any]) -> list[str]:
    share, tail_mass = details["support_rows"], details["recipe"]["update"]["tail_mass"]
    if share is None:
        return []
    return [
        f"tail_mass={tail_mass:g}: {share:.1%} of the rows with a gradient got it from their"
        " largest entries, the others from every entry."
    ]


def megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f} MB"


def self_check(details: dict[str, Any]) -> str:
    gap = details["max_logp_gap"]
    if gap is None:
        return "No step was finished."
    return (
        f"Largest difference between a token's log-prob when it was sampled and when it was "
        f"trained on, "
        f"before the step's first update: {gap:.1e} nats."
    )
