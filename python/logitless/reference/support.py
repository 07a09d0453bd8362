"""Backward from the largest entries of each row only: which they are, what is lost, the bound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from logitless.reference.rows import logits_chain, softcap_slope, token_stats_backward

Array = npt.NDArray[Any]


def largest(
    y: Array,  # [V], -inf allowed
    keep: int,
    margin: float = math.inf,
) -> Array:
    """Ids of the `keep` largest entries with y > max y - margin, sorted by (y, -id)."""
    y = np.asarray(y, np.float64)
    order = np.lexsort((np.arange(len(y)), -y))
    return order[y[order] > (y.max() - margin if margin < math.inf else -math.inf)][:keep]


def _kept(
    p: Array, log_p: Array, found: Array, room: int, target: int, slack: float
) -> tuple[Array, float | None]:
    """Ids of what is kept of the first `room` found, and log p of the first of these that is let
    go; None: none is."""
    count, first = room, found[:room]
    while count > 1 and p[first[count - 1 :]].sum() <= slack:
        count -= 1
    return np.union1d(first[:count], target), (log_p[first[count]] if count < room else None)


def support_backward(
    logits: Array,  # [N, V]
    targets: Array,  # [N]
    *,
    tail_mass: float,
    keep: int = 512,
    step: int = 64,
    spare: float = 0.01,
    g_logp: float | Array = 0.0,
    g_entropy: float | Array = 0.0,
    g_lse: float | Array = 0.0,
    **chain: Any,
) -> dict[str, Any]:
    """token_stats_backward where a row keeps only its largest entries, if it loses little by that.

    A row has the `keep` largest with z > max z - log(max(V, step / (spare tail_mass))). It keeps
    the first step, 2 step, ... of them, as few as serve it, of which the last are left out while
    they sum to at most spare * tail_mass; the target is always kept. With H the entropy and p of
    the full row: mass = sum of dropped p, entropy = sum of dropped |p (log p + H)|, infinite where
    a dropped p is not known to be at most e^-H. Enough are kept where mass <= tail_mass and entropy
    is finite, else where mass <= tail_mass, else none are: no more steps are taken where these
    would be too few even if all that are to come were as large as the last. The
    row is served (and its gradient 0 at what is dropped) iff mass <= tail_mass and, where g_entropy
    is not 0, every dropped p is known to be at most e^-H, and no kept logit has more of a softcap
    than leaves a slope of 1/64. bound: of ||error of dz||_1 times dz/dy.
    """
    raw, targets = np.asarray(logits, np.float64), np.asarray(targets)
    z = logits_chain(raw, **chain)
    n, vocab = z.shape
    gp, gh, gl = (np.broadcast_to(g, n) for g in (g_logp, g_entropy, g_lse))
    dlogits, _ = token_stats_backward(
        raw, targets, g_logp=g_logp, g_entropy=g_entropy, g_lse=g_lse, **chain
    )
    slope = softcap_slope(raw, **chain)
    margin = math.log(max(vocab, step / (spare * tail_mass)))
    out: dict[str, Any] = {
        "kept": [], "mass": np.zeros(n), "entropy": np.zeros(n), "served": np.zeros(n, bool),
        "bound": np.zeros(n), "dlogits": dlogits,
    }  # fmt: skip
    for i in range(n):
        log_p = z[i] - z[i].max()
        log_p = log_p - np.log(np.exp(log_p).sum())
        p = np.exp(log_p)
        h = -float(np.sum(np.where(p > 0, p * np.where(p > 0, log_p, 0), 0)))
        found = largest(z[i], keep, margin)
        surprise = np.where(p > 0, p * (np.where(p > 0, log_p, 0) + h), 0)
        best = None
        for end in range(step, max(len(found), 1) + step, step):
            room = min(end, len(found))
            kept, limit = _kept(p, log_p, found, room, targets[i], spare * tail_mass)
            if limit is None:
                # what is known of the largest dropped p, without looking at the dropped
                full = room in (end, keep)
                limit = log_p[found[room - 1]] if full else -margin + log_p.max()
            dropped = np.setdiff1d(np.arange(vocab), kept)
            mass = p[dropped].sum()
            entropy = np.abs(surprise[dropped]).sum() if limit + h <= 0 else np.inf
            if best is None or best[2] > tail_mass or entropy < np.inf:
                best = kept, dropped, mass, entropy
            to_come = (keep - room) * p[found[room - 1]] if room else 0.0
            hopeless = best[2] - spare * tail_mass - to_come > tail_mass
            if hopeless or (best[2] <= tail_mass and best[3] < np.inf):
                break
        assert best is not None
        kept, dropped, out["mass"][i], out["entropy"][i] = best
        known = out["entropy"][i] < np.inf
        out["kept"].append(kept)
        steep = (slope[i, kept] >= 1 / 64).all()
        out["served"][i] = out["mass"][i] <= tail_mass and (gh[i] == 0 or known) and steep
        if out["served"][i]:
            dlogits[i, dropped] = 0
        of_entropy = abs(gh[i]) * out["entropy"][i] if gh[i] != 0 else 0.0
        out["bound"][i] = abs(gl[i] - gp[i]) * out["mass"][i] + of_entropy
    return out
