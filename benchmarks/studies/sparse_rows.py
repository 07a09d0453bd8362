"""What serving rows from their largest entries would share, lose and cost: from full logits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import logitless as ll

KEPT = 64
TAIL_MASSES = (1e-2, 1e-3)
BONUS = 0.01
# Rows whose full logits are held at once.
CHUNK = 128
REPEATS = 5


def row_facts(z: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Of rows of full logits: kept entries, dropped mass, and whether all dropped terms of the
    entropy's gradient have one sign: log p + H <= 0 for the largest p that may be dropped."""
    log_p = z.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    top = log_p.topk(KEPT)
    kept = torch.zeros_like(z, dtype=torch.bool).scatter_(1, top.indices, True)
    kept.scatter_(1, targets[:, None], True)
    dropped = log_p.exp().masked_fill(kept, 0.0).double().sum(-1)
    return {
        "log_p": log_p,
        "entropy": entropy,
        "kept": kept,
        "dropped": dropped,
        "one_sign": top.values[:, -1] + entropy <= 0,
    }


def d_logits(log_p: Tensor, targets: Tensor, g_logp: Tensor, g_entropy: float) -> Tensor:
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1, keepdim=True)
    dz = -p * (g_logp[:, None] + g_entropy * (log_p + entropy))
    return dz.scatter_add_(1, targets[:, None], g_logp[:, None])


class Errors:
    """Relative errors, Frobenius, of d_hidden and d_weight made from other d(logits)."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.d_weight = {name: torch.zeros_like(weight) for name in ("true", "error")}
        self.d_hidden = {"true": 0.0, "error": 0.0}

    def add(self, dz: Tensor, other: Tensor, hidden: Tensor) -> None:
        for name, part in (("true", dz), ("error", other - dz)):
            self.d_weight[name].addmm_(part.t(), hidden)
            self.d_hidden[name] += float((part @ self.weight).square().sum())

    def relative(self) -> dict[str, float]:
        norms = {name: float(total.norm()) for name, total in self.d_weight.items()}
        return {
            "d_hidden": (self.d_hidden["error"] / self.d_hidden["true"]) ** 0.5,
            "d_weight": norms["error"] / norms["true"],
        }


def study(
    hidden: Tensor,  # [N, H] float32
    weight: Tensor,  # [V, H] float32
    targets: Tensor,  # [N]
    temperature: float = 1.0,
    with_errors: bool = True,
) -> dict[str, Any]:
    """Share of rows served sparsely, realised errors (upstream: N(0, 1) at logp; with entropy:
    BONUS at entropy too), and the error of plain logits rounded to bfloat16."""
    g = torch.randn(len(targets), generator=torch.Generator().manual_seed(0))
    names = [f"{mass:g}{kind}" for mass in TAIL_MASSES for kind in ("", " with entropy")]
    judged = [*(n for n in names if n.endswith("entropy")), "bfloat16 logits"]
    errors = {name: Errors(weight) for name in judged if with_errors}
    served = dict.fromkeys(names, 0)
    entropies, dropped = [], []
    for start in range(0, len(targets), CHUNK):
        rows = slice(start, start + CHUNK)
        h, a = hidden[rows], targets[rows]
        z = h @ weight.t() / temperature
        facts = row_facts(z, a)
        entropies.append(facts["entropy"])
        dropped.append(facts["dropped"])
        for name in names:
            bonus = BONUS if name.endswith("entropy") else 0.0
            sparse = facts["dropped"] <= float(name.split()[0])
            if bonus:
                sparse &= facts["one_sign"]
            served[name] += int(sparse.sum())
            if name not in errors:
                continue
            dz = d_logits(facts["log_p"], a, g[rows], bonus)
            cut = dz.masked_fill(sparse[:, None] & ~facts["kept"], 0.0)
            errors[name].add(dz, cut, h)
        if not with_errors:
            continue
        rounded = d_logits(z.bfloat16().float().log_softmax(-1), a, g[rows], 0.0)
        errors["bfloat16 logits"].add(d_logits(facts["log_p"], a, g[rows], 0.0), rounded, h)
    mass = torch.cat(dropped)
    return {
        "rows": len(targets),
        "temperature": temperature,
        "entropy": float(torch.cat(entropies).mean()),
        "dropped_mass": {q: float(mass.quantile(q)) for q in (0.1, 0.5, 0.9)},
        "served": {name: count / len(targets) for name, count in served.items()},
        "errors": {name: found.relative() for name, found in errors.items()},
    }


def is_built(call: Callable[[], None]) -> bool:
    """Runs it once, which also warms it up."""
    try:
        call()
    except NotImplementedError:
        return False
    return True


def times(hidden: Tensor, weight: Tensor, targets: Tensor, **head: Any) -> dict[str, float]:
    """Seconds of forward and backward of logp and entropy, interleaved medians: exact (key "0"), by
    tail_mass. Where that is not built, only the exact one."""
    g = torch.randn(len(targets), generator=torch.Generator().manual_seed(0))

    def run(mass: float) -> Callable[[], None]:
        def call() -> None:
            h, w = (t.detach().requires_grad_() for t in (hidden, weight))
            out = ll.linear_token_stats(h, w, targets, tail_mass=mass, **head)
            torch.autograd.grad([(out.logp * g).sum() + BONUS * out.entropy.sum()], [h, w])

        return call

    calls = {f"{mass:g}": run(mass) for mass in (0.0, *TAIL_MASSES)}
    calls = {name: call for name, call in calls.items() if is_built(call)}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - began)
    return {name: statistics.median(runs) for name, runs in found.items()}
