"""Backward from the largest entries of a row alone, for the rows that lose little by it.

A row's distribution is often all but contained in a few entries. While the forward streams tiles,
the `KEPT` largest of each row are kept (candidates.py); then what the others hold is known exactly,
and a row whose kept entries hold all but `tail_mass` of it is served by a gather of so many rows of
weight and a scatter into so many of its gradient, in place of three dense products.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from logitless import _core
from logitless.backends.rows import Rows
from logitless.backends.topk import KEPT, Candidates
from logitless.ops.head.engine import Upstream
from logitless.ops.sharding.shard import Shard
from logitless.ops.sharding.topk import settle

# Of tail_mass, what the entries may hold that are dropped though there was room for them, once
# because they lie below the margin and once more at the end: each costs as much as the largest.
SPARE = 0.01
# Kept entries have y = softcap * tanh(u) in float32 and no u. Where dy/du is less, what it follows
# from, 1 - (y / softcap)^2, is off by 1e-5 and more, as much as the least tail_mass.
LEAST_SLOPE = 2.0**-6


def margin(tail_mass: float, vocab: int) -> float:
    """Nats below a row's maximum that are kept.

    The `KEPT` entries that could be kept of what lies lower hold no more than SPARE * tail_mass
    together, and each less than e^-H, since H <= log vocab. A smaller margin would send rows to the
    dense products that their largest entries could serve; log(vocab / tail_mass), below which all
    entries together hold no more than tail_mass, makes the forward look into more blocks for
    entries that are let go in the end.
    """
    return math.log(max(vocab, KEPT / (SPARE * tail_mass)))


class Support(NamedTuple):
    """What is kept of each of [n] rows. Flat, so that an op can return it."""

    y: Tensor  # [n, 2 KEPT] float64
    ids: Tensor  # [n, 2 KEPT] int32
    floor: Tensor  # [n] float64
    kept: Tensor  # [n] int64, how many; once measured, the target is among them, once
    mass: Tensor  # [n] float64: 1 - sum of kept p
    # [n] float64: sum of dropped |p (log p + H)|; infinite where a dropped p may exceed e^-H, so
    # that it is not known
    entropy: Tensor

    @classmethod
    def empty(cls, n: int) -> Support:
        kept = Candidates.empty(n, KEPT)
        wide = torch.float64
        dropped = (torch.empty(n, dtype=wide) for _ in range(2))
        return cls(kept.y, kept.ids, kept.floor, kept.count, *dropped)

    def candidates(self, n: int, vocab: int, tail_mass: float) -> Candidates:
        """Of the first n rows, those a forward had."""
        tau = margin(tail_mass, vocab)
        return Candidates(self.y[:n], self.ids[:n], self.floor[:n], self.kept[:n], tau)

    def measure(
        self,
        rows: Rows,
        state: Tensor,
        kept: Candidates,
        tail_mass: float,
        shard: Shard,
        dtype: torch.dtype,  # of the logits
    ) -> None:
        """After the last tile and `rows.finish`, which checks targets. From here on `kept` is of
        the whole vocabulary, and what follows from it has the same bits on every rank."""
        settle(rows, state, kept, shard, dtype)
        _core.topk.measure(
            rows.core, state, kept.core, dropped_mass=self.mass[: rows.n],
            dropped_entropy=self.entropy[: rows.n], slack=SPARE * tail_mass,
        )  # fmt: skip

    def serves(self, rows: Rows, g: Upstream, tail_mass: float) -> Tensor:
        """[n] bool: of the rows those whose gradients may come from kept entries alone."""
        n = rows.n
        some = self.mass[:n] <= tail_mass
        if rows.softcap:
            some = some & self._steep(n, rows.softcap)
        if g.g_entropy is None:
            return some
        return some & ((g.g_entropy == 0) | self.entropy[:n].isfinite())

    def _steep(self, n: int, softcap: float) -> Tensor:
        """[n] bool: whether the softcap's slope is known of all that is kept of a row."""
        y = self.y[:n]
        kept = torch.arange(y.shape[1]) < self.kept[:n, None]
        most = softcap * math.sqrt(1 - LEAST_SLOPE)
        return ((y.abs() <= most) | ~kept).all(1)

    def bound(self, n: int, g: Upstream) -> Tensor:
        """[n]: ||error of dz||_1 at most, where a row is served."""
        zero = torch.zeros((), dtype=torch.float64)
        g_logp, g_entropy, g_lse = (zero if x is None else x for x in g)
        # both weigh p itself, and 0 times infinity is no bound
        of_entropy = torch.where(g_entropy == 0, 0.0, g_entropy.abs() * self.entropy[:n])
        return (g_lse - g_logp).abs() * self.mass[:n] + of_entropy


class SparseGradient(NamedTuple):
    """d(logits) of some rows: entries offsets[i] to offsets[i + 1] belong to row names[i]."""

    offsets: Tensor  # [rows + 1] int64
    columns: Tensor  # [entries] int32
    values: Tensor  # [entries] float32, or float64 like hidden
    names: Tensor  # [rows] int32

    @classmethod
    def of(
        cls,
        rows: Rows,
        state: Tensor,
        kept: Candidates,
        g: Upstream,  # of all rows
        index: Tensor,  # of those served
        dtype: torch.dtype,
    ) -> SparseGradient:
        """Of the rows `index`, which are named 0, 1, ... in their order."""
        offsets = torch.zeros(len(index) + 1, dtype=torch.int64)
        torch.cumsum(kept.count[index], 0, out=offsets[1:])
        entries = int(offsets[-1])
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        columns = torch.empty(entries, dtype=torch.int32)
        values = torch.empty(entries, dtype=wide)
        _core.topk.sparse_gradient(
            rows.core, state, kept.core, index=index, offsets=offsets, columns=columns,
            values=values, g_logp=g.g_logp, g_entropy=g.g_entropy, g_lse=g.g_lse,
        )  # fmt: skip
        return cls(offsets, columns, values, torch.arange(len(index), dtype=torch.int32))

    def within(self, start: int, stop: int) -> SparseGradient:
        """Its columns from start to stop, counted from start."""
        inside = (start <= self.columns) & (self.columns < stop)
        before = torch.zeros(len(inside) + 1, dtype=torch.int64)
        torch.cumsum(inside, 0, out=before[1:])
        return self._replace(
            offsets=before[self.offsets], columns=self.columns[inside] - start,
            values=self.values[inside],
        )  # fmt: skip

    def transposed(
        self,
        vocab: int,
        rows: Tensor,  # what the rows of self are called as columns of the transpose
    ) -> SparseGradient:
        entries = len(self.columns)
        offsets = torch.empty(entries + 1, dtype=torch.int64)
        names, columns = (torch.empty(entries, dtype=torch.int32) for _ in range(2))
        values = torch.empty_like(self.values)
        n = _core.topk.sparse_transpose(
            *self[:3], row_names=rows.to(torch.int32),
            scratch=torch.empty(vocab + 1, dtype=torch.int32), out_offsets=offsets, out_names=names,
            out_columns=columns, out_values=values,
        )  # fmt: skip
        return SparseGradient(offsets[: n + 1], columns, values, names[:n])

    def multiply(self, dense: Tensor, out: Tensor, *, add: bool) -> None:
        """out[names] = (add: out[names] +) self @ dense, summed in float32 and rounded once."""
        threads = torch.get_num_threads()
        _core.topk.sparse_multiply(
            *self[:3], names=self.names, dense=dense, out=out, add=add, threads=threads
        )

    def add_row_sums(self, out: Tensor) -> None:
        _core.topk.sparse_add_row_sums(*self[:3], names=self.names, out=out)
