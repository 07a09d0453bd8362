"""The policy loss of a call from its per-token log-probs."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from logitless.inputs.arrays import framework
from logitless.inputs.checks import is_tensor
from logitless.inputs.gradients import refuse_grad
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array
from logitless.loss.evaluate.coefficients import check_loss_options
from logitless.loss.evaluate.inputs import BatchStats, Totals, loss_data
from logitless.loss.evaluate.make_tokens import name_flagged
from logitless.loss.evaluate.numpy_loss import numpy_loss
from logitless.loss.spec import PolicyLossSpec

_OP = "policy_loss"


class PolicyLossOutput(NamedTuple):
    """A call's share of the batch; sums over micro-batches and ranks are the batch's values."""

    # 0-d, differentiable in logp and entropy
    loss: Any
    # 0-d float32 each, detached
    metrics: dict[str, Any]


@public
def policy_loss(
    logp: Array,  # [N] or [B, T]
    old_logp: Array | None,  # None: on-policy
    advantages: Array,  # the same, or [B], [B, 1]
    mask: Array,  # bool, or integers 0 and 1
    spec: PolicyLossSpec,
    *,
    entropy: Array | None = None,
    ref_logp: Array | None = None,
    rollout_logp: Array | None = None,
    weights: Array | None = None,  # shaped like advantages
    old_entropy: Array | None = None,
    cu_seqlens: Array | None = None,  # int32 [B + 1]
    token_ids: Array | None = None,  # int64
    batch: BatchStats | None = None,
    totals: Totals | None = None,
    grad_scale: float = 1.0,
    metrics: Literal["shares", "means"] = "shares",
) -> PolicyLossOutput:
    """The policy loss. In plain code, for spec = presets["ppo"] and a call that is the whole batch:

        ratio = (logp - old_logp).exp()
        loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
        loss = grad_scale * loss[mask].sum() / mask.sum()

    `spec` says what else there is (`PolicyLossSpec`, `presets`). `.loss` is local numerator /
    global normaliser: sum the losses of micro-batches and never divide by their number. The
    normaliser and the selected tokens come from `batch` (`batch_stats`, needs `token_ids`), or from
    `totals` alone where the spec selects nothing over the batch; with neither, this call is the
    whole batch: it selects by its own logp and old_logp with seed 0 and step 0, and `token_ids`
    default to 0, 1, 2, ... . `grad_scale` multiplies the loss, hence its gradients: pass
    `totals.world_size` where DDP or FSDP averages the gradients of ranks.

    `old_logp` = None is on-policy: the old policy is this one, as with logp.detach(), bit for bit.
    The ratio is 1 and keeps its gradient. That holds wherever the spec looks at the old policy: in
    selection, in a KL term or a mask against it, and in a correction for the rollout.

    `weights`: factors of the policy term that the caller has, such as importance weights of the
    rollout: data, finite and >= 0. They multiply what `spec.control` and `spec.correction` make of
    the term, a penalty of KL-Cov included, and nothing else: KL and entropy terms, normalisers,
    batch means, selection, and metrics but for actor/pg_loss are what they are without. A token of
    weight 0 has no policy term, whatever its ratio, and stays a token everywhere else.

    `old_entropy`: that of the old policy at each token, for a control that compares (ERC).

    First derivatives in logp and entropy; all else is data. float32, bfloat16, float16 and
    float64 (computed in float64 per token; loss in float32, or float64 where logp is); NumPy arrays
    give values only. The ratio is exp of an unclamped difference: a token of ratio 1e30 that the
    surrogate does not clip makes the loss that large, and one that makes it no number at all is an
    error. CUDA tensors (AMD's too) stay on the device; those of other devices go through a copy to
    the CPU, and so do all with a custom surrogate or control.

    metrics="shares" gives what this call adds to the batch's metrics: sum them over micro-batches
    and ranks, as losses. "means" gives the means of the call itself, to be averaged by whoever
    averages over micro-batches; sums of token-sum stay sums.

    metrics, per valid token unless said: actor/pg_loss and actor/kl_loss (aggregated as their
    terms, without coefficient and grad_scale), actor/pg_clipfrac (ratio clip),
    actor/pg_clipfrac_lower (dual clip), actor/ppo_kl = old_logp - logp, actor/entropy with
    `entropy`, actor/cov_selected (share selected) with a control that selects, actor/cov_mean where
    the batch means are known (not with `totals` alone), and with a correction
    rollout_corr/rollout_is_mean, .../kl, .../k3_kl and the shares of tokens that it cuts and
    rejects.

    scope="micro" selects within the call as verl does, Clip-Cov's draw coming from torch's global
    CPU generator; of M2po and Bapo it finds the bounds of the clip within the call.

    Raises ValueError for shapes that differ, values that are not finite inside the mask, a token
    whose loss or coefficient is not finite in the dtype of logp (inf - inf, or exp of a log ratio
    of 800: the first such token is named), data that requires grad, missing inputs that the spec
    `needs` (but for old_logp), cu_seqlens or token_ids, ids that repeat, both batch and totals,
    totals with a spec that looks at the batch, totals below what this call holds, or a sequence
    that is not whole where the loss is per sequence: `batch` knows every sequence by its
    `token_ids`. `totals` alone are counts: they show a cut only where one call has tokens of all
    sequences but not all tokens.
    TypeError for dtypes. A metric that float32 cannot hold is infinite, never NaN.
    """
    optional = {
        "old_logp": old_logp,
        "entropy": entropy,
        "ref_logp": ref_logp,
        "rollout_logp": rollout_logp,
        "weights": weights,
        "old_entropy": old_entropy,
        "cu_seqlens": cu_seqlens,
        "token_ids": token_ids,
    }
    mask = as_mask(mask)
    # from wherever they are they go where logp is
    framework(_OP, optional, mixed=True, logp=logp, advantages=advantages, mask=mask)
    refuse_grad(
        old_logp=old_logp, advantages=advantages, ref_logp=ref_logp, rollout_logp=rollout_logp,
        weights=weights, old_entropy=old_entropy,
    )  # fmt: skip
    check_loss_options(spec, batch, totals, grad_scale, token_ids, metrics)
    data = (
        old_logp, advantages, mask, ref_logp, rollout_logp, cu_seqlens, token_ids, spec, batch,
        totals, grad_scale, weights, metrics, old_entropy,
    )  # fmt: skip
    if not is_tensor(logp):
        return PolicyLossOutput(*numpy_loss(logp, entropy, loss_data(*data)))
    from logitless.ops.losses.op import loss_inputs, torch_loss

    name_flagged(logp)
    return PolicyLossOutput(*torch_loss(logp, entropy, loss_inputs(*data)))
