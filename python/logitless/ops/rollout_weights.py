"""Public op: the weights and rejections of a rollout correction, before any loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from logitless.loss.correction import correction_metrics, importance
from logitless.loss.corrections import Correction
from logitless.ops.tokens import Array, is_tensor, make_tokens, refuse_grad


class RolloutWeights(NamedTuple):
    """Shaped like old_logp."""

    # w of each token, 0 outside the mask; rejected tokens keep theirs
    weights: Any
    # bool: valid and not rejected
    keep: Any
    # floats, rollout_corr/...
    metrics: dict[str, float]


def rollout_weights(
    old_logp: Array,  # [N] or [B, T]
    rollout_logp: Array,
    mask: Array,  # bool
    correction: Correction,
    *,
    cu_seqlens: Array | None = None,  # int32 [B + 1]
) -> RolloutWeights:
    """What `spec.correction` does to the tokens of a whole batch. In plain code, for "tis":

        weights = (old_logp - rollout_logp).exp().clamp(max=2.0)

    policy_loss applies a correction itself, and there the tokens it rejects stay in the
    normaliser. To leave them out, as verl does, call this first and use `mask & keep` as the mask
    of batch_stats and policy_loss.

    Raises ValueError for shapes that differ, values that are not finite where the mask is true, or
    a correction per sequence without sequences; TypeError for dtypes.
    """
    refuse_grad(old_logp=old_logp, rollout_logp=rollout_logp)
    if not isinstance(correction, Correction):
        raise TypeError(f"correction must be a Correction, got {correction!r}")
    tokens = make_tokens(
        old_logp,
        old_logp,
        mask,
        old_logp=old_logp,
        rollout_logp=rollout_logp,
        cu_seqlens=cu_seqlens,
    )
    if correction.per_sequence:
        tokens.whole()
    found = importance(tokens, correction)
    metrics = correction_metrics(tokens, correction, found, int(np.count_nonzero(tokens.mask)))
    weights = np.where(tokens.mask, found.weights, 0.0)
    if correction.normalize and tokens.mask.any():
        mean = weights[tokens.mask].mean()
        weights = weights / mean if mean > 0 else weights
    shaped = (x.reshape(tokens.shape) for x in (weights, tokens.mask & found.keep))
    if is_tensor(old_logp):
        import torch

        like = [torch.from_numpy(x).to(old_logp.device) for x in shaped]
        return RolloutWeights(like[0].to(old_logp.dtype), like[1], metrics)
    found_weights, keep = shaped
    return RolloutWeights(found_weights.astype(tokens.logp.dtype), keep, metrics)
