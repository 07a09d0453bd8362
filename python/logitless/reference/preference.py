"""Preference losses in plain loops: of one pair, one answer, or the numbers of an ensemble."""

from __future__ import annotations

import math
from typing import Any


def sequence_logp(logp: Any, average: bool = False, discount: float = 1.0) -> float:
    """Of one sequence's valid tokens."""
    total = math.fsum(discount**i * x for i, x in enumerate(logp))
    return total / max(len(logp), 1) if average else total


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_sigmoid(x: float) -> float:
    """Finite also where the sigmoid or its complement rounds to 0."""
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def score(x: float, divergence: str, alpha: float = 0.5) -> float:
    """The derivative of f at the ratio exp(x), up to a constant."""
    ratio = math.exp(x)
    if divergence == "reverse_kl":
        return math.log(ratio)
    if divergence == "forward_kl":
        return 1 - 1 / ratio
    if divergence == "js_divergence":
        return math.log(2 * ratio / (1 + ratio))
    return x if alpha == 1 else (ratio ** (alpha - 1) - 1) / (alpha - 1)


def pair_loss(
    form: str,
    chosen: float,
    rejected: float,
    ref_chosen: float,
    ref_rejected: float,
    beta: float = 0.1,
    e: float = 0.0,
    divergence: str = "reverse_kl",
    alpha: float = 0.5,
    tau: float = 0.05,
) -> float:
    """The forms of dpo, but for those that sort a batch."""
    c, r = chosen - ref_chosen, rejected - ref_rejected
    m = score(c, divergence, alpha) - score(r, divergence, alpha)
    p, won, lost = sigmoid(beta * m), log_sigmoid(beta * m), log_sigmoid(-beta * m)
    if form == "sigmoid":
        return -(1 - e) * won - e * lost
    if form == "hinge":
        return max(0.0, 1 - beta * m)
    if form == "ipo":
        return (m - 1 / (2 * beta)) ** 2
    if form == "exo_pair":
        return p * (won - math.log(1 - e)) + (1 - p) * (lost - math.log(e))
    if form == "robust":
        return (-(1 - e) * won + e * lost) / (1 - 2 * e)
    if form == "discopop":
        share = sigmoid(beta * m / tau)
        return share * math.exp(-beta * m) - (1 - share) * won
    wins, loses = sigmoid(beta * c), sigmoid(beta * r)
    if form == "nca_pair":
        return -math.log(wins) - 0.5 * math.log(1 - wins) - 0.5 * math.log(1 - loses)
    if form == "bco_pair":
        return -math.log(wins) - math.log(1 - loses)
    if form == "sppo_hard":
        return (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2
    if form == "apo_zero":
        return 1 - wins + loses
    assert form == "apo_down", form
    return wins + 1 - sigmoid(beta * (c - r))


def cpl(chosen: float, rejected: float, y: float, alpha: float, bias: float) -> float:
    a, b = alpha * chosen, alpha * rejected
    return -y * math.log(sigmoid(a - bias * b)) - (1 - y) * math.log(sigmoid(b - bias * a))


def oreo(
    logp: Any, ref_logp: Any, values: Any, reward: float, states: Any, beta: float
) -> tuple[float, float, list[float], list[float]]:
    """Of one answer's valid tokens [n]: the policy's loss, the value's, and their gradients in
    logp and in values."""
    n = len(logp)
    places = [t for t in range(n) if states[t]]
    g_logp, g_values = [0.0] * n, [0.0] * n
    total = 0.0
    for i, t in enumerate(places):
        rest = math.fsum(beta * (logp[u] - ref_logp[u]) for u in range(t, n))
        error = values[t] + rest - reward
        total += error * error / len(places)
        g_values[t] = 2 * error / len(places)
        for u in range(t, places[i + 1] if i + 1 < len(places) else n):
            g_logp[u] = 2 * error * beta / len(places)
    return total, total, g_logp, g_values


def implicit_rewards(
    logp: Any, ref_logp: Any, steps: Any, beta: float, cumulative: bool
) -> list[float]:
    """Of one answer's valid tokens [n]; 0 where no step ends."""
    out, start = [0.0] * len(logp), 0
    for t in range(len(logp)):
        if steps[t]:
            first = 0 if cumulative else start
            out[t] = beta * math.fsum(logp[u] - ref_logp[u] for u in range(first, t + 1))
            start = t + 1
    return out


def outcome(logp: float, ref_logp: float, label: float, beta: float) -> float:
    p = sigmoid(beta * (logp - ref_logp))
    return -label * math.log(p) - (1 - label) * math.log(1 - p)


def spo(scores: Any, degree: int) -> float:
    return math.log(math.fsum(math.exp(x) for x in scores)) - float(scores[degree])


def uncertainty_weighted(rewards: Any, coefficient: float) -> float:
    mean = math.fsum(rewards) / len(rewards)
    return mean - coefficient * math.fsum((x - mean) ** 2 for x in rewards) / len(rewards)
