"""Public op: the weights and rejections of a rollout correction, before any loss."""

from __future__ import annotations

from logitless.inputs.arrays import framework
from logitless.inputs.checks import instance
from logitless.inputs.gradients import is_traced, refuse_grad
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array
from logitless.loss.evaluate.rollout import RolloutWeights, correction_weights
from logitless.loss.spec.corrections import Correction


@public
def rollout_weights(
    old_logp: Array,  # [N] or [B, T]
    rollout_logp: Array,
    mask: Array,  # bool, or integers 0 and 1
    correction: Correction,
    *,
    cu_seqlens: Array | None = None,  # int32 [B + 1]
) -> RolloutWeights:
    """What `spec.correction` does to the tokens of a whole batch. In plain code, for "tis":

        weights = (old_logp - rollout_logp).exp().clamp(max=2.0)

    policy_loss applies a correction itself, and there the tokens it rejects stay in the
    normaliser. To leave them out, as verl does, call this first and use `mask & keep` as the mask
    of batch_stats and policy_loss.

    CUDA tensors (AMD's too) are not waited for: metrics are 0-d tensors there, and a value that is
    not finite is named at the next call. For other devices the CPU computes, on copies.

    Raises ValueError for shapes that differ, values that are not finite where the mask is true, or
    a correction per sequence without sequences; TypeError for dtypes.
    """
    mask = as_mask(mask)
    given = {"old_logp": old_logp, "rollout_logp": rollout_logp, "mask": mask}
    framework("rollout_weights", {"cu_seqlens": cu_seqlens}, mixed=True, **given)
    refuse_grad(**given)
    instance("correction", correction, (Correction,))
    if is_traced(old_logp):
        from logitless.ops.losses.data_ops import traced_weights

        return traced_weights(old_logp, rollout_logp, mask, correction, cu_seqlens)
    return correction_weights(old_logp, rollout_logp, mask, correction, cu_seqlens)
