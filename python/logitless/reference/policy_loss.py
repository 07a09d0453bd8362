"""The policy loss of a whole batch, token by token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from logitless.reference.ratio import (
    anchored_entropy,
    batch_bounds,
    flow_back,
    likely_pushes,
    log_ratios,
    members,
    policy_factor,
    shaped_advantages,
)
from logitless.reference.rows import F64, Array
from logitless.reference.selection import (
    clipped_side,
    covariance,
    select,
    sequence_of_token,
)
from logitless.reference.terms import Slopes, entropy_loss, kl_loss, surrogate_loss


def token_weights(
    mask: Array, aggregation: str, cu_seqlens: Array | None = None, max_length: int | None = None
) -> F64:
    """w with which this whole batch's loss is sum(w * loss_t); empty sequences do not count."""
    m = np.asarray(mask, bool).ravel()
    if aggregation in ("token-mean", "token-sum"):
        scale = 1.0 / m.sum() if aggregation == "token-mean" and m.any() else 1.0
        return m * scale
    sequence = sequence_of_token(np.shape(mask), cu_seqlens)
    lengths = np.bincount(sequence[m], minlength=int(sequence.max(initial=0)) + 1)
    sequences = max(int((lengths > 0).sum()), 1)
    if aggregation == "seq-mean-token-sum":
        return m / sequences
    if aggregation == "seq-mean-token-mean":
        return np.where(m, 1.0 / (np.maximum(lengths, 1)[sequence] * sequences), 0.0)
    assert aggregation == "seq-mean-token-sum-norm", aggregation
    norm = np.shape(mask)[1] if max_length is None else max_length
    return m / (sequences * norm)


def policy_loss(
    logp: Array,  # [N] or [B, T]
    old_logp: Array | None,
    advantages: Array,  # the same, or [B], [B, 1]
    mask: Array,
    spec: Any,
    *,
    entropy: Array | None = None,
    entropy_change: Array | None = None,
    ref_logp: Array | None = None,
    rollout_logp: Array | None = None,
    weights: Array | None = None,
    old_entropy: Array | None = None,
    cu_seqlens: Array | None = None,
    token_ids: Array | None = None,
    grad_scale: float = 1.0,
    seed: int = 0,
    step: int = 0,
) -> tuple[float, dict[str, float], F64, F64]:
    """(loss, metrics, g_logp, g_entropy) of a whole optimizer batch given at once. old_logp=None:
    the policy that logp is of, as a constant."""
    shape = np.shape(logp)
    valid = np.asarray(mask, bool).ravel()
    padded = len(shape) == 2 or cu_seqlens is not None
    sequence = sequence_of_token(shape, cu_seqlens) if padded else None

    def flat(x: Array | None) -> Any:
        # what lies outside the mask may be NaN
        if x is None:
            return None
        return np.where(valid, np.asarray(x, np.float64).ravel(), 0.0)

    def of_tokens(x: Array) -> Any:
        wide = np.asarray(x, np.float64)
        return flat(wide if sequence is None or wide.size == valid.size else wide.ravel()[sequence])

    a, lp, old, h = of_tokens(advantages), flat(logp), flat(old_logp), flat(entropy)
    old = lp if old is None else old
    a = shaped_advantages(spec.control, a, lp, h)
    change, ref, rollout = flat(entropy_change), flat(ref_logp), flat(rollout_logp)
    references = {"ref": ref, "old": old, "rollout": rollout, "entropy": flat(old_entropy)}
    ids = np.arange(lp.size) if token_ids is None else np.asarray(token_ids).ravel()

    base = rollout if spec.ratio == "inference" else old
    d = np.zeros(lp.size) if base is None else lp - base
    u = log_ratios(d, valid, spec.ratio, sequence)
    chosen = select(
        lp, a, valid, spec, old_logp=old, entropy=h, entropy_change=change, token_ids=ids,
        seed=seed, step=step, log_ratio=u,
    )  # fmt: skip
    selected = np.isin(ids, chosen) & valid
    factor = policy_factor(spec, a, lp, references, h, valid, sequence)
    factor = factor if weights is None else factor * of_tokens(weights)
    bounds = batch_bounds(spec.surrogate, u, a, valid)
    pushes = likely_pushes(spec, a, lp, d, valid)
    policy = _policy_terms(spec, u, d, a, lp, valid, sequence, bounds)

    w = token_weights(mask, spec.aggregation, cu_seqlens, spec.max_length)
    kind = type(spec.control).__name__
    if kind == "TopEntropy" and getattr(spec.control, "normaliser", "all") == "selected":
        w = w * valid.sum() / max(selected.sum(), 1)
    own_w = {
        name: w if how is None else token_weights(mask, how, cu_seqlens, spec.max_length)
        for name in ("kl", "entropy")
        for how in [getattr(getattr(spec, name), "aggregation", None)]
    }
    g_ratio, g_own, g_entropy = np.zeros(lp.size), np.zeros(lp.size), np.zeros(lp.size)
    selects = kind in ("ClipCov", "KLCov", "TopEntropy", "ClipB", "ClipV")
    names = ["pg_loss", "pg_clipfrac", "pg_clipfrac_lower", "cov_mean"]
    names += ["ppo_kl"] if base is not None else []
    names += ["cov_selected"] if selects else []
    names += ["entropy"] if h is not None else []
    names += ["kl_loss"] if spec.kl is not None else []
    metrics = {f"actor/{name}": 0.0 for name in names}
    anchored = anchored_entropy(spec.entropy, h, valid, sequence)
    loss, tokens = grad_scale * anchored[0], max(int(valid.sum()), 1)
    geometric = type(spec.surrogate).__name__ == "Gmpo"
    clip_ratio = d if geometric else u
    cov, _, _ = covariance(lp, a, valid)
    for t in np.flatnonzero(valid):
        pg = policy[int(t)]
        if (kind in ("ClipCov", "ClipB", "ClipV") and selected[t]) or (
            kind == "TopEntropy" and not selected[t]
        ):
            pg = Slopes(0.0)
        if kind == "KLCov" and selected[t]:
            x = lp[t] - references[getattr(spec.control, "against", "old")][t]
            extra, slope = kl_loss(x, getattr(spec.control, "estimator", "abs"))
            c = spec.control.coefficient
            pg = Slopes(pg.loss + c * extra, pg.ratio, pg.own + c * slope)
        push = pushes.get(int(t), Slopes(0.0))
        pg = Slopes(*(x + more for x, more in zip(pg, push, strict=True)))
        pg = Slopes(*(factor[t] * x if factor[t] else 0.0 for x in pg))
        of_term = 0.0
        if spec.kl is not None:
            x = lp[t] - references[getattr(spec.kl, "against", "ref")][t]
            kl, slope = kl_loss(x, spec.kl.estimator, getattr(spec.kl, "weight", "none"), d[t])
            of_kl = own_w["kl"][t]
            loss += grad_scale * of_kl * spec.kl.coefficient * kl
            of_term = grad_scale * of_kl * spec.kl.coefficient * slope
            metrics["actor/kl_loss"] += of_kl * kl
        if type(spec.entropy).__name__ == "Siren":
            g_entropy[t] = grad_scale * anchored[1][t]
        elif spec.entropy is not None:
            bonus, slope = entropy_loss(spec.entropy, h[t])
            loss += grad_scale * own_w["entropy"][t] * bonus
            g_entropy[t] = grad_scale * own_w["entropy"][t] * slope
        loss += grad_scale * w[t] * pg.loss
        g_ratio[t] = grad_scale * w[t] * pg.ratio
        g_own[t] = grad_scale * w[t] * pg.own + of_term
        metrics["actor/pg_loss"] += w[t] * pg.loss
        clipped, lower = clipped_side(clip_ratio[t], a[t], spec.surrogate, bounds)
        metrics["actor/pg_clipfrac"] += clipped / tokens
        metrics["actor/pg_clipfrac_lower"] += lower / tokens
        if base is not None:
            metrics["actor/ppo_kl"] += -d[t] / tokens
        metrics["actor/cov_mean"] += cov[t] / tokens
        if selects:
            metrics["actor/cov_selected"] += float(selected[t]) / tokens
        if h is not None:
            metrics["actor/entropy"] += h[t] / tokens
    ratio = "sequence" if geometric else spec.ratio
    through = flow_back(g_ratio, np.zeros(lp.size), valid, ratio, sequence)
    if geometric:
        through = np.where(_geometric_clip(d, a, spec.surrogate) == d, through, 0.0) * (a != 0)
    g_logp = g_own + through
    return loss, metrics, g_logp.reshape(shape), g_entropy.reshape(shape)


def _policy_terms(
    spec: Any,
    u: F64,
    d: F64,
    a: F64,
    lp: F64,
    valid: Array,
    sequence: Array | None,
    bounds: tuple[float, float] | None,
) -> dict[int, Slopes]:
    if type(spec.surrogate).__name__ != "Gmpo":
        return {
            int(t): surrogate_loss(spec.surrogate, u[t], a[t], lp[t], bounds)
            for t in np.flatnonzero(valid)
        }
    m = _geometric_clip(d, a, spec.surrogate)
    out: dict[int, Slopes] = {}
    for own in members(valid, sequence):
        loss = -a[own].mean() * math.exp(m[own].mean())
        out |= {int(t): Slopes(loss, loss) for t in own}
    return out


def _geometric_clip(d: F64, a: F64, surrogate: Any) -> F64:
    """sgn(A) min(sgn(A) d, sgn(A) clip(d, -low, high))."""
    sign = np.sign(a)
    return np.asarray(
        sign * np.minimum(sign * d, sign * np.clip(d, -surrogate.low, surrogate.high))
    )
