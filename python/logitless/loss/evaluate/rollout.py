"""The weights and rejections of a rollout correction for themselves, before any loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from logitless.inputs.checks import is_tensor
from logitless.inputs.tokens import Array, Tokens
from logitless.loss.evaluate.make_tokens import make_tokens
from logitless.loss.evaluate.metrics import correction_names
from logitless.loss.evaluate.policy_term.importance import correction_sums, importance
from logitless.loss.spec.corrections import Correction


class RolloutWeights(NamedTuple):
    """Shaped like old_logp."""

    # w of each token, 0 outside the mask; rejected tokens keep theirs
    weights: Any
    # bool: valid and not rejected
    keep: Any
    # floats, rollout_corr/...; 0-d tensors in a graph of torch.compile
    metrics: dict[str, float]


def correction_weights(
    old_logp: Array,
    rollout_logp: Array,
    mask: Array,
    correction: Correction,
    cu_seqlens: Array | None,
) -> RolloutWeights:
    tokens = make_tokens(
        old_logp,
        old_logp,
        mask,
        old_logp=old_logp,
        rollout_logp=rollout_logp,
        cu_seqlens=cu_seqlens,
    )
    if correction.per_sequence:
        tokens.require_sequences()
    found = importance(tokens, correction)
    sums = correction_sums(tokens, correction, found)
    total = max(tokens.number_valid, 1)
    metrics = {
        name: float(x) / total for name, x in zip(correction_names(correction), sums, strict=True)
    }
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
