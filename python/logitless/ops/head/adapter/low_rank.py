"""What the ops see of adapters: a few more columns of hidden, and of weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from logitless.inputs.adapter import Adapter
from logitless.ops.sharding.rendezvous import Facts, fingerprint

if TYPE_CHECKING:
    from logitless.inputs.options import ComputeOptions


class LowRank(NamedTuple):
    """low up^T is what adapters add to logits. Several lie side by side."""

    low: Tensor  # [N, r], scale * hidden A^T in the dtype of hidden
    up: Tensor  # [V, r]

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    def joins(self, hidden: Tensor) -> Tensor:  # [N, H + r]
        return torch.cat((hidden, self.low), 1)

    @property
    def needs(self) -> bool:
        return torch.is_grad_enabled() and (self.low.requires_grad or self.up.requires_grad)

    @property
    def facts(self) -> Facts:
        """What must be the same on every rank of vocab_group."""
        return (
            ("the adapters' rank", self.rank),
            ("hidden A^T of the adapters (a checksum)", fingerprint(self.low)),
            ("whether the adapters require grad", self.needs),
        )


def low_rank(
    op: str,
    adapters: tuple[Adapter, ...],
    hidden: Tensor,  # [N, H]
    mask: Tensor | None,  # [N]
    compute: ComputeOptions,
    reduces_hidden: bool = True,
) -> LowRank:
    """That of one adapter or more. The gradients of A, and by it of hidden, are autograd's own."""
    if compute.batch_invariant:
        raise NotImplementedError(f"{op}: batch_invariant is not built with an adapter")
    if not reduces_hidden:
        raise NotImplementedError(
            f"{op}: reduce_hidden=False is not built with an adapter: the gradient of its A would "
            "be a rank's share as well"
        )
    if mask is not None and torch.is_grad_enabled() and any(x.A.requires_grad for x in adapters):
        # what lies outside the mask may be NaN, and 0 times that is no gradient of A
        hidden = hidden.masked_fill(~mask[:, None], 0.0)
    with torch.autocast(hidden.device.type, enabled=False):
        lows = [_low(hidden, *one) for one in adapters]
    ups = [one.B for one in adapters]
    return LowRank(*(x[0] if len(x) == 1 else torch.cat(x, 1) for x in (lows, ups)))


def _low(hidden: Tensor, A: Tensor, _: Tensor, scale: float) -> Tensor:
    dtype = torch.promote_types(hidden.dtype, A.dtype)
    return (hidden.to(dtype) @ A.to(dtype).t() * scale).to(hidden.dtype)
