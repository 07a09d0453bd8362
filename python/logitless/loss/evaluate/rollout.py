"""The weights and rejections of a rollout correction for themselves, before any loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from logitless.backends import registry
from logitless.backends.token_kernels.arrays import at_least, positive_or_one, tensor_like
from logitless.inputs.checks import is_tensor
from logitless.inputs.tokens import Array, Bools, Float64s, Tokens
from logitless.loss.evaluate.make_tokens import make_tokens
from logitless.loss.evaluate.metrics import correction_names
from logitless.loss.evaluate.policy_term.importance import correction_sums, importance
from logitless.loss.evaluate.sequences import kernels_of, refuse
from logitless.loss.spec.corrections import Correction


class RolloutWeights(NamedTuple):
    """Shaped like old_logp."""

    # w of each token, 0 outside the mask; rejected tokens keep theirs
    weights: Any
    # bool: valid and not rejected
    keep: Any
    # floats, rollout_corr/...; 0-d tensors on a device and in a graph of torch.compile
    metrics: dict[str, Any]


def correction_weights(
    old_logp: Array,
    rollout_logp: Array,
    mask: Array,
    correction: Correction,
    cu_seqlens: Array | None,
) -> RolloutWeights:
    """Where the token kernels of old_logp's device compute."""
    kernels = registry.token_kernels_of(old_logp)
    tokens = make_tokens(
        old_logp,
        old_logp,
        mask,
        kernels=kernels,
        old_logp=old_logp,
        rollout_logp=rollout_logp,
        cu_seqlens=cu_seqlens,
    )
    if correction.per_sequence:
        tokens.require_sequences()
    found = importance(tokens, correction)
    total = at_least(tokens.number_valid, 1)
    sums = correction_sums(tokens, correction, found)
    values = [(float(x) if kernels.on_host else x) / total for x in sums]
    weights = tokens.xp.where(tokens.mask, found.weights, 0.0)
    if correction.normalize:
        weights = weights / positive_or_one(kernels.total(tokens, weights) / total)
    weights, keep = _outputs(tokens, weights, tokens.mask & found.keep, old_logp)
    kernels.done("rollout_weights")
    names = correction_names(correction)
    return RolloutWeights(weights, keep, dict(zip(names, values, strict=True)))


def _outputs(tokens: Tokens, weights: Float64s, keep: Bools, like: Array) -> tuple[Array, Array]:
    """Both shaped like the log-probs and in their dtype, in which the weights must be finite."""
    if not kernels_of(tokens).on_host:
        narrow = weights.to(like.dtype)
        refuse(tokens, narrow.isfinite(), lambda _: "")
        return narrow.view(tokens.shape), keep.view(tokens.shape)
    old, rollout = tokens.old_logp, tokens.rollout_logp
    assert old is not None and rollout is not None
    if is_tensor(like):
        import torch

        narrow = torch.from_numpy(weights).to(like.dtype)
        held = narrow.double().numpy()
    else:
        with np.errstate(over="ignore"):
            held = narrow = weights.astype(tokens.logp.dtype)
    refuse(
        tokens,
        np.isfinite(held),
        lambda i: (
            f"the weight of a token must be finite in the dtype of old_logp, got {held[i]} at "
            f"{tokens.place(i)}: old_logp {old[i]}, rollout_logp {rollout[i]}"
        ),
    )
    narrow, keep = narrow.reshape(tokens.shape), keep.reshape(tokens.shape)
    return (narrow.to(like.device), tensor_like(keep, like)) if is_tensor(like) else (narrow, keep)
