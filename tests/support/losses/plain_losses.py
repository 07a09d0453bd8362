"""Every loss as one writes it in torch: full padded tensors, torch.where, and autograd."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from logitless.loss.spec import PolicyLossSpec

ZERO = torch.zeros((), dtype=torch.float64)
NAMES = ("logp", "old_logp", "ref_logp", "rollout_logp", "entropy", "old_entropy", "advantages")


def plain_loss(t: dict[str, Any], spec: PolicyLossSpec, selected: Any) -> Any:
    """The loss of a padded batch [B, T]; `selected`: the tokens the control acts on."""
    mask = t["mask"]
    x = {name: torch.where(mask, t[name], ZERO) for name in NAMES}
    x["advantages"] = _shaped(x, spec.control)
    loss = _controlled(x, spec, selected, _policy(x, spec, mask), mask)
    if "weights" in t:
        loss = loss * torch.where(mask, t["weights"], ZERO)
    apart = ZERO
    if spec.kl is not None:
        reference = x[f"{spec.kl.against}_logp"]
        kl = plain_kl(x["logp"] - reference, spec.kl.estimator)
        weights: dict[str, Any] = {
            "none": lambda: 1.0,
            "ratio": lambda: (x["logp"] - x["old_logp"]).exp(),
            "score": lambda: (x["logp"] - x["logp"].detach()).exp(),
        }
        term = spec.kl.coefficient * weights[spec.kl.weight]() * kl
        loss, apart = _term(loss, apart, term, spec.kl, spec, mask)
    bonus: Any = spec.entropy
    kind = type(bonus).__name__
    if kind == "EntropyBonus":
        loss, apart = _term(loss, apart, -bonus.coefficient * x["entropy"], bonus, spec, mask)
    if kind == "Siren":
        hidden = torch.where(mask, x["entropy"].detach(), math.nan)
        chosen = hidden > hidden.nanquantile(bonus.quantile, -1, keepdim=True)
        sums = torch.where(chosen, x["entropy"], ZERO).sum(-1) / chosen.sum(-1).clamp(min=1)
        mean = sums[mask.any(-1)].mean()
        anchor = mean.detach() if bonus.anchor is None else bonus.anchor
        apart = apart + bonus.coefficient * (mean - anchor) ** 2
    if kind == "EntropyFloor":
        gap = (bonus.target - x["entropy"]).clamp(min=0)
        value = bonus.strength * gap**2 / (2 * bonus.target)
        loss, apart = _term(loss, apart, value, bonus, spec, mask)
    return _aggregated(torch.where(mask, loss, ZERO), spec, mask, selected) + apart


def _term(loss: Any, apart: Any, value: Any, term: Any, spec: Any, mask: Any) -> tuple[Any, Any]:
    """Added to the token losses, or where it has an aggregation of its own to the sum apart."""
    if term.aggregation is None:
        return loss + value, apart
    own = replace(PolicyLossSpec(), aggregation=term.aggregation, max_length=spec.max_length)
    return loss, apart + _aggregated(torch.where(mask, value, ZERO), own, mask, None)


def either(condition: Any, a: Any, b: Any) -> Any:
    """torch.where makes float32 of two Python numbers."""
    wide = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return torch.where(condition, *wide)


def means(values: Any, mask: Any) -> Any:
    """The mean over each row's valid tokens, [B, 1]."""
    return torch.where(mask, values, ZERO).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(
        min=1
    )


def log_ratio(x: dict[str, Any], spec: PolicyLossSpec, mask: Any) -> Any:
    d = x["logp"] - x["rollout_logp" if spec.ratio == "inference" else "old_logp"]
    if spec.ratio == "sequence":
        return means(d, mask).expand_as(d)
    if spec.ratio == "sequence_sum":
        return torch.where(mask, d, ZERO).sum(-1, keepdim=True).expand_as(d)
    if spec.ratio == "sequence_token":
        return means(d, mask).detach() + x["logp"] - x["logp"].detach()
    return torch.zeros_like(d) if spec.ratio == "none" else d


def _policy(x: dict[str, Any], spec: PolicyLossSpec, mask: Any) -> Any:
    s: Any = spec.surrogate
    a, logp = x["advantages"], x["logp"]
    kind, u = type(s).__name__, log_ratio(x, spec, mask)
    r = u.exp()
    if kind == "NoPolicy":
        return torch.zeros_like(a)
    if kind == "Reinforce":
        return -a * logp
    if kind == "Unclipped":
        return -a * r
    if kind == "Clip":
        loss = torch.max(-a * r, -a * r.clamp(1 - s.low, 1 + s.high))
        if s.dual is not None:
            loss = torch.where(a < 0, torch.min(loss, -a * s.dual), loss)
        return loss
    if kind in ("M2po", "Bapo"):
        low, high = _bounds(s, r.detach(), a, mask)
        loss = torch.max(-a * r, -a * _clipped(r, low, high))
        dual = getattr(s, "dual", None)
        return loss if dual is None else torch.where(a < 0, torch.min(loss, -a * dual), loss)
    if kind == "BoundedClip":
        unit = r / r.detach()
        above, below = (a > 0) & (r > 1 + s.high), (a < 0) & (r < 1 - s.low)
        loss = torch.where(above, -a * s.beta_high * (1 + s.high) * unit, -a * r)
        loss = torch.where(below, -a * s.beta_low * (1 - s.low) * unit, loss)
        if s.dual is not None:
            loss = torch.where(a < 0, torch.min(loss, -a * s.dual), loss)
        return loss
    if kind == "Dcpo":
        p = x["old_logp"].exp()
        low = (1 + (1 - 4 * s.low / p).clamp(min=0).sqrt()) / 2
        high = ((1 + (1 + 4 * s.high / p).sqrt()) / 2).clamp(max=s.most)
        loss = torch.max(-a * r, -a * torch.minimum(torch.maximum(r, low), high))
        return loss if s.dual is None else torch.where(a < 0, torch.min(loss, -a * s.dual), loss)
    if kind == "Aspo":
        up, down = r.clamp(max=1 + s.high), r.clamp(min=1 - s.low)
        positive = -a * (up / up.detach()) / up.detach()
        positive = torch.where(1 / up > s.cap, -a * s.cap * logp, positive)
        return torch.where(a < 0, torch.where(down > s.cap, -a * s.cap * logp, -a * down), positive)
    if kind == "Cispo":
        return -r.clamp(1 - s.low, 1 + s.high).detach() * a * logp
    if kind == "Sapo":
        tau = either(a > 0, s.tau_positive, s.tau_negative)
        return -a * torch.sigmoid(tau * (r - 1)) * 4 / tau
    if kind == "Dro":
        return -(a * logp - 0.5 * s.beta * u**2)
    if kind == "Vespo":
        k = either(a >= 0, s.k_positive, s.k_negative)
        lam = either(a >= 0, s.lambda_positive, s.lambda_negative)
        return -(r**k * (lam * (1 - r)).exp()).detach() * a * logp
    if kind == "Gmpo":
        d = x["logp"] - x["old_logp"]
        m = a.sign() * torch.min(a.sign() * d, a.sign() * d.clamp(-s.low, s.high))
        return (-means(a, mask) * means(m, mask).exp()).expand_as(a)
    assert kind == "TrustMask", kind
    keep = _trusted(s, a, logp.detach().exp(), (logp - u).detach().exp())
    loss = -a * r if s.cap is None else -a * r.clamp(max=s.cap).detach() * logp
    return torch.where(keep, loss, ZERO)


def _clipped(r: Any, low: float, high: float) -> Any:
    """r.clamp(low, high), where a bound that is the ratio of a token itself leaves it its gradient.
    That of torch's clamp is 0 there since torch 2.15, and was 1 before."""
    return torch.where(r > high, high, torch.where(r < low, low, r))


def _bounds(s: Any, r: Any, a: Any, mask: Any) -> tuple[float, float]:
    """By trying every harmful token's size as the cap, or every pair of bounds in turn."""
    if type(s).__name__ == "Bapo":
        for low, high in s.path:
            up = (a * r.clamp(max=high))[mask & (a > 0)].sum()
            if up >= s.target * (-a * r.clamp(min=low))[mask & (a < 0)].sum():
                break
        return low, high
    harm = r.log().abs()[mask & (((a > 0) & (r > 1)) | ((a < 0) & (r < 1)))]
    if not len(harm) or (harm**2).mean() <= s.budget:
        return 0.0, float("inf")
    caps = [x for x in harm if harm.clamp(max=x).square().mean() <= s.budget]
    t = max(caps, default=torch.zeros(()))
    return min(float((-t).exp()), 1 - s.low), max(float(t.exp()), 1 + s.high)


def _shaped(x: dict[str, Any], c: Any) -> Any:
    a, logp, h = x["advantages"], x["logp"].detach(), x["entropy"].detach()
    kind = type(c).__name__
    if kind == "EntropyAdvantage":
        return a + torch.minimum(c.alpha * h, a.abs() / c.kappa)
    if kind == "RepoR":
        positive, negative = a * (1 - c.zeta * logp), a * (1 + c.zeta * logp)
        return torch.where(a > 0, positive.clamp(min=0), negative.clamp(max=0))
    return a - c.beta * (logp + h) if kind == "RepoD" else a


def _trusted(s: Any, a: Any, p: Any, old: Any) -> Any:
    bound = either(a > 0, s.high, s.low)
    if s.divergence == "tv":
        inside = (p - old).abs() <= bound
        return inside if s.two_sided else torch.where(a > 0, p - old <= s.high, p - old >= -s.low)
    kl = old * (old / p).log() + (1 - old) * ((1 - old + 1e-8) / (1 - p + 1e-8)).log()
    retreats = torch.where(a > 0, p <= old, p >= old)
    return (kl <= bound) if s.two_sided else retreats | (kl <= bound)


def plain_kl(x: Any, estimator: str) -> Any:
    values = {
        "k1": lambda: x,
        "k2": lambda: x**2 / 2,
        "k3": lambda: (-x).exp() - 1 + x,
        "abs": lambda: x.abs(),
        "low_var": lambda: _low_var((-x).clamp(-20, 20)),
    }
    value = values[estimator.removesuffix("+")]()
    if not estimator.endswith("+"):
        return value
    return x**2 / 2 - (x**2 / 2).detach() + value.detach()


def _low_var(y: Any) -> Any:
    return (y.exp() - y - 1).clamp(-10, 10)


def _controlled(
    x: dict[str, Any], spec: PolicyLossSpec, selected: Any, loss: Any, mask: Any
) -> Any:
    c: Any = spec.control
    a, kind = x["advantages"], type(c).__name__
    if kind in ("ClipCov", "ClipB", "ClipV"):
        loss = torch.where(selected, ZERO, loss)
    if kind == "TopEntropy":
        loss = torch.where(selected, loss, ZERO)
    if kind == "KLCov":
        extra = plain_kl(x["logp"] - x[f"{c.against}_logp"], c.estimator)
        loss = loss + torch.where(selected, c.coefficient * extra, ZERO)
    if kind == "SignWeights":
        loss = loss * either(a > 0, c.positive, either(a < 0, c.negative, 1.0))
    if kind == "EntropyWeights":
        h = x["entropy"].detach()
        sure = 1 / h.clamp(min=c.floor)
        right = h / h[mask & (a > 0)].mean()
        wrong = sure / sure[mask & (a < 0)].mean()
        loss = loss * (1 - c.strength + c.strength * torch.where(a > 0, right, wrong))
    if kind == "EntropyRatioClip":
        moved = (x["entropy"].detach() + 1e-8) / (x["old_entropy"] + 1e-8)
        loss = torch.where((c.low < moved) & (moved < c.high), loss, ZERO)
    if kind == "Steer":
        p = x["logp"].detach().exp().clamp(1e-8, 1 - 1e-8)
        of_old = a / x["old_logp"].exp().clamp(1e-8, 1)
        change = (of_old * p * (1 - p) * (p.log() + x["entropy"].detach())).abs()
        least, most = change[mask].min(), change[mask].max()
        if c.linear:
            loss = loss * (c.high - (c.high - c.low) * (change - least) / (most - least))
        else:
            loss = loss * c.high * (c.low / c.high) ** (change / most.clamp(min=c.floor))
    if kind == "Entropic":
        likely = mask & (x["logp"].detach() > math.log(c.threshold))
        own = x["logp"] - x["rollout_logp" if spec.ratio == "inference" else "old_logp"]
        seen = x["logp"] if spec.ratio == "none" else own.exp()
        mean = torch.where(likely, a.abs() * seen, ZERO) * mask.sum() / likely.sum()
        loss = loss - c.coefficient * mean
    if kind == "OffPolicyMask":
        far = means(x[f"{c.against}_logp"] - x["logp"].detach(), mask) > c.delta
        loss = torch.where((a < 0) & far, ZERO, loss)
    if spec.correction is not None:
        loss = loss * plain_correction(x["old_logp"] - x["rollout_logp"], spec.correction, mask)
    return loss


def plain_correction(q: Any, c: Any, mask: Any) -> Any:
    def at(level: str, f: Any) -> Any:
        kept = torch.where(mask, f, ZERO)
        levels: dict[str, Any] = {
            "token": lambda: f,
            "sum": lambda: kept.sum(-1, keepdim=True).expand_as(f),
            "mean": lambda: means(f, mask).expand_as(f),
            "max": lambda: kept.max(-1, keepdim=True).values.expand_as(f),
        }
        return levels[level]()

    level = {"token": "token", "sequence": "sum", "geometric": "mean", None: "token"}[c.level]
    w = at(level, q).exp() if c.level else torch.ones_like(q)
    if c.level:
        inside = (w >= c.low) & (w <= c.high)
        w = w.clamp(c.low, c.high) if c.outside == "truncate" else torch.where(inside, w, ZERO)
    if c.normalize:
        w = w / w[mask].mean()
    for rule in c.reject:
        name, kind = rule.measure.removeprefix("seq_").rsplit("_", 1)
        low, high = rule.bounds
        if kind == "k1":
            value = at(name, q).exp()
        else:
            value = at(name, q**2 / 2 if kind == "k2" else q.exp() - 1 - q)
        w = torch.where((value >= low) & (value <= high), w, ZERO)
    if c.veto is not None:
        bad = (torch.where(mask, q.exp(), torch.inf) < c.veto).any(-1, keepdim=True)
        w = torch.where(bad, ZERO, w)
    return w


def _aggregated(loss: Any, spec: PolicyLossSpec, mask: Any, selected: Any) -> Any:
    per_sequence, lengths = loss.sum(-1), mask.sum(-1)
    sequences = (lengths > 0).sum()
    counted = selected if getattr(spec.control, "normaliser", "all") == "selected" else mask
    return {
        "token-mean": lambda: per_sequence.sum() / counted.sum(),
        "token-sum": lambda: per_sequence.sum(),
        "seq-mean-token-sum": lambda: per_sequence.sum() / sequences,
        "seq-mean-token-mean": lambda: (per_sequence / lengths.clamp(min=1)).sum() / sequences,
        "seq-mean-token-sum-norm": lambda: (
            per_sequence.sum() / (sequences * (spec.max_length or mask.shape[1]))
        ),
    }[spec.aggregation]()
