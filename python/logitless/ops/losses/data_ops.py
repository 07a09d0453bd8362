"""torch ops of functions over data alone: what a graph of torch.compile holds in their place."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.loss.evaluate.make_tokens import make_ids
from logitless.loss.evaluate.metrics import correction_names
from logitless.loss.evaluate.rollout import RolloutWeights, correction_weights
from logitless.loss.spec.corrections import Correction
from logitless.ops.losses.spec_serialization import decode
from logitless.ops.losses.tracing import correction_text
from logitless.ops.torch_op import Symbol, register


def traced_weights(
    old_logp: Any,
    rollout_logp: Any,
    mask: Any,
    correction: Correction,
    cu_seqlens: Any,
) -> RolloutWeights:
    """`rollout_weights` of tensors; metrics are 0-d float64, for a graph holds no numbers."""
    text = correction_text(correction)
    weights, keep, values = _weights_op(old_logp, rollout_logp, mask, cu_seqlens, text)
    names = _metric_names(text)
    return RolloutWeights(weights, keep, dict(zip(names, values.unbind(), strict=True)))


class _Weights(NamedTuple):
    weights: Tensor
    keep: Tensor
    metrics: Tensor


def _weights(
    old_logp: Tensor,
    rollout_logp: Tensor,
    mask: Tensor,
    cu_seqlens: Tensor | None,
    correction: str,
) -> _Weights:
    out = correction_weights(old_logp, rollout_logp, mask, _decoded(correction), cu_seqlens)
    # numbers of the host, or of a device: there they stay
    numbers = [torch.as_tensor(x, dtype=torch.float64) for x in out.metrics.values()]
    metrics = torch.stack(numbers).to(old_logp.device)
    return _Weights(out.weights, out.keep, metrics)


def _weights_fake(old_logp: Tensor, *args: Any) -> _Weights:
    shape, metrics = old_logp.shape, len(_metric_names(args[-1]))
    return _Weights(
        old_logp.new_empty(shape),
        old_logp.new_empty(shape, dtype=torch.bool),
        old_logp.new_empty(metrics, dtype=torch.float64),
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _metric_names(text: str) -> tuple[str, ...]:
    return correction_names(_decoded(text))


def _decoded(text: str) -> Correction:
    correction = decode(text).correction
    assert correction is not None
    return correction


_weights_op = register("rollout_weights", _weights, _weights_fake)


def _ids(sequence_ids: Tensor, positions: Tensor, max_length: Symbol) -> Tensor:
    ids: Tensor = make_ids(sequence_ids, positions, max_length)
    return ids


def _ids_fake(sequence_ids: Tensor, positions: Tensor, _: int) -> Tensor:
    if sequence_ids.ndim == 1 and (
        positions.ndim == 2 or positions.shape[0] != sequence_ids.shape[0]
    ):
        sequence_ids = sequence_ids[:, None]
    shape = torch.broadcast_shapes(sequence_ids.shape, positions.shape)
    return sequence_ids.new_empty(shape, dtype=torch.int64)


traced_ids = register("token_ids", _ids, _ids_fake)
