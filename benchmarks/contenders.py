"""Who always runs: this library, plain torch, and plain torch compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from benchmarks.case import Contender, Results
from benchmarks.inputs import TokenInputs

EXTRAS = ("varentropy", "sum_p2", "entropy_change", "argmax")
# Clip range of the policy loss, and the dual clip that some peers cannot turn off.
CLIP, DUAL = 0.2, 3.0
SPEC = ll.PolicyLossSpec(surrogate=ll.Clip(CLIP, CLIP, dual=DUAL), aggregation="token-mean")
BONUS = 0.01
SPEC_WITH_BONUS = replace(SPEC, entropy=ll.EntropyBonus(BONUS))

# Clip-Cov at verl's own settings, and with its clip.
CLIP_CONTROL = ll.ClipCov(fraction=2e-4, low=1.0, high=5.0)
CLIP_COV = ll.PolicyLossSpec(
    surrogate=ll.Clip(CLIP, CLIP), control=CLIP_CONTROL, aggregation="token-mean"
)
KL_COV = ll.presets["kl_cov"]
assert isinstance(KL_COV.control, ll.KLCov)
KL_CONTROL: ll.KLCov = KL_COV.control


def named(stats: ll.TokenStats) -> Results:
    return {"logp": stats.logp, "entropy": stats.entropy, **stats.extras}


def our_rows(logits: Tensor, targets: Tensor, **options: Any) -> Results:
    return named(ll.token_stats(logits, targets, **options))


def our_head(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> Results:
    return named(ll.linear_token_stats(hidden, weight, targets, **options))


def our_policy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    tokens: TokenInputs,
    spec: ll.PolicyLossSpec = SPEC,
    **options: Any,
) -> Results:
    data = (tokens.old_logp, tokens.advantages, tokens.mask)
    return {"loss": ll.linear_policy_loss(hidden, weight, targets, *data, spec, **options).loss}


def our_policy_apart(
    hidden: Tensor, weight: Tensor, targets: Tensor, tokens: TokenInputs, spec: ll.PolicyLossSpec
) -> Results:
    """The statistics, then the loss of them: the logits are kept for the backward."""
    stats = ll.linear_token_stats(hidden, weight, targets)
    data = (tokens.old_logp, tokens.advantages, tokens.mask)
    return {"loss": ll.policy_loss(stats.logp, *data, spec, entropy=stats.entropy).loss}


def our_sample(hidden: Tensor, weight: Tensor, **options: Any) -> Results:
    rows = torch.arange(len(hidden), device=hidden.device)
    return ll.linear_sample(hidden, weight, seed=0, step=0, row_ids=rows, **options)._asdict()


def our_loss(logp: Tensor, tokens: TokenInputs) -> Results:
    out = ll.policy_loss(logp, tokens.old_logp, tokens.advantages, tokens.mask, SPEC)
    return {"loss": out.loss}


def our_selecting(logp: Tensor, tokens: TokenInputs, spec: ll.PolicyLossSpec) -> Results:
    """Means, covariances and the selection of the whole batch, then its loss."""
    data, ids = (tokens.advantages, tokens.mask), token_ids(len(logp), str(logp.device))
    old = tokens.old_logp if spec is CLIP_COV else None
    batch = ll.batch_stats(logp.detach(), *data, spec, old_logp=old, token_ids=ids, seed=0, step=0)
    out = ll.policy_loss(logp, tokens.old_logp, *data, spec, token_ids=ids, batch=batch)
    return {"loss": out.loss}


@functools.lru_cache(maxsize=1)
def token_ids(n: int, device: str) -> Tensor:
    """A part of the inputs: a trainer numbers its tokens once a rollout."""
    return torch.arange(n, device=device)


def plain_rows(logits: Tensor, targets: Tensor) -> Results:
    """What a trainer without a library for it writes."""
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
    "policy": policy_from(plain_head),
    "policy with bonus": plain_policy_with_bonus,
    "sample": plain_sample,
    "loss": plain_loss,
    "clip cov": plain_clip_cov,
    "kl cov": plain_kl_cov,
}

OURS = Contender(
    "logitless",
    "ours",
    {
        "rows": lambda: our_rows,
        "rows in place": lambda: functools.partial(our_rows, inplace_backward=True),
        "rows with extras": lambda: functools.partial(our_rows, extras=EXTRAS),
        "head": lambda: our_head,
        "policy": lambda: our_policy,
        "policy with bonus": lambda: functools.partial(our_policy, spec=SPEC_WITH_BONUS),
        "sample": lambda: our_sample,
        "loss": lambda: our_loss,
        "clip cov": lambda: functools.partial(our_selecting, spec=CLIP_COV),
        "kl cov": lambda: functools.partial(our_selecting, spec=KL_COV),
    },
)
EAGER = Contender(
    "torch eager", "torch", {name: functools.partial(lambda f: f, f) for name, f in PLAIN.items()}
)
COMPILED = Contender(
    "torch.compile", "torch", {name: functools.partial(compiled, f) for name, f in PLAIN.items()}
)
