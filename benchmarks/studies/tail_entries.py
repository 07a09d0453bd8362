"""How many entries a trained model's rows need, and what keeping them costs and saves.

python -m benchmarks.studies.tail_entries [--tokens 96] [--rounds 7] [--float32] [--peaked]
    [--budget 64MiB] [--json PATH]

Hidden states of tokens that a chat model sampled, in bfloat16; without products of bfloat16 in the
processor it takes hours, and --float32 a minute. Log-prob and entropy both have a
gradient. Times are over three bare products, which write logits into memory that is there:
2 N H V operations each. It needs what benchmarks.studies.real_states needs, and times the
heads of other libraries beside where ./dev bench --install-peers has put them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from benchmarks.cases.contenders.peers import PEERS, libraries
from benchmarks.cases.contenders.plain import plain_head
from benchmarks.cases.peaked_head import peaked_head
from benchmarks.harness.case import Case, Results
from benchmarks.harness.machine_info import installed, machine
from benchmarks.studies.real_states import TEMPERATURES, States, sampled

TAILS = (1e-2, 1e-3)
ENTRIES = (64, 128, 256, 512)
Row = dict[str, Any]
# (tail_mass, tail_entries) of ours, or the name of a peer
Key = tuple[float, int] | str
Head = Callable[[Tensor, Tensor, Tensor], Results]


def step(x: States, **options: Any) -> tuple[ll.TokenStats, Tensor, Tensor]:
    """Forward and backward, with gradients of hidden and weight."""
    hidden, weight = (t.detach().requires_grad_() for t in (x.hidden, x.weight))
    stats = ll.linear_token_stats(hidden, weight, x.targets, temperature=x.temperature, **options)
    (stats.logp + 0.01 * stats.entropy).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return stats, hidden.grad, weight.grad


@torch.no_grad()
def bare(x: States) -> Callable[[], None]:
    logits = x.hidden @ x.weight.T
    d_hidden, d_weight = torch.empty_like(x.hidden), torch.empty_like(x.weight)

    @torch.no_grad()
    def products() -> None:
        torch.mm(x.hidden, x.weight.T, out=logits)
        torch.mm(logits, x.weight, out=d_hidden)
        torch.mm(logits.T, x.hidden, out=d_weight)

    return products


def settings() -> list[tuple[float, int]]:
    return [(0.0, 64), *((tail, entries) for tail in TAILS for entries in ENTRIES)]


def peer_step(head: Head, x: States) -> None:
    """The same step with a head of others, whose states have the temperature in them."""
    hidden, weight = (t.detach().requires_grad_() for t in (x.hidden, x.weight))
    found = head(hidden / x.temperature, weight, x.targets)
    (found["logp"] + 0.01 * found["entropy"]).sum().backward()


def peers() -> dict[str, Head]:
    """Plain torch and the libraries that are installed whose heads give log-prob and entropy."""
    found: dict[str, Head] = {"plain torch": plain_head}
    for peer in PEERS:
        if "head" in peer.functions and "entropy" in peer.outputs and installed(peer.package):
            found[peer.name] = peer.functions["head"]()
    return found


def contenders(x: States, budget: str | None) -> dict[Key, Callable[[], Any]]:
    ours: dict[Key, Callable[[], Any]] = {
        (tail, entries): partial(
            step, x, tail_mass=tail, tail_entries=entries, memory_budget=budget
        )
        for tail, entries in settings()
    }
    return {**ours, **{name: partial(peer_step, head, x) for name, head in peers().items()}}


def quotients(x: States, rounds: int, budget: str | None) -> dict[Key, list[float]]:
    """Seconds over those of the bare products of the same round, one after the other."""
    calls, products = contenders(x, budget), bare(x)
    found: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(rounds + 1):
        floor = seconds(products)
        for key, call in calls.items():
            found[key].append(seconds(call) / floor)
    # the first round warms up
    return {key: values[1:] for key, values in found.items()}


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def facts(x: States, tail: float, entries: int, exact: tuple[Tensor, Tensor]) -> Row:
    """Shares of the rows, and errors relative to the exact gradients (Frobenius)."""
    extras = ("dropped_mass", "dropped_entropy")
    stats, *gradients = step(x, tail_mass=tail, tail_entries=entries, extras=extras)
    mass, entropy = (stats.extras[name] for name in extras)
    served = (mass <= tail) & entropy.isfinite()
    errors = [
        float((a - b).float().norm() / b.float().norm())
        for a, b in zip(gradients, exact, strict=True)
    ]
    return {"served": float(served.float().mean()), "errors": errors}


def study(x: States, rounds: int, budget: str | None = None) -> list[Row]:
    _, *exact = step(x)
    rows = []
    for key, values in quotients(x, rounds, budget).items():
        found: Row = {"temperature": x.temperature}
        if isinstance(key, str):
            found |= {"peer": key}
        else:
            found |= {"tail_mass": key[0], "entries": key[1], "served": 0.0, "errors": [0.0, 0.0]}
            if key[0]:
                found |= facts(x, *key, (exact[0], exact[1]))
        spread = [min(values), max(values)]
        rows.append({**found, "over_bare": statistics.median(values), "spread": spread})
    return rows


def peaked() -> States:
    x = peaked_head(Case(rows=512, width=512))
    return States(x.hidden, x.weight, x.targets, temperature=1.0)


def table(rows: list[Row]) -> str:
    lines = [
        "| T | tail_mass | tail_entries | rows served | error of d_hidden, d_weight | time |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (row["temperature"], *cells_of(row), f"{row['over_bare']:.2f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def cells_of(row: Row) -> tuple[str, ...]:
    if "peer" in row:
        return row["peer"], "", "", ""
    errors = ", ".join(f"{x:.0e}" for x in row["errors"])
    entries = str(row["entries"]) if row["tail_mass"] else "-"
    return f"{row['tail_mass']:g}", entries, f"{row['served']:.0%}", errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=96, help="sampled for each prompt, at most")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--float32", action="store_true", help="states as the model has them")
    parser.add_argument("--peaked", action="store_true", help="a peaked head of 151,936 instead")
    parser.add_argument("--budget", help="memory_budget of ours, as 64MiB; else the default")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = []
    for x in [peaked()] if chosen.peaked else (sampled(t, chosen.tokens) for t in TEMPERATURES):
        rows += study(x if chosen.float32 else x.rounded(), chosen.rounds, chosen.budget)
    sys.stdout.write(table(rows) + "\n")
    if chosen.json:
        found = {
            "machine": machine("cpu", libraries()),
            "tokens": chosen.tokens,
            "rounds": chosen.rounds,
            "budget": chosen.budget,
        }
        chosen.json.write_text(json.dumps({**found, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
