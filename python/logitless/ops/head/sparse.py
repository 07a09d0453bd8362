"""Backward from the largest entries of a row alone, for the rows that lose little by it.

A row's distribution is often all but contained in a few entries. While the forward streams tiles,
the largest of each row are kept (backends/row_kernels/topk.py). Then the mass of the other entries
is known exactly, and a row whose kept entries hold all but `tail_mass` of it is served by a gather
of so many rows of weight and a scatter into so many of its gradient, in place of three dense
products. Of the entries it keeps as few, in steps of 64, as will do.

Where all logits stay, the forward keeps 64 of each row. Rows which these do not serve, but more
might, are looked through once more for as many as were asked for. Where logits do not stay, so
many are kept of every row at once. Either way finds the same entries.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from logitless.backends.base import SparseKernels
from logitless.backends.row_kernels.rows import Rows
from logitless.backends.row_kernels.topk import TopK
from logitless.inputs.options import ENTRY_STEP, Tail
from logitless.inputs.records import changed
from logitless.ops.head.tiling import LogitStore, Tiling
from logitless.ops.rows.arguments import RowGradients
from logitless.ops.rows.whole import first_rows
from logitless.ops.sharding.shard import Shard
from logitless.ops.sharding.topk import finalize

# Of tail_mass, what the entries may hold that are dropped though there was room for them, once
# because they lie below the margin and once more at the end: each costs as much as the largest.
SLACK = 0.01
# Kept entries have the value y = softcap * tanh(u) in float32 and no u. Where dy/du is less,
# 1 - (y / softcap)^2, from which it follows, is off by 1e-5 and more: the least tail_mass.
LEAST_SLOPE = 2.0**-6


def margin(tail: Tail, vocab: int) -> float:
    """Nats below a row's maximum that are kept: log max(vocab, ENTRY_STEP / (SLACK * tail.mass)).

    Of what lies lower ENTRY_STEP entries hold no more than SLACK * tail.mass together, and each
    less than e^-H, since H <= log vocab. A smaller margin would send rows to the dense products
    that their largest entries could serve. A margin of log(vocab / tail.mass), below which all
    entries together hold no more than tail.mass, makes the forward look into more blocks for
    entries that are dropped in the end.
    """
    return math.log(max(vocab, ENTRY_STEP / (SLACK * tail.mass)))


def first_entries(tail: Tail, tiling: Tiling, vocab: int, shard: Shard) -> int:
    """How many entries of each row the forward keeps. Ranks must agree: they keep all at once."""
    return ENTRY_STEP if tiling.kept >= vocab and not shard.group else tail.entries


def recapture(rows: Rows, state: Tensor, store: LogitStore, vocab: int, kept: TopK) -> None:
    """The largest entries of rows, of which all logits are kept."""
    kernels = rows.backend.topk
    assert kernels is not None
    for start, stop in store.tiling.spans(vocab):
        tile = first_rows(store.tile(slice(0, store.n), start, stop - start), rows.n)
        kernels.recapture(rows, tile, state, kept, start=start, first=start == 0)


class TopKSupport(NamedTuple):
    """What is kept of each of [n] rows, and what is not. Flat, so that an op can return it."""

    values: Tensor  # [n, 2 * entries] float64
    ids: Tensor  # [n, 2 * entries] int32
    threshold: Tensor  # [n] float64
    # [n] int64, how many are kept; once measured, the target is among them, once
    counts: Tensor
    dropped_mass: Tensor  # [n] float64: 1 - sum of kept p
    # [n] float64: sum of dropped |p (log p + H)|; infinite where a dropped p may exceed e^-H, so
    # that it is not known
    dropped_entropy: Tensor

    @classmethod
    def empty(cls, n: int, tail: Tail, device: torch.device) -> TopKSupport:
        kept = TopK.empty(n, tail.entries, device=device)
        wide = torch.float64
        dropped = (torch.empty(n, dtype=wide, device=device) for _ in range(2))
        return cls(kept.values, kept.ids, kept.threshold, kept.count, *dropped)

    def first(self, n: int) -> TopKSupport:
        """That of the first n rows, those of a forward."""
        return TopKSupport(*(x[:n] for x in self))

    def topk(self, vocab: int, tail: Tail, entries: int = 0) -> TopK:
        """`entries`: room for so many; 0: for all."""
        room = 2 * (entries or tail.entries)
        values, ids = (x if x.shape[1] == room else x[:, :room] for x in self[:2])
        return TopK(values, ids, self.threshold, self.counts, margin(tail, vocab))

    def measure(
        self,
        rows: Rows,
        state: Tensor,
        vocab: int,  # of all shards
        tail: Tail,
        shard: Shard,
        store: LogitStore,
    ) -> None:
        """After the last tile and `rows.finalize`, which checks targets. From here on the entries
        are those of the whole vocabulary, and have the same bits on every rank."""
        entries = first_entries(tail, store.tiling, vocab, shard)
        dtype = store.tiling.dtype
        wider = self._settle(rows, state, self.topk(vocab, tail, entries), tail, shard, dtype)
        if entries == tail.entries or (not rows.backend.asynchronous and not wider.any()):
            return
        # Of a device the host does not ask how many these are.
        some, kept = changed(rows, mask=wider), self.topk(vocab, tail)
        recapture(some, state, store, vocab, kept)
        self._settle(some, state, kept, tail, shard, dtype)

    def _settle(
        self, rows: Rows, state: Tensor, kept: TopK, tail: Tail, shard: Shard, dtype: torch.dtype
    ) -> Tensor:
        """[n] bool: the rows that `kept` does not serve, and more entries might."""
        finalize(rows, state, kept, shard, dtype)
        wider = torch.zeros(rows.n, dtype=torch.bool, device=state.device)
        assert rows.backend.topk is not None
        rows.backend.topk.measure(
            rows, state, kept, dropped_mass=self.dropped_mass,
            dropped_entropy=self.dropped_entropy, wider=wider, step=ENTRY_STEP, most=tail.entries,
            enough=tail.mass, slack=SLACK * tail.mass,
        )  # fmt: skip
        return wider

    def serves(self, rows: Rows, g: RowGradients, tail: Tail) -> Tensor:
        """[n] bool: of the rows those whose gradients may come from kept entries alone."""
        some = self.dropped_mass <= tail.mass
        if rows.softcap:
            some = some & self._steep(rows.softcap)
        if g.entropy is None:
            return some
        return some & ((g.entropy == 0) | self.dropped_entropy.isfinite())

    def _steep(self, softcap: float) -> Tensor:
        """[n] bool: whether the softcap's slope is known of all that is kept of a row."""
        most = softcap * math.sqrt(1 - LEAST_SLOPE)
        # Entries are sorted, and a target that is not of the largest comes last.
        first, last = self.values[:, 0], self.values.gather(1, self.counts[:, None] - 1)[:, 0]
        return (first <= most) & (last >= -most)

    def bound(self, g: RowGradients) -> Tensor:
        """[n]: ||error of dz||_1 at most, where a row is served."""
        zero = self.dropped_mass.new_zeros(())
        of_logp, of_entropy, of_lse = (zero if x is None else x for x in g)
        # both weigh p itself, and 0 times infinity is no bound
        entropy = torch.where(of_entropy == 0, 0.0, of_entropy.abs() * self.dropped_entropy)
        return (of_lse - of_logp).abs() * self.dropped_mass + entropy


class SparseGradient(NamedTuple):
    """d(logits) of some rows: entries offsets[i] to offsets[i + 1] belong to row names[i]."""

    offsets: Tensor  # [rows + 1] int64
    columns: Tensor  # [entries] int32
    values: Tensor  # [entries] float32, or float64 like hidden
    names: Tensor  # [rows] int32
    kernels: SparseKernels

    @classmethod
    def of(
        cls,
        rows: Rows,
        state: Tensor,
        kept: TopK,
        g: RowGradients,  # of all rows
        index: Tensor,  # of those served
        entries: int,  # how many these keep
        dtype: torch.dtype,
    ) -> SparseGradient:
        """Of the rows `index`, which are named 0, 1, ... in their order."""
        offsets = index.new_zeros(len(index) + 1)
        torch.cumsum(kept.count[index], 0, out=offsets[1:])
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        columns = index.new_empty(entries, dtype=torch.int32)
        values = index.new_empty(entries, dtype=wide)
        backend = rows.backend
        assert backend.topk is not None and backend.sparse is not None
        backend.topk.gradient(
            rows, state, kept, index=index, offsets=offsets, columns=columns, values=values,
            **g.kernel_arguments,
        )  # fmt: skip
        names = torch.arange(len(index), dtype=torch.int32, device=index.device)
        return cls(offsets, columns, values, names, backend.sparse)

    def within(self, start: int, stop: int) -> SparseGradient:
        """Its columns from start to stop, counted from start."""
        inside = self._only((start <= self.columns) & (self.columns < stop))
        return inside._replace(columns=inside.columns - start)

    def without_zeros(self) -> SparseGradient:
        some = self.values != 0
        return self if some.all() else self._only(some)

    def without_empty(self, rows: int) -> SparseGradient:
        """Without the rows that have no entry, where all `rows` are named. Of a device the host
        waits for how many these are."""
        if len(self.names) < rows:
            return self
        some = self.offsets.diff().nonzero().squeeze(1)
        offsets = torch.cat((self.offsets[some], self.offsets[-1:]))
        return self._replace(offsets=offsets, names=self.names[some])

    def _only(self, some: Tensor) -> SparseGradient:  # [entries] bool
        before = self.offsets.new_zeros(len(some) + 1)
        torch.cumsum(some, 0, out=before[1:])
        # Of a device the host waits here for how many these are.
        index = some.nonzero().squeeze(1)
        return self._replace(
            offsets=before[self.offsets], columns=self.columns[index], values=self.values[index]
        )

    def transposed(
        self,
        vocab: int,
        rows: Tensor,  # what the rows of self are called as columns of the transpose
    ) -> SparseGradient:
        found = self.kernels.transpose(*self[:3], row_names=rows.to(torch.int32), vocab=vocab)
        return SparseGradient(*found, self.kernels)

    def multiply(self, dense: Tensor, out: Tensor, *, add: bool) -> None:
        """out[names] = (add: out[names] +) self @ dense, summed in float32 and rounded once."""
        threads = torch.get_num_threads()
        self.kernels.multiply(
            *self[:3], names=self.names, dense=dense, out=out, add=add, threads=threads
        )
