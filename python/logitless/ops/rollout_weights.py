"""Public op: the weights and rejections of a rollout correction, before any loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from logitless.inputs.arrays import framework
from logitless.inputs.checks import instance, is_tensor
from logitless.inputs.make_tokens import Array, is_traced, make_tokens, refuse_grad
from logitless.inputs.naming import public
from logitless.inputs.tokens import Tokens
from logitless.loss.evaluate.importance import correction_metrics, importance
from logitless.loss.spec.corrections import Correction


class RolloutWeights(NamedTuple):
    """Shaped like old_logp."""

    # w of each token, 0 outside the mask; rejected tokens keep theirs
    weights: Any
    # bool: valid and not rejected
    keep: Any
    # floats, rollout_corr/...; 0-d tensors in a graph of torch.compile
    metrics: dict[str, float]


@public
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
    given = {"old_logp": old_logp, "rollout_logp": rollout_logp, "mask": mask}
    framework("rollout_weights", {"cu_seqlens": cu_seqlens}, mixed=True, **given)
    refuse_grad(**given)
    instance("correction", correction, (Correction,))
    if is_traced(old_logp):
        from logitless.ops.losses.data_ops import traced_weights

        return traced_weights(old_logp, rollout_logp, mask, correction, cu_seqlens)
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
    weights, keep = (x.reshape(tokens.shape) for x in (weights, tokens.mask & found.keep))
    if is_tensor(old_logp):
        import torch

        like = torch.from_numpy(weights).to(old_logp.dtype)
        _check_weights(tokens, like.double().numpy())
        kept = torch.from_numpy(keep).to(old_logp.device)
        return RolloutWeights(like.to(old_logp.device), kept, metrics)
    with np.errstate(over="ignore"):
        narrow = weights.astype(tokens.logp.dtype)
    _check_weights(tokens, narrow)
    return RolloutWeights(narrow, keep, metrics)


def _check_weights(tokens: Tokens, weights: npt.NDArray[Any]) -> None:
    bad = np.flatnonzero(~np.isfinite(weights))
    if bad.size:
        i = int(bad[0])
        assert tokens.old_logp is not None and tokens.rollout_logp is not None
        raise ValueError(
            f"the weight of a token must be finite in the dtype of old_logp, got "
            f"{weights.reshape(-1)[i]} at {tokens.place(i)}: old_logp {tokens.old_logp[i]}, "
            f"rollout_logp {tokens.rollout_logp[i]}"
        )
