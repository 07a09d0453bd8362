"""Ratios and weights over sequences: loops over the tokens of each, one after the other."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from logitless.reference.rows import F64, Array
from logitless.reference.selection import exact_mean
from logitless.reference.terms import Slopes


def members(valid: Array, sequence: Array | None) -> list[Array]:
    """The valid tokens of each sequence, empty ones left out; without sequences one token each."""
    tokens = np.flatnonzero(valid)
    if sequence is None:
        return [tokens[i : i + 1] for i in range(len(tokens))]
    return [own for s in np.unique(sequence) if len(own := tokens[sequence[tokens] == s])]


def log_ratios(d: F64, valid: Array, ratio: str, sequence: Array | None) -> F64:
    """The log ratio that the surrogate of each token sees."""
    u = np.where(valid, d, 0.0) if ratio != "none" else np.zeros(d.size)
    if not ratio.startswith("sequence"):
        return u
    out = np.zeros(d.size)
    for own in members(valid, sequence):
        out[own] = u[own].sum() if ratio == "sequence_sum" else u[own].mean()
    return out


def flow_back(g_ratio: F64, g_own: F64, valid: Array, ratio: str, sequence: Array | None) -> F64:
    """Gradients in the log ratios, as gradients in logp, added to those in logp itself."""
    if ratio not in ("sequence", "sequence_sum"):
        return np.asarray(g_own + g_ratio)
    out: F64 = g_own.copy()
    for own in members(valid, sequence):
        out[own] += g_ratio[own].sum() / (len(own) if ratio == "sequence" else 1)
    return out


def rollout_weights(
    old: F64, rollout: F64, valid: Array, correction: Any, sequence: Array | None
) -> tuple[F64, Array]:
    """(w, kept) of each token; 1 and True outside the mask."""
    q = np.where(valid, old - rollout, 0.0)
    weights, kept = np.ones(q.size), np.ones(q.size, bool)
    for own in members(valid, sequence):
        for t in own:
            levels = {"token": q[t], "sequence": q[own].sum(), "geometric": q[own].mean()}
            if correction.level is not None:
                w = math.exp(levels[correction.level])
                inside = correction.low <= w <= correction.high
                cut = min(max(w, correction.low), correction.high)
                weights[t] = cut if correction.outside == "truncate" else w * inside
            kept[t] = all(_accepted(q[own], q[t], rule) for rule in correction.reject)
            if correction.veto is not None:
                kept[t] &= bool((np.exp(q[own]) >= correction.veto).all())
    return weights, kept


def _accepted(q: F64, own: float, rule: Any) -> bool:
    level, _, kind = rule.measure.rpartition("_")
    low, high = rule.bounds
    if kind == "k1":
        u = {"token": own, "seq_sum": q.sum(), "seq_mean": q.mean()}[level]
        return bool(low <= math.exp(u) <= high)
    f = [float(x * x / 2 if kind == "k2" else np.exp(x) - 1 - x) for x in (own, *q)]
    values = {"token": f[0], "seq_sum": sum(f[1:]), "seq_mean": sum(f[1:]) / len(q)}
    return bool((max(f[1:]) if level == "seq_max" else values[level]) <= high)


def batch_bounds(surrogate: Any, u: F64, a: F64, valid: Array) -> tuple[float, float] | None:
    """The lowest and the highest ratio of a clip that the batch chooses; else None."""
    kind = type(surrogate).__name__
    if kind == "M2po":
        harmful = valid & (((a > 0) & (u > 0)) | ((a < 0) & (u < 0)))
        sizes = sorted(abs(u[harmful]).tolist())
        squares = [Fraction(x * x) for x in sizes]
        budget = Fraction(surrogate.budget) * len(squares)
        if sum(squares) <= budget:
            return 0.0, math.inf
        # sums of min(square, x) for each square x in turn
        below, t = Fraction(0), 0.0
        for i, x in enumerate(squares):
            if below + x * (len(squares) - i) <= budget:
                t = sizes[i]
            below += x
        return min(math.exp(-t), 1.0 - surrogate.low), max(math.exp(t), 1.0 + surrogate.high)
    if kind != "Bapo":
        return None
    r = np.exp(np.clip(u, -20.0, 20.0))
    up, down = valid & (a > 0), valid & (a < 0)
    low, high = surrogate.low_start, surrogate.high_start
    while exact_mean(np.where(up, a * np.minimum(r, high), 0.0)) < surrogate.target * exact_mean(
        np.where(down, -a * np.maximum(r, low), 0.0)
    ):
        if low < surrogate.low_end:
            low = min(low + surrogate.low_step, surrogate.low_end)
        elif high < surrogate.high_end:
            high = min(high + surrogate.high_step, surrogate.high_end)
        else:
            break
    return low, high


def shaped_advantages(control: Any, a: F64, lp: F64, h: Any) -> F64:
    """The advantage of each token as the control changes it."""
    out: F64 = a.copy()
    kind = type(control).__name__
    for t in range(a.size):
        if kind == "EntropyAdvantage":
            out[t] = a[t] + min(control.alpha * h[t], abs(a[t]) / control.kappa)
        if kind == "RepoR" and a[t] > 0:
            out[t] = max(0.0, a[t] * (1 - control.zeta * lp[t]))
        if kind == "RepoR" and a[t] < 0:
            out[t] = min(0.0, a[t] * (1 + control.zeta * lp[t]))
        if kind == "RepoD":
            out[t] = a[t] - control.beta * (lp[t] + h[t])
    return out


def steered(control: Any, a: F64, lp: F64, old: F64, h: F64) -> F64:
    """The weights that STEER gives to the tokens of a batch, one after the other."""
    changes = []
    for at, now, before, entropy in zip(a, lp, old, h, strict=True):
        p = min(max(math.exp(now), 1e-8), 1 - 1e-8)
        old_p = min(max(math.exp(before), 1e-8), 1.0)
        changes.append(abs(at / old_p * p * (1 - p) * (math.log(p) + entropy)))
    low, high = control.low, control.high
    least, most = min(changes, default=0.0), max(changes, default=0.0)
    if not control.linear:
        k = -math.log(low / high) / max(most, control.floor)
        return np.array([high * math.exp(-k * x) for x in changes])
    if most == least:
        return np.full(len(changes), (low + high) / 2)
    return np.array([high - (x - least) * (high - low) / (most - least) for x in changes])


def anchored_entropy(term: Any, h: Any, valid: Array, sequence: Array | None) -> tuple[float, F64]:
    """SIREN's square for a whole batch, and its slope in each token's entropy; 0 of other terms."""
    slopes = np.zeros(valid.size)
    if type(term).__name__ != "Siren":
        return 0.0, slopes
    every, means = members(valid, sequence), []
    for own in every:
        bound = sorted(h[own])[math.floor(term.quantile * (len(own) - 1))]
        chosen = own[h[own] > bound]
        means.append(h[chosen].mean() if len(chosen) else 0.0)
        slopes[chosen] = 1.0 / max(len(chosen) * len(every), 1)
    if not every:
        return 0.0, slopes
    mean = sum(means) / len(every)
    away = 0.0 if term.anchor is None else mean - term.anchor
    return term.coefficient * away * away, 2.0 * term.coefficient * away * slopes


def likely_pushes(spec: Any, a: F64, lp: F64, d: F64, valid: Array) -> dict[int, Slopes]:
    """What EntroPIC adds to the policy term of each likely token of a token mean."""
    if type(spec.control).__name__ != "Entropic":
        return {}
    likely = [int(t) for t in np.flatnonzero(valid) if math.exp(lp[t]) > spec.control.threshold]
    out = {}
    for t in likely:
        each = -spec.control.coefficient * abs(a[t]) * valid.sum() / len(likely)
        if spec.ratio == "none":
            out[t] = Slopes(each * lp[t], 0.0, each)
        else:
            out[t] = Slopes(each * math.exp(d[t]), 0.0, each * math.exp(d[t]))
    return out


def policy_factor(
    spec: Any, a: F64, lp: F64, references: dict[str, Any], h: Any, valid: Array, sequence: Any
) -> F64:
    """What multiplies each token's policy term besides its selection."""
    factor, kind = np.ones(lp.size), type(spec.control).__name__
    if kind == "SignWeights":
        factor[a > 0], factor[a < 0] = spec.control.positive, spec.control.negative
    if kind == "EntropyWeights":
        strength, floor = spec.control.strength, spec.control.floor
        right, wrong = valid & (a > 0), valid & (a < 0)
        for side, credit in ((right, h), (wrong, 1 / np.maximum(h, floor))):
            mean = exact_mean(credit[side])
            if mean > 0:
                factor[side] = 1 - strength + strength * credit[side] / mean
    if kind == "EntropyRatioClip":
        for t in np.flatnonzero(valid):
            moved = (h[t] + 1e-8) / (references["entropy"][t] + 1e-8)
            factor[t] = float(spec.control.low < moved < spec.control.high)
    if kind == "Steer":
        factor[valid] = steered(spec.control, a[valid], lp[valid], references["old"][valid],
                                h[valid])  # fmt: skip
    if kind == "OffPolicyMask":
        away = np.where(valid, references[spec.control.against] - lp, 0.0)
        for own in members(valid, sequence):
            if away[own].mean() > spec.control.delta:
                factor[own[a[own] < 0]] = 0.0
    if spec.correction is not None:
        weights, kept = rollout_weights(
            references["old"], references["rollout"], valid, spec.correction, sequence
        )
        mean = exact_mean(weights[valid]) if spec.correction.normalize else 1.0
        factor = factor * weights * kept / (mean or 1.0)
    return factor
