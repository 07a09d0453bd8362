"""The checks that every figure of contact.py passes first: float64 on the device itself.

A head's values and d_hidden are checked on a few rows, its d_weight on a few columns but over all
rows. 16-bit logits round: there the error of plain code on the same rows is the measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

# Rows, and columns of the weight, that are checked.
CHECKED, COLUMNS = 8, 32
# Rows at a time, where all of them are needed in float64.
CHUNK = 256
# Of values in nats, where the logits are given: a few roundings of float32 sums.
NATS = 5e-5
# Of a head's d_weight, as a share of its largest entry: each entry is a sum over all rows of what
# rounded logits give.
SUMMED = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 1e-2}
Truth = dict[str, Tensor]
# GPUs that compute in float64 at half of float32's rate.
DOUBLE = ((8, 0), (9, 0), (10, 0))


def few_rows(n: int, count: int) -> Tensor:
    """First, last and some between; each a multiple of 5, which active rows are."""
    rows: Tensor = torch.linspace(0, n - 1, min(n, count)).long() // 5 * 5
    found: Tensor = torch.unique(rows, sorted=True)
    return found


def wide_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu" or torch.cuda.get_device_capability(device) in DOUBLE:
        return torch.float64
    return torch.float32


def row_truth(
    z: Tensor, targets: Tensor, g_logp: Tensor, g_entropy: Tensor | None
) -> Truth:  # z: [rows, V]
    """logp, entropy and d(logits) of the formula itself."""
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    entropy = -torch.special.xlogy(p, p).sum(-1)
    logp = log_p.gather(-1, targets[:, None])[:, 0]
    dz = -p * g_logp.to(z.dtype)[:, None]
    dz.scatter_add_(1, targets[:, None], g_logp.to(z.dtype)[:, None])
    if g_entropy is not None:
        dz -= g_entropy.to(z.dtype)[:, None] * p * (log_p.clamp_min(-1e30) + entropy[:, None])
    return {"logp": logp, "entropy": entropy, "dlogits": dz}


def allowed(name: str, truth: Tensor, dtype: torch.dtype) -> Tensor:
    largest = truth.abs().max()
    if name in ("logp", "entropy", "lse"):
        return NATS * largest.clamp_min(1.0)
    return 2 * torch.finfo(dtype).eps * truth.abs() + 2e-5 * largest + 1e-7


def worst(found: Mapping[str, Tensor], truth: Truth, dtype: torch.dtype) -> float:
    """The largest error as a share of what is allowed; above 1 it raises, and for a NaN."""
    share = 0.0
    for name, value in found.items():
        error = (value.detach().to(truth[name].dtype) - truth[name]).abs()
        mine = float((error / allowed(name, truth[name], dtype)).max())
        if not mine <= 1.0:
            raise AssertionError(
                f"{name} is off by {float(error.max()):.2e}, {mine:.1f} of allowed"
            )
        share = max(share, mine)
    return share


# ---- given logits


def check_rows(
    device: str, backend: str, n: int, v: int, dtype: torch.dtype, kind: str, seed: int
) -> float:
    """One call of token_stats, forward and backward, all rows against float64."""
    import logitless as ll

    g = torch.Generator(device).manual_seed(seed)
    memory = torch.randn(n, v + 3 * (kind == "odd"), generator=g, device=device).mul_(3).to(dtype)
    z = memory[:, kind == "odd" :][:, :v]
    t = torch.randint(v, (n,), generator=g, device=device)
    up = torch.randn(3, n, generator=g, device=device)
    options: dict[str, Any] = {}
    if kind in ("masked", "chain"):
        options["temperature"] = torch.rand(n, generator=g, device=device) + 0.5
    if kind == "masked":
        options["mask"] = torch.arange(n, device=device) % 3 != 1
    if kind == "chain":
        options |= {"softcap": 20.0, "logit_scale": 0.7}
        options["bias"] = torch.randn(v, generator=g, device=device)
    leaf = z.detach().requires_grad_()
    stats = ll.token_stats(leaf, t, backend=backend, **options)
    (gradient,) = torch.autograd.grad(stats[:3], leaf, list(up))
    wide = z.double().requires_grad_()
    y = (wide + options["bias"] if kind == "chain" else wide) * options.get("logit_scale", 1.0)
    y = 20.0 * torch.tanh(y / 20.0) if kind == "chain" else y
    y = y / options["temperature"].double()[:, None] if "temperature" in options else y
    active = options.get("mask", torch.ones_like(t, dtype=torch.bool))
    own = row_truth(y.detach(), t, up[0], up[1])
    own["lse"] = y.detach().logsumexp(-1)
    dy = own["dlogits"] + up[2][:, None] * y.detach().softmax(-1)
    (dz,) = torch.autograd.grad(y, wide, dy * active[:, None])
    truth = {key: own[key] * active for key in ("logp", "entropy", "lse")}
    found = {"logp": stats.logp, "entropy": stats.entropy, "lse": stats.lse, "dlogits": gradient}
    return worst(found, {**truth, "dlogits": dz}, dtype)


# ---- heads


@dataclass(frozen=True)
class Head:
    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H]
    targets: Tensor  # [N]
    upstream: Tensor  # [N] float32: of logp, and where asked of the entropy
    # What has been worked out: truths, and the log-probs of the policy at ratio 1.
    known: dict[Any, Any] = field(default_factory=dict)

    def active(self, share: float) -> Head:
        """All rows, or every fifth, with an upstream gradient."""
        if share == 1.0:
            return self
        every = torch.arange(len(self.upstream), device=self.upstream.device) % round(1 / share)
        return replace(self, upstream=self.upstream * (every == 0), known={})

    def rows(self) -> Tensor:
        return few_rows(len(self.hidden), CHECKED).to(self.hidden.device)

    def columns(self) -> Tensor:
        """Targets of some rows first: those have gradients that are not all alike."""
        spread = torch.linspace(0, len(self.weight) - 1, COLUMNS // 2).long()
        own = self.targets[self.rows()]
        found: Tensor = torch.unique(torch.cat([own, spread.to(own.device)]), sorted=True)
        return found

    def truth(self, entropy: bool) -> tuple[Truth, Truth]:
        """The truth, and what plain code gives in the head's own dtype."""
        if entropy not in self.known:
            self.known[entropy] = (self._truth(entropy), self._plain(entropy))
        found: tuple[Truth, Truth] = self.known[entropy]
        return found

    def _truth(self, entropy: bool) -> Truth:
        wide, rows, columns = wide_dtype(self.hidden.device), self.rows(), self.columns()
        w = self.weight.to(wide)
        up = self.upstream
        g = up[rows] if entropy else None
        own = row_truth(self.hidden[rows].to(wide) @ w.t(), self.targets[rows], up[rows], g)
        d_weight = torch.zeros(len(columns), w.shape[1], dtype=wide, device=w.device)
        # Rows without a gradient add nothing.
        for part in up.nonzero()[:, 0].split(CHUNK):
            h = self.hidden[part].to(wide)
            g = up[part] if entropy else None
            dz = row_truth(h @ w.t(), self.targets[part], up[part], g)["dlogits"]
            d_weight += dz[:, columns].t() @ h
        d_hidden = own.pop("dlogits") @ w
        return {**own, "d_hidden": d_hidden, "d_weight": d_weight}

    def _plain(self, entropy: bool) -> Truth:
        rows, up = self.rows(), self.upstream
        z = (self.hidden[rows] @ self.weight.t()).float()
        own = row_truth(z, self.targets[rows], up[rows], up[rows] if entropy else None)
        own["d_hidden"] = own.pop("dlogits").to(self.hidden.dtype) @ self.weight
        return own


def head_inputs(n: int, h: int, v: int, dtype: torch.dtype, device: str) -> Head:
    """Logits of standard deviation 3."""
    g = torch.Generator(device).manual_seed(1)
    hidden = torch.randn(n, h, generator=g, device=device).mul_(3).to(dtype)
    weight = torch.empty(v, h, dtype=dtype, device=device)
    # In parts: nothing float32 of its size beside it.
    for part in weight.split(1 << 14):
        part.copy_(torch.randn(part.shape, generator=g, device=device).mul_(h**-0.5))
    targets = torch.randint(v, (n,), generator=g, device=device)
    upstream = torch.randn(n, generator=g, device=device) / n
    return Head(hidden, weight, targets, upstream)


def check_head(
    x: Head, found: Mapping[str, Tensor], *, entropy: bool = True, slack: float = 1.0
) -> dict[str, float]:
    """The errors of what was found; raises for one that plain code's own does not explain."""
    truth, plain = x.truth(entropy)
    picks = {"logp": x.rows(), "entropy": x.rows(), "d_hidden": x.rows(), "d_weight": x.columns()}
    errors = {}
    for name, where in picks.items():
        if name not in found:
            continue
        value, want = found[name].detach()[where].to(truth[name].dtype), truth[name]
        largest = float(want.abs().max())
        scale = 1.0 if name in ("logp", "entropy") else max(largest, 1e-30)
        error = float((value - want).abs().max()) / scale
        bound = SUMMED[x.hidden.dtype]
        if name in plain:
            own = float((plain[name].to(want.dtype) - want).abs().max()) / scale
            # Partial products of a 16-bit head round too.
            bound = 4 * own + NATS * max(largest, 1.0) / scale * (scale == 1.0)
            bound += torch.finfo(x.hidden.dtype).eps if scale != 1.0 else 0.0
        if not error <= slack * bound:
            raise AssertionError(f"{name} is off by {error:.2e}, allowed {slack * bound:.2e}")
        errors[name] = error
    return errors
