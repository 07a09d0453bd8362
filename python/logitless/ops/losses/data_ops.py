"""torch ops of functions over data alone: what a graph of torch.compile holds in their place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitless.loss.spec.corrections import Correction
from logitless.ops.batch_stats import token_ids
from logitless.ops.losses.spec_code import decode
from logitless.ops.losses.tracing import correction_code
from logitless.ops.rollout_weights import RolloutWeights, rollout_weights
from logitless.ops.torch_op import register_schema


def traced_weights(
    old_logp: Any,
    rollout_logp: Any,
    mask: Any,
    correction: Correction,
    cu_seqlens: Any,
) -> RolloutWeights:
    """`rollout_weights` of tensors; metrics are 0-d float64, for a graph holds no numbers."""
    text = correction_code(correction)
    weights, keep, values = _weights_op(old_logp, rollout_logp, mask, cu_seqlens, text)
    names = _metric_names(text)
    return RolloutWeights(weights, keep, dict(zip(names, values.unbind(), strict=True)))


def _weights(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    old_logp, rollout_logp, mask, cu_seqlens, text = args
    correction = decode(text).correction
    assert correction is not None
    out = rollout_weights(old_logp, rollout_logp, mask, correction, cu_seqlens=cu_seqlens)
    numbers = list(out.metrics.values())
    metrics = torch.tensor(numbers, dtype=torch.float64, device=old_logp.device)
    return out.weights, out.keep, metrics


def _weights_fake(old_logp: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape, metrics = old_logp.shape, len(_metric_names(args[-1]))
    return (
        old_logp.new_empty(shape),
        old_logp.new_empty(shape, dtype=torch.bool),
        old_logp.new_empty(metrics, dtype=torch.float64),
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _metric_names(text: str) -> tuple[str, ...]:
    """By asking: a call of one token that is masked."""
    nothing, correction = np.zeros((1, 1)), decode(text).correction
    assert correction is not None
    return tuple(rollout_weights(nothing, nothing, nothing > 0, correction).metrics)


_weights_op = register_schema(
    "rollout_weights(Tensor old_logp, Tensor rollout_logp, Tensor mask, Tensor? cu_seqlens, "
    "str correction) -> (Tensor, Tensor, Tensor)",
    _weights,
    _weights_fake,
)


def _ids_fake(sequence_ids: Tensor, positions: Tensor, _: int) -> Tensor:
    if sequence_ids.ndim == 1 and (
        positions.ndim == 2 or positions.shape[0] != sequence_ids.shape[0]
    ):
        sequence_ids = sequence_ids[:, None]
    shape = torch.broadcast_shapes(sequence_ids.shape, positions.shape)
    return sequence_ids.new_empty(shape, dtype=torch.int64)


traced_ids = register_schema(
    "token_ids(Tensor sequence_ids, Tensor positions, SymInt max_length) -> Tensor",
    token_ids,
    _ids_fake,
)
