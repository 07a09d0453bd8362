"""Draws from the top_k, top_p and min_p of each row: from its largest logits, kept while tiles
stream by, and where those cannot prove that they hold the whole set, from another product of those
rows alone. whole_rows.py has the other way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from logitless.backends.row_kernels.topk import TopK
from logitless.inputs.checks import plain_fields, require, whole

if TYPE_CHECKING:
    from torch import Tensor

    from logitless.backends.machine import Machine
    from logitless.backends.row_kernels.rows import Rows
    from logitless.ops.head.adapter.joined import Matrix
    from logitless.ops.head.planner.plan import Plan
    from logitless.ops.head.tiling import Tiling
    from logitless.ops.rows.sets import RowSets
    from logitless.ops.sampling.draw import Noise
    from logitless.ops.sharding.shard import Shard


@dataclass(frozen=True)
class Truncation:
    """Which part of a distribution is drawn from."""

    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.top_k is not None:
            whole("top_k", self.top_k, least=1)
        if self.top_p is not None:
            require("top_p", self.top_p, lambda p: 0 < p <= 1, "in (0, 1] or None")
        if self.min_p is not None:
            require("min_p", self.min_p, lambda p: 0 <= p <= 1, "in [0, 1] or None")

    def limits(self, vocab: int) -> bool:
        """Whether anything can be left out."""
        return (self.top_k or vocab) < vocab or (self.top_p or 1.0) < 1.0 or bool(self.min_p)

    def kept(self, vocab: int, machine: Machine) -> int:
        """How many of the largest logits of a row are kept."""
        return min(self.top_k or machine.sampled_entries, machine.most_sampled_entries, vocab)

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of the core."""
        return {
            "top_k": self.top_k or 0, "top_p": float(self.top_p or 1.0),
            "min_p": float(self.min_p or 0.0),
        }  # fmt: skip


class KeptSets(NamedTuple):
    """What each row is drawn from."""

    ids: Tensor  # [ids] int32, ascending within a row
    offsets: Tensor  # [n + 1] int64

    @classmethod
    def of(
        cls, topk: TopK, sizes: Tensor, left: Tensor, others: list[Tensor], vocab: int
    ) -> KeptSets:
        """The first `sizes` [n] entries of the kept; of the rows `left` those of `others`."""
        import torch

        found, counts = topk.ids[torch.arange(topk.ids.shape[1]) < sizes[:, None]], sizes
        if others:
            counts = sizes.index_copy(0, left, torch.tensor([len(x) for x in others]))
        offsets = torch.zeros(len(counts) + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=offsets[1:])
        row = torch.arange(len(counts)).repeat_interleave(counts, output_size=int(offsets[-1]))
        if others:
            again = torch.zeros(len(counts), dtype=torch.bool)
            again[left] = True
            again, ids = again[row], found.new_empty(len(row))
            ids[again], ids[~again] = torch.cat(others), found
            found = ids
        # One number for a row and an id, so that one sort serves all rows.
        first = row * vocab
        return cls(((found + first).sort().values - first).int(), offsets)

    @property
    def csr(self) -> tuple[Tensor, Tensor]:
        return self.ids, self.offsets


def sets_on(shard: Shard, width: int, places: Tensor, ids: Tensor, offsets: Tensor) -> RowSets:
    """The sets of rows at their places: those of this rank's columns, as the head takes them."""
    import torch

    from logitless.ops.rows.sets import RowSets

    if not shard.group:
        return RowSets(places, offsets, ids)
    inside = (ids >= shard.start) & (ids < shard.start + width)
    before = offsets.new_zeros(len(ids) + 1)
    torch.cumsum(inside, 0, out=before[1:])
    # Of a device the host waits here for how many these are, and for nothing else.
    return RowSets(places, before[offsets], ids[inside] - shard.start)


def draw_from_largest(
    h: Tensor,  # [n, H], not padded
    weight: Matrix,  # [V of this rank, H]
    rows: Rows,
    tiling: Tiling,
    plan: Plan,
    truncation: Truncation,
    noise: Noise,
    shard: Shard,
    state: Tensor,  # [n, STATE], written
) -> tuple[Tensor, KeptSets]:  # [n] int64
    """The drawn tokens and what they are drawn from; `state` is then as if they had been the
    targets.

    Every rank draws for itself, from what all ranks have after the largest logits of each are sent.
    """
    import torch

    from logitless.ops.head.engine import forward_tiles
    from logitless.ops.head.tiling import LogitStore
    from logitless.ops.sampling.draw import kernels_of
    from logitless.ops.sharding.topk import finalize

    n, vocab = len(h), shard.vocab(len(weight))
    kernels = kernels_of(rows.backend)
    room = truncation.kept(vocab, rows.backend.machine(h.device))
    topk = TopK.empty(n, room, device=h.device)
    store = LogitStore(h.new_empty(0, dtype=tiling.dtype), n, tiling)
    forward_tiles(tiling.operand(h, None), weight, rows, state, store, False, topk)
    shard.merge(state, rows)
    finalize(rows, state, topk, shard, tiling.dtype)
    drawn, sizes = (h.new_empty(n, dtype=torch.int64) for _ in range(2))
    arguments = {**truncation.arguments, **noise.of(slice(0, n))}
    kernels.draw_truncated(rows, state, drawn, topk=topk, set_sizes=sizes, **arguments)
    left = (drawn < 0).nonzero().squeeze(1)
    others: list[Tensor] = []
    if not len(left):
        return drawn, KeptSets.of(topk, sizes, left, others, vocab)
    rows = shard.entire(rows)
    # Of a sharded vocabulary a row is held once more: as the parts that it is put together from.
    # And its set may be all ids.
    held = (vocab + len(shard.ranges) * shard.widest(0)) * tiling.dtype.itemsize + 4 * vocab
    room = max(plan.budget - plan.total_bytes, 0) // held
    for index in left.split(max(int(room), 1)):
        mine = state[index]
        drawn[index], kept = _draw_again(
            h[index], weight, rows.gather(index), tiling, truncation, noise.at(index), shard, mine
        )
        others += kept
        state[index] = mine
    return drawn, KeptSets.of(topk, sizes, left, others, vocab)


def _draw_again(
    h: Tensor,  # [r, H]
    weight: Matrix,
    rows: Rows,  # with the whole vocabulary's bias
    tiling: Tiling,
    truncation: Truncation,
    noise: Noise,
    shard: Shard,
    state: Tensor,  # [r, STATE], written
) -> tuple[Tensor, list[Tensor]]:  # [r]
    """The same of all logits of a few rows. Their state is made anew from these very logits: a
    product of fewer rows may round otherwise."""
    import torch

    from logitless.ops.sampling.draw import kernels_of
    from logitless.ops.sampling.whole_rows import logits_of

    r = len(h)
    logits = logits_of(h, weight, rows, tiling, shard)
    rows.forward(logits, state)
    drawn, sizes = (h.new_empty(r, dtype=torch.int64) for _ in range(2))
    ids = h.new_empty(logits.shape, dtype=torch.int32)
    arguments = {**truncation.arguments, **noise.of(slice(0, r))}
    kernels_of(rows.backend).draw_truncated(
        rows, state, drawn, logits=logits, set_sizes=sizes, set_ids=ids, **arguments
    )
    # copies, so that what was held goes
    return drawn, [row[:size].clone() for row, size in zip(ids, sizes.tolist(), strict=True)]
