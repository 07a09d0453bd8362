"""Advantages in plain loops: of one group's rewards, or of the tokens of padded rows [B, T].

A function of a group takes the rewards [K] of the answers that count, and gives as many numbers.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np


def mean(r: Any) -> float:
    return math.fsum(r) / len(r)


def deviations(r: Any) -> list[float]:
    """From the exact mean: a rounded one is off by what eps makes visible."""
    exact = sum(map(Fraction, r), Fraction(0)) / len(r)
    return [float(Fraction(x) - exact) for x in r]


def std(r: Any) -> float:
    """Unbiased; 0 of one number."""
    return math.sqrt(math.fsum(d * d for d in deviations(r)) / max(len(r) - 1, 1))


def grpo(r: Any, eps: float = 1e-6) -> list[float]:
    return [d / (std(r) + eps) for d in deviations(r)]


def dr_grpo(r: Any) -> list[float]:
    return deviations(r)


def rloo(r: Any) -> list[float]:
    if len(r) == 1:
        return [0.0]
    return [x - mean([y for j, y in enumerate(r) if j != i]) for i, x in enumerate(r)]


def opo(r: Any, lengths: Any) -> list[float]:
    total = float(sum(lengths))
    if total == 0:
        return [0.0] * len(r)
    return [x - math.fsum(n * y for n, y in zip(lengths, r, strict=True)) / total for x in r]


def max_rl(r: Any, eps: float = 1e-6) -> list[float]:
    return [d / (mean(r) + eps) for d in deviations(r)]


def qae(r: Any, q: float = 0.4, eps: float = 1e-6) -> list[float]:
    ordered, place = sorted(r), q * (len(r) - 1)
    low = math.floor(place)
    high = min(low + 1, len(r) - 1)
    quantile = ordered[low] + (place - low) * (ordered[high] - ordered[low])
    return [(x - quantile) / (std(r) + eps) for x in r]


def pass_at_k(r: Any, k: int, eps: float = 1e-6) -> list[float]:
    """Over all k-subsets, each with the reward of its best answer: the mean of an answer's subsets
    less the mean of all, in standard deviations of all.
    """
    if len(r) < k:
        return [0.0] * len(r)
    subsets = list(itertools.combinations(range(len(r)), k))
    best = [max(r[i] for i in subset) for subset in subsets]
    all_mean = mean(best)
    all_std = math.sqrt(max(all_mean * (1 - all_mean), 0.0))
    out = []
    for i in range(len(r)):
        own = [b for b, subset in zip(best, subsets, strict=True) if i in subset]
        out.append((mean(own) - all_mean) / (all_std + eps))
    return out


def grpo_passk(r: Any, scale: bool = True, eps: float = 1e-6) -> list[float]:
    """What the best of the group loses without an answer."""
    if len(r) == 1:
        return [0.0]
    out = []
    for i in range(len(r)):
        others = [y for j, y in enumerate(r) if j != i]
        out.append((max(r) - max(others)) / (std(r) + eps if scale else 1.0))
    return out


def gpg(groups: list[Any], f_norm: float = 1.0) -> list[list[float]]:
    answers = sum(len(r) for r in groups)
    informative = sum(len(r) for r in groups if max(r) > min(r))
    return [[answers / max(informative, 1) * x / f_norm for x in dr_grpo(r)] for r in groups]


def whiten(values: Any, weights: Any, eps: float = 1e-8) -> list[float]:
    """As if each value were there `weights` times."""
    flat = [v for v, n in zip(values, weights, strict=True) for _ in range(int(n))]
    if not flat:
        return [0.0] * len(values)
    return [(v - mean(flat)) / math.sqrt(std(flat) ** 2 + eps) for v in values]


def returns(rewards: Any, mask: Any, gamma: float = 1.0) -> Any:
    out = np.zeros(np.shape(rewards))
    for b in range(len(rewards)):
        after = 0.0
        for t in reversed(range(len(rewards[b]))):
            if mask[b][t]:
                out[b, t] = after = rewards[b][t] + gamma * after
    return out


def gae(rewards: Any, values: Any, mask: Any, gamma: float, lam: Any) -> Any:
    out = np.zeros(np.shape(rewards))
    for b in range(len(rewards)):
        after, value = 0.0, 0.0
        for t in reversed(range(len(rewards[b]))):
            if mask[b][t]:
                delta = rewards[b][t] + gamma * value - values[b][t]
                out[b, t] = after = delta + gamma * lam[b] * after
                value = values[b][t]
    return out


def optimal_token_baseline(
    rewards: Any, old_logp: Any, sum_p2: Any, groups: Any, mask: Any, weights: Any, eps: float
) -> Any:
    gained, out = returns(rewards, mask), np.zeros(np.shape(rewards))
    # (group, place) -> (row, token, return, weight)
    there: dict[Any, list[Any]] = {}
    for b in range(len(rewards)):
        place, path = 0, 0.0
        for t in range(len(rewards[b])):
            if mask[b][t]:
                energy = 1 - 2 * math.exp(old_logp[b][t]) + sum_p2[b][t]
                path += weights[b][t] ** 2 * energy
                there.setdefault((groups[b], place), []).append((b, t, gained[b, t], path))
                place += 1
    for found in there.values():
        total = math.fsum(w for *_, w in found) + eps
        baseline = math.fsum(g * w for *_, g, w in found) / total if len(found) > 1 else 0.0
        for b, t, g, _ in found:
            out[b, t] = g - baseline
    return out


def min_form(rewards: Any, steps: Any, temperature: float) -> Any:
    out = np.zeros(np.shape(rewards))
    for b in range(len(rewards)):
        ends = [t for t in range(len(rewards[b])) if steps[b][t]]
        if ends:
            low = min(rewards[b][t] for t in ends)
            share = {t: math.exp((low - rewards[b][t]) / temperature) for t in ends}
            for t in ends:
                out[b, t] = share[t] / math.fsum(share.values()) * rewards[b][t]
    return out


def pure(rewards: Any, steps: Any, groups: Any, mask: Any, temperature: float, length: int) -> Any:
    gained = returns(min_form(rewards, steps, temperature), mask)
    counts = [any(row) for row in mask]
    out = np.zeros(np.shape(rewards))
    for b in range(len(rewards)):
        others = [j for j in range(len(rewards)) if j != b and groups[j] == groups[b] and counts[j]]
        total = math.fsum(x for j in others for x in gained[j])
        baseline = total / (len(others) * length) if others else 0.0
        for t in range(len(rewards[b])):
            if mask[b][t]:
                out[b, t] = gained[b, t] - baseline
    return out
