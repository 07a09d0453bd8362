"""The terms of one token: surrogates, KL estimators, entropy terms, and what they are functions of.

Specs are read by attribute and by the name of their type, so that the oracle shares no code with
the losses it judges.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Slopes(NamedTuple):
    """A loss and its slopes: through the ratio's logarithm, and in the token's own logp."""

    loss: float
    ratio: float = 0.0
    own: float = 0.0


def surrogate_loss(
    surrogate: Any, u: float, a: float, logp: float, bounds: tuple[float, float] | None = None
) -> Slopes:
    """The policy term of a token whose surrogate sees r = exp(u); bounds: those of a batch."""
    kind = type(surrogate).__name__
    if kind == "Dro":
        return Slopes(-(a * logp - surrogate.beta / 2 * u * u), surrogate.beta * u, -a)
    if a == 0.0 or kind == "NoPolicy":
        return Slopes(0.0)
    if kind == "Reinforce":
        return Slopes(-a * logp, 0.0, -a)
    r = math.exp(u)
    if kind == "Unclipped":
        return Slopes(-a * r, -a * r)
    if kind in ("Clip", "M2po", "Bapo"):
        low, high = (1.0 - surrogate.low, 1.0 + surrogate.high) if bounds is None else bounds
        clipped = min(max(r, low), high)
        out = Slopes(-a * r, -a * r) if -a * r >= -a * clipped else Slopes(-a * clipped)
        dual = getattr(surrogate, "dual", None)
        if dual is not None and a < 0 and out.loss > -a * dual:
            out = Slopes(-a * dual)
        return out
    if kind == "BoundedClip":
        if a > 0 and r > 1.0 + surrogate.high:
            kept = a * surrogate.beta_high * (1.0 + surrogate.high)
        elif a < 0 and r < 1.0 - surrogate.low:
            kept = a * surrogate.beta_low * (1.0 - surrogate.low)
        else:
            kept = a * r
        # the bound of the loss is a constant
        over = surrogate.dual is not None and a < 0 and -kept > -a * surrogate.dual
        return Slopes(-a * surrogate.dual) if over else Slopes(-kept, -kept)
    if kind == "Dcpo":
        p = math.exp(logp - u)
        low = (1.0 + math.sqrt(max(0.0, 1.0 - 4.0 * surrogate.low / p))) / 2.0
        high = min((1.0 + math.sqrt(1.0 + 4.0 * surrogate.high / p)) / 2.0, surrogate.most)
        clipped = min(max(r, low), high)
        out = Slopes(-a * r, -a * r) if -a * r >= -a * clipped else Slopes(-a * clipped)
        if surrogate.dual is not None and a < 0 and out.loss > -a * surrogate.dual:
            out = Slopes(-a * surrogate.dual)
        return out
    if kind == "Aspo":
        c = min(r, 1.0 + surrogate.high) if a > 0 else max(r, 1.0 - surrogate.low)
        weight = 1.0 / c if a > 0 else c
        if weight > surrogate.cap:
            return Slopes(-a * surrogate.cap * logp, 0.0, -a * surrogate.cap)
        return Slopes(-a * weight, -a * weight if c == r else 0.0)
    if kind == "Cispo":
        weight = min(max(r, 1.0 - surrogate.low), 1.0 + surrogate.high)
        return Slopes(-a * weight * logp, 0.0, -a * weight)
    if kind == "Sapo":
        tau = surrogate.tau_positive if a > 0 else surrogate.tau_negative
        q = 1.0 / (1.0 + math.exp(-tau * (r - 1.0))) if tau * (r - 1.0) > -700 else 0.0
        away = 1.0 / (1.0 + math.exp(tau * (r - 1.0))) if tau * (r - 1.0) < 700 else 0.0
        return Slopes(-a * q * 4.0 / tau, -a * 4.0 * q * away * r)
    if kind == "Vespo":
        k, lam = (
            (surrogate.k_positive, surrogate.lambda_positive)
            if a >= 0
            else (surrogate.k_negative, surrogate.lambda_negative)
        )
        weight = math.exp(lam + k * u - lam * r)
        return Slopes(-a * weight * logp, 0.0, -a * weight)
    assert kind == "TrustMask", kind
    if not _trusted(surrogate, a, math.exp(logp), math.exp(logp - u)):
        return Slopes(0.0)
    if surrogate.cap is None:
        return Slopes(-a * r, -a * r)
    return Slopes(-a * min(r, surrogate.cap) * logp, 0.0, -a * min(r, surrogate.cap))


def _trusted(surrogate: Any, a: float, p: float, old: float) -> bool:
    if surrogate.divergence == "tv":
        above, below = p - old > surrogate.high, p - old < -surrogate.low
        return not (above or below) if surrogate.two_sided else not (above if a > 0 else below)
    kl = old * math.log(old / p) + (1 - old) * math.log((1 - old + 1e-8) / (1 - p + 1e-8))
    retreats = (p <= old if a > 0 else p >= old) and not surrogate.two_sided
    return retreats or kl <= (surrogate.high if a > 0 else surrogate.low)


def kl_loss(x: float, estimator: str, weight: str = "none", d: float = 0.0) -> tuple[float, float]:
    """(one-sample estimate of KL(policy || reference), its slope in logp); x = logp - ref_logp."""
    name = estimator.removesuffix("+")
    if name == "k1":
        value, slope = x, 1.0
    elif name == "k2":
        value, slope = 0.5 * x * x, x
    elif name == "abs":
        value, slope = abs(x), float(x > 0) - float(x < 0)
    elif name == "k3":
        # expm1(-x) = exp(-x) - 1 keeps its digits where x is small
        value, slope = math.expm1(-x) + x, -math.expm1(-x)
    else:
        assert name == "low_var", name
        y = min(max(-x, -20.0), 20.0)
        value, slope = math.expm1(y) - y, -math.expm1(y) if abs(x) <= 20 else 0.0
        if value > 10.0:
            value, slope = 10.0, 0.0
    if estimator.endswith("+"):
        slope = x
    if weight == "ratio":
        return math.exp(d) * value, math.exp(d) * (slope + value)
    return value, slope + value if weight == "score" else slope


def entropy_loss(entropy: Any, h: float) -> tuple[float, float]:
    """(loss, slope in the entropy) of an entropy term."""
    if type(entropy).__name__ == "EntropyBonus":
        return -entropy.coefficient * h, -entropy.coefficient
    gap = max(entropy.target - h, 0.0)
    return entropy.strength * gap * gap / (2 * entropy.target), -(
        entropy.strength * gap / entropy.target
    )
