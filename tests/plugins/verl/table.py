"""Prints the tables of docs/verl.md: how far this library is from verl's own.

./dev plugins --table
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import logitless as ll
from tests.plugins.verl import cases
from tests.plugins.verl.engines import (
    actor_config,
    data,
    distance,
    engine,
    off_policy,
    save_model,
    scored,
    step,
)
from tests.plugins.verl.setting import away, made, ours, outcome


def losses() -> Iterator[str]:
    """Given log-probs: a loss, its gradient in them, and metrics."""
    yield "| loss_mode | loss | gradient | metrics |\n|---|---|---|---|"
    batch = made()
    for name, case in cases.CASES.items():
        ours.register("case", case.spec)
        a = outcome(actor_config(case.mode, **case.options), batch)
        b = outcome(actor_config("logitless/case"), batch)
        metrics = max(
            (abs(x - b.metrics[k]) for k, x in a.metrics.items() if k not in case.other),
            default=0.0,
        )
        off = away(a.gradient, b.gradient)
        yield f"| {name} | {abs(a.loss - b.loss):.0e} | {off:.1e} | {metrics:.0e} |"


def heads(folder: Path) -> Iterator[str]:
    """The head in the engine, against the engine by logits: 1 and 4 micro-batches."""
    yield "| model | log-prob | entropy | gradient |\n|---|---|---|---|"
    config = actor_config("vanilla", entropy_coeff=0.01)
    for name, options in cases.MODELS.items():
        theirs, mine, td = pair(folder / name.replace(" ", "_"), **options)
        mask = td["response_mask"].bool()
        a, b = scored(theirs, td), scored(mine, td)
        apart = [f"{(a[k] - b[k])[mask].abs().max():.1e}" for k in ("log_probs", "entropy")]
        off = max(distance(step(theirs, td, config, n), step(mine, td, config, n)) for n in (1, 4))
        yield f"| {name} | {apart[0]} | {apart[1]} | {off:.1e} |"


def steps(folder: Path) -> Iterator[str]:
    """An optimizer step's gradient: verl's loss on this head, this library's in one pass."""
    yield "| loss | verl's on this head | in one pass |\n|---|---|---|"
    theirs, mine, td = pair(folder / "model")
    for name, (mode, options) in cases.ENGINE_LOSSES.items():
        config = actor_config(mode, **options)
        a = step(theirs, td, config, 2)
        on_head = distance(a, step(mine, td, config, 2))
        one_pass = "-"
        if mode in ("vanilla", "gspo") and name == mode:
            case = cases.CASES["vanilla, token-mean" if mode == "vanilla" else mode]
            ours.register("case", case.spec)
            aggregation = {"loss_agg_mode": case.spec.aggregation}
            found = step(mine, td, actor_config("logitless/case", **aggregation), 2)
            one_pass = f"{distance(a, found):.1e}"
        yield f"| {name} | {on_head:.1e} | {one_pass} |"


def splits(folder: Path) -> Iterator[str]:
    """The gradient of 4 micro-batches against that of 1."""
    yield "| loss | verl | this library |\n|---|---|---|"
    theirs, mine, td = pair(folder / "split")
    clip = {"clip_cov_ratio": 0.2, "clip_cov_lb": 0.05, "clip_cov_ub": 50.0}
    controls: dict[str, tuple[dict[str, Any], Any]] = {
        "clip_cov": (clip, ll.ClipCov(fraction=0.2, low=0.05, high=50.0)),
        "kl_cov": ({"kl_cov_ratio": 0.1, "ppo_kl_coef": 1.0}, ll.KLCov(0.1, 1.0)),
    }
    for mode, (options, control) in controls.items():
        ours.register("case", replace(ll.presets[f"{mode}_verl"], control=control))
        off = [f"{_split(theirs, td, actor_config(mode, **options)):.1e}"]
        off.append(f"{_split(mine, td, actor_config('logitless/case')):.1e}")
        yield f"| {mode} | {off[0]} | {off[1]} |"


def _split(made: Any, td: Any, config: Any) -> float:
    found = []
    for micro_batches in (1, 4):
        made._steps = 0
        found.append(step(made, td, config, micro_batches))
    return distance(*found)


def pair(folder: Path, **options: Any) -> tuple[Any, Any, Any]:
    save_model(folder, **options)
    theirs, mine = engine(folder, None), engine(folder, "logitless")
    td = data()
    return theirs, mine, off_policy(td, scored(theirs, td)["log_probs"])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for table in (lambda _: losses(), heads, steps, splits):
            # verl prints what it patches.
            with contextlib.redirect_stdout(io.StringIO()):
                lines = list(table(Path(folder)))
            sys.stdout.write("\n".join(lines) + "\n\n")


if __name__ == "__main__":
    main()
