"""The part of the vocabulary that a rank holds, as the ops take it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from logitless.backends.row_kernels.rows import Rows
from logitless.inputs.records import changed


class Shard(NamedTuple):
    """Which columns of the vocabulary this rank holds. The default: all, and nothing is sent.

    Every rank of the group makes the same calls of what sends, with the same rows.
    """

    # of a torch.distributed group; "": none
    group: str = ""
    # start and stop of every rank's columns, in the order of ranks; 0, 0: it has none
    bounds: list[int] = []  # noqa: RUF012, never written to
    # False: d_hidden stays this rank's share of the sum over ranks
    reduces_hidden: bool = True

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return list(zip(self.bounds[::2], self.bounds[1::2], strict=True))

    @property
    def start(self) -> int:
        """Vocabulary id of this rank's first column."""
        return self.ranges[process_group(self.group).rank()][0] if self.group else 0

    @property
    def order(self) -> list[int]:
        """The ranks that have columns, in the order of those."""
        with_some = [rank for rank, (start, stop) in enumerate(self.ranges) if stop > start]
        return sorted(with_some, key=lambda rank: self.ranges[rank])

    def vocab(self, width: int) -> int:
        """The size of the whole vocabulary, where this rank holds `width` columns."""
        return max(self.bounds) if self.group else width

    def widest(self, width: int) -> int:
        return max(stop - start for start, stop in self.ranges) if self.group else width

    def local(self, rows: Rows) -> Rows:
        """Targets counted from this rank's first column: another rank's match none of ours."""
        if not self.group or rows.targets is None:
            return rows
        return changed(rows, targets=rows.targets - self.start)

    def merge(self, state: Tensor, rows: Rows) -> None:  # [n, 8] float64
        """The state over this rank's columns becomes that over all, the same bits on every rank."""
        if not self.group or not len(state):
            return
        state[:, 7] += self.start
        rows.merge(self.gather(state), state)

    def entire(self, rows: Rows) -> Rows:
        """With the bias of the whole vocabulary: its numbers are few where its logits are not."""
        if not self.group or rows.bias is None:
            return rows
        return changed(rows, bias=self.whole(rows.bias))

    def whole(self, mine: Tensor) -> Tensor:  # [..., V of this rank]
        """[..., V], the columns of all ranks in their order."""
        if not self.group:
            return mine
        padded = mine.new_zeros(*mine.shape[:-1], self.widest(0))
        padded[..., : mine.shape[-1]] = mine
        widths = [stop - start for start, stop in (self.ranges[rank] for rank in self.order)]
        everyone = self.gather(padded).unbind(0)
        return torch.cat([x[..., :width] for x, width in zip(everyone, widths, strict=True)], -1)

    def gather(self, mine: Tensor) -> Tensor:
        """[ranks that have columns, *mine.shape], in the order of their columns.

        Each rank's part is received where it belongs: to index by a list of ranks would send that
        list to the device, which waits and which a graph cannot capture.
        """
        group, order = process_group(self.group), self.order
        everyone = mine.new_empty(group.size(), *mine.shape)
        # As bytes, which every backend can send.
        slots = [slot.view(torch.uint8) for slot in everyone.unbind(0)]
        others = [rank for rank in range(group.size()) if rank not in order]
        place = dict(zip([*order, *others], slots, strict=True))
        parts = [place[rank] for rank in range(group.size())]
        dist.all_gather(parts, mine.contiguous().view(torch.uint8), group=group)
        return everyone[: len(order)]

    def reduce_hidden(self, total: Tensor) -> None:
        """Add d_hidden over the ranks, in place."""
        if self.group and self.reduces_hidden and total.numel():
            dist.all_reduce(total, group=process_group(self.group))


def process_group(name: str) -> dist.ProcessGroup:
    # as torch's own functional collectives find theirs
    resolve: Any = dist.distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    group: dist.ProcessGroup = resolve(name)
    return group


def sum_dtype(shard: Shard, dtype: torch.dtype) -> torch.dtype:
    """In which a rank's share of d_hidden waits for the others': rounded once, after the sum."""
    waits = shard.group and shard.reduces_hidden
    return torch.float32 if waits and dtype != torch.float64 else dtype
