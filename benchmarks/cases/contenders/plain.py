"""Plain torch, eager and compiled: what a trainer without a library for it writes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cases.inputs import TokenInputs
from benchmarks.cases.specs import BONUS, CLIP, CLIP_CONTROL, DUAL, KL_CONTROL, WEIGHTS
from benchmarks.harness.case import Implementation, Results
from logitless import SamplingMask


def plain_rows(logits: Tensor, targets: Tensor) -> Results:
    log_p = logits.float().log_softmax(-1)
    logp = log_p.gather(-1, targets[:, None])[:, 0]
    return {"logp": logp, "entropy": -(log_p.exp() * log_p).sum(-1)}


def plain_extras(logits: Tensor, targets: Tensor) -> Results:
    log_p = logits.float().log_softmax(-1)
    logp = log_p.gather(-1, targets[:, None])[:, 0]
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    surprise = log_p + entropy[:, None]
    change = (p.square() * surprise).sum(-1) - logp.exp() * (logp + entropy)
    return {
        "logp": logp,
        "entropy": entropy,
        "varentropy": (p * surprise.square()).sum(-1),
        "sum_p2": p.square().sum(-1),
        "entropy_change": change,
        "argmax": logits.argmax(-1),
    }


def plain_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Results:
    return plain_rows(hidden @ weight.t(), targets)


def plain_masked_head(
    hidden: Tensor, weight: Tensor, targets: Tensor, mask: SamplingMask
) -> Results:
    """Full logits, and -inf outside of each row's set."""
    logits = hidden @ weight.t()
    csr = (mask.token_ids, mask.offsets)
    ids, offsets = (torch.as_tensor(x, device=hidden.device) for x in csr)
    row = torch.arange(len(hidden), device=hidden.device).repeat_interleave(offsets.diff())
    others = torch.ones_like(logits, dtype=torch.bool)
    others[row, ids] = False
    log_p = logits.float().masked_fill(others, -torch.inf).log_softmax(-1)
    logp = log_p.gather(-1, targets[:, None])[:, 0]
    finite = log_p.masked_fill(others, 0.0)
    return {"logp": logp, "entropy": -(log_p.exp() * finite).sum(-1)}


def plain_divergence(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, kind: str
) -> Results:
    """Full logits of both."""
    log_p = (hidden @ weight.t()).float().log_softmax(-1)
    with torch.no_grad():
        log_q = (teacher_hidden @ teacher_weight.t()).float().log_softmax(-1)
    if kind == "reverse_kl":
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    elif kind == "forward_kl":
        divergence = (log_q.exp() * (log_q - log_p)).sum(-1)
    else:
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        both = (log_p.exp() * (log_p - log_m), log_q.exp() * (log_q - log_m))
        divergence = (both[0] + both[1]).sum(-1) / 2
    with torch.no_grad():
        entropy = -(log_p.exp() * log_p).sum(-1)
    return {"divergence": divergence, "entropy": entropy}


def plain_loss(logp: Tensor, tokens: TokenInputs) -> Results:
    """PPO's loss with dual clip; the mask is all true here, but a trainer's is not."""
    a, mask = tokens.advantages, tokens.mask
    ratio = (logp - tokens.old_logp).exp()
    loss = torch.maximum(-a * ratio, -a * ratio.clamp(1 - CLIP, 1 + CLIP))
    loss = torch.where(a < 0, torch.minimum(loss, -a * DUAL), loss)
    return {"loss": (loss * mask).sum() / mask.sum()}


def plain_kl_cov(logp: Tensor, tokens: TokenInputs) -> Results:
    a, mask, d = tokens.advantages, tokens.mask, logp - tokens.old_logp
    n = mask.sum()
    with torch.no_grad():
        cov = (a - (a * mask).sum() / n) * (logp - (logp * mask).sum() / n)
        # the mask is all true here
        k = max(int(KL_CONTROL.fraction * len(logp)), 1)
        chosen = cov.masked_fill(~mask, -torch.inf).topk(k).indices
        penalty = torch.zeros_like(a).index_fill(0, chosen, KL_CONTROL.coefficient)
    loss = -a * d.exp() + penalty * d.abs()
    return {"loss": (loss * mask).sum() / n}


def plain_clip_cov(logp: Tensor, tokens: TokenInputs) -> Results:
    a, mask = tokens.advantages, tokens.mask
    n, ratio = mask.sum(), (logp - tokens.old_logp).exp()
    free, cut = -a * ratio, -a * ratio.clamp(1 - CLIP, 1 + CLIP)
    with torch.no_grad():
        cov = (a - (a * mask).sum() / n) * (logp - (logp * mask).sum() / n)
        inside = (cov > CLIP_CONTROL.low) & (cov < CLIP_CONTROL.high) & mask & (cut <= free)
        places = inside.nonzero()[:, 0]
        # the mask is all true here
        k = max(int(CLIP_CONTROL.fraction * len(logp)), 1)
        chosen = places[torch.randperm(len(places))[:k]]
        kept = torch.ones_like(a).index_fill(0, chosen, 0.0)
    return {"loss": (torch.maximum(free, cut) * kept * mask).sum() / n}


def plain_batch_stats(tokens: TokenInputs) -> Results:
    """Means over the valid tokens, and those of the largest covariance."""
    a, logp, mask = tokens.advantages, tokens.logp, tokens.mask
    n = mask.sum()
    mean_a, mean_logp = (a * mask).sum() / n, (logp * mask).sum() / n
    cov = ((a - mean_a) * (logp - mean_logp)).masked_fill(~mask, -torch.inf)
    # the mask is all true here
    k = max(int(KL_CONTROL.fraction * len(logp)), 1)
    chosen = cov.topk(k).indices
    return {"mean_advantage": mean_a, "mean_logp": mean_logp, "selected": chosen}


def plain_weights(tokens: TokenInputs) -> Results:
    weights = (tokens.old_logp - tokens.logp).exp().clamp(max=WEIGHTS.high)
    return {"weights": weights * tokens.mask}


def plain_policy_with_bonus(
    hidden: Tensor, weight: Tensor, targets: Tensor, tokens: TokenInputs
) -> Results:
    stats = plain_head(hidden, weight, targets)
    loss = plain_loss(stats["logp"], tokens)["loss"] - BONUS * stats["entropy"].mean()
    return {"loss": loss}


def plain_sample(hidden: Tensor, weight: Tensor) -> Results:
    log_p = (hidden @ weight.t()).float().log_softmax(-1)
    p = log_p.exp()
    token = torch.multinomial(p, 1)
    logp = log_p.gather(-1, token)[:, 0]
    return {"token": token[:, 0], "logp": logp, "entropy": -(p * log_p).sum(-1)}


def policy_from(head: Callable[..., Results]) -> Callable[..., Results]:
    """The policy loss of whoever gives log-probs, as a trainer would put it together."""

    def policy(hidden: Tensor, weight: Tensor, targets: Tensor, tokens: TokenInputs) -> Results:
        return plain_loss(head(hidden, weight, targets)["logp"], tokens)

    return policy


def compiled(function: Callable[..., Results]) -> Callable[..., Results]:
    # Static shapes: the best case of a compiler.
    return torch.compile(function, dynamic=False, fullgraph=True)


PLAIN: dict[str, Callable[..., Results]] = {
    "rows": plain_rows,
    "rows with extras": plain_extras,
    "head": plain_head,
    "masked head": plain_masked_head,
    "divergence": plain_divergence,
    "policy": policy_from(plain_head),
    "policy with bonus": plain_policy_with_bonus,
    "sample": plain_sample,
    "loss": plain_loss,
    "clip cov": plain_clip_cov,
    "kl cov": plain_kl_cov,
    "batch stats": plain_batch_stats,
    "rollout weights": plain_weights,
}

EAGER = Implementation(
    "torch eager",
    "torch",
    {name: functools.partial(lambda f: f, f) for name, f in PLAIN.items()},
    baseline=True,
)
COMPILED = Implementation(
    "torch.compile", "torch", {name: functools.partial(compiled, f) for name, f in PLAIN.items()}
)
