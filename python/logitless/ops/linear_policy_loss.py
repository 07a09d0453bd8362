"""Public op: the policy loss straight from hidden x weight, without its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from logitless.ops.linear_token_stats import linear_token_stats
from logitless.ops.policy_loss import policy_loss
from logitless.ops.tokens import refuse_grad

if TYPE_CHECKING:
    from logitless.loss.aggregation import Totals
    from logitless.loss.spec import PolicyLossSpec
    from logitless.ops.batch_stats import BatchStats


class LinearPolicyLossOutput(NamedTuple):
    """A call's share of the batch, and what it scored on the way."""

    loss: Any  # 0-d, differentiable in hidden, weight and bias
    metrics: dict[str, Any]  # 0-d float32 each, detached
    logp: Any  # shaped like targets, detached
    entropy: Any


def linear_policy_loss(
    hidden: Any,  # [N, H] or [B, T, H]
    weight: Any,  # [V, H]
    targets: Any,  # [N] or [B, T] int64
    old_logp: Any,  # shaped like targets, and so the next two
    advantages: Any,  # or per sequence: [B] or [B, 1]
    mask: Any,  # bool
    spec: PolicyLossSpec,
    *,
    ref_logp: Any = None,
    rollout_logp: Any = None,
    cu_seqlens: Any = None,
    token_ids: Any = None,
    batch: BatchStats | None = None,
    totals: Totals | None = None,
    grad_scale: float = 1.0,
    temperature: Any = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Any = None,
    vocab_group: Any = None,
    vocab_start: int = 0,
    memory_budget: int | str | None = None,
    tail_mass: float = 0.0,
    logits_dtype: Any = None,
    batch_invariant: bool = False,
    backend: str = "auto",
) -> LinearPolicyLossOutput:
    """Log-prob, entropy and policy loss of each token from the head's input, in one call.

    Equivalent plain code::

        logp, entropy, *_ = linear_token_stats(hidden, weight, targets, mask=mask, ...)
        loss, metrics = policy_loss(logp, old_logp, advantages, mask, spec, entropy=entropy, ...)

    Tokens that the loss gives no gradient (masked, clipped, of advantage zero, not selected) enter
    no backward product. `.loss` is differentiable, once, in hidden, weight and bias only: any other
    argument that requires grad is a ValueError. Under no_grad nothing is kept.

    Options, shapes and errors as in `linear_token_stats` and `policy_loss`.
    """
    refuse_grad(
        old_logp=old_logp,
        advantages=advantages,
        ref_logp=ref_logp,
        rollout_logp=rollout_logp,
        temperature=temperature,
    )
    stats = linear_token_stats(
        hidden,
        weight,
        targets,
        mask=mask,
        temperature=temperature,
        softcap=softcap,
        logit_scale=logit_scale,
        bias=bias,
        vocab_group=vocab_group,
        vocab_start=vocab_start,
        memory_budget=memory_budget,
        tail_mass=tail_mass,
        logits_dtype=logits_dtype,
        batch_invariant=batch_invariant,
        backend=backend,
    )
    out = policy_loss(
        stats.logp,
        old_logp,
        advantages,
        mask,
        spec,
        entropy=stats.entropy,
        ref_logp=ref_logp,
        rollout_logp=rollout_logp,
        cu_seqlens=cu_seqlens,
        token_ids=token_ids,
        batch=batch,
        totals=totals,
        grad_scale=grad_scale,
    )
    detached = (x.detach() if hasattr(x, "detach") else x for x in (stats.logp, stats.entropy))
    return LinearPolicyLossOutput(out.loss, out.metrics, *detached)
