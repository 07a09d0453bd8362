"""Draws from the top_k and top_p of each row: from its largest logits, kept while tiles stream by,
and where those cannot prove that they hold the whole set, from another product of those rows alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitless.backends.row_kernels.topk import TopK
from logitless.inputs.checks import plain_fields, require, whole
from logitless.inputs.records import changed

if TYPE_CHECKING:
    from torch import Tensor

    from logitless.backends.machine import Machine
    from logitless.backends.row_kernels.rows import Rows
    from logitless.ops.head.planner.plan import Plan
    from logitless.ops.head.tiling import Tiling
    from logitless.ops.sharding.shard import Shard


@dataclass(frozen=True)
class Truncation:
    """Which part of a distribution is drawn from."""

    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.top_k is not None:
            whole("top_k", self.top_k, least=1)
        if self.top_p is not None:
            require("top_p", self.top_p, lambda p: 0 < p <= 1, "in (0, 1] or None")

    def limits(self, vocab: int) -> bool:
        """Whether anything can be left out."""
        return (self.top_k or vocab) < vocab or (self.top_p or 1.0) < 1.0

    def kept(self, vocab: int, machine: Machine) -> int:
        """How many of the largest logits of a row are kept."""
        return min(self.top_k or machine.sampled_entries, machine.most_sampled_entries, vocab)

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of the core."""
        return {"top_k": self.top_k or 0, "top_p": float(self.top_p or 1.0)}


def draw_truncated(
    h: Tensor,  # [n, H], not padded
    weight: Tensor,  # [V of this rank, H]
    rows: Rows,
    tiling: Tiling,
    plan: Plan,
    truncation: Truncation,
    noise: Any,  # linear_sample.Noise
    shard: Shard,
    state: Tensor,  # [n, STATE], written
) -> Tensor:  # [n] int64
    """The drawn tokens; `state` is then as if they had been the targets.

    Every rank draws for itself, from what all ranks have after the largest logits of each are sent.
    """
    import torch

    from logitless.ops.head.engine import forward_tiles
    from logitless.ops.head.tiling import LogitStore
    from logitless.ops.sampling.draw import kernels_of
    from logitless.ops.sharding.topk import finalize

    n, vocab = len(h), shard.vocab(len(weight))
    token = h.new_zeros(n, dtype=torch.int64)
    # The forward asks for targets; what it finds of these is overwritten by the draw.
    rows = changed(rows, targets=token)
    topk = TopK.empty(n, truncation.kept(vocab, rows.backend.machine(h.device)))
    store = LogitStore(h.new_empty(0, dtype=tiling.dtype), n, tiling)
    forward_tiles(tiling.operand(h, None), weight, rows, state, store, False, topk)
    shard.merge(state, rows)
    finalize(rows, state, topk, shard, tiling.dtype)
    drawn = torch.empty_like(token)
    arguments = {**truncation.arguments, **noise.of(slice(0, n))}
    kernels_of(rows).draw_truncated(rows, state, drawn, topk=topk, **arguments)
    left = (drawn < 0).nonzero().squeeze(1)
    if not len(left):
        return drawn
    rows = shard.entire(rows)
    # Of a sharded vocabulary a row is held once more: as the parts that it is put together from.
    held = vocab + len(shard.ranges) * shard.widest(0)
    room = max(plan.budget - plan.total_bytes, 0) // (held * tiling.dtype.itemsize)
    for index in left.split(max(int(room), 1)):
        mine = state[index]
        drawn[index] = _draw_again(
            h[index], weight, rows.gather(index), tiling, truncation, noise.at(index), shard, mine
        )
        state[index] = mine
    return drawn


def _draw_again(
    h: Tensor,  # [r, H]
    weight: Tensor,
    rows: Rows,  # with the whole vocabulary's bias
    tiling: Tiling,
    truncation: Truncation,
    noise: Any,
    shard: Shard,
    state: Tensor,  # [r, STATE], written
) -> Tensor:  # [r]
    """The same of all logits of a few rows. Their state is made anew from these very logits: a
    product of fewer rows may round otherwise."""
    import torch

    from logitless.ops.head.gemm import all_logits
    from logitless.ops.sampling.draw import kernels_of

    r = len(h)
    logits = shard.whole(all_logits(tiling.operand(h, None), weight, r, tiling, rows.backend))
    rows.forward(logits, state)
    drawn = h.new_empty(r, dtype=torch.int64)
    arguments = {**truncation.arguments, **noise.of(slice(0, r))}
    kernels_of(rows).draw_truncated(rows, state, drawn, logits=logits, **arguments)
    return drawn
